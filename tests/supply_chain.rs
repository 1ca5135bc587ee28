//! What the project takes from others: only from crates.io, only under licences that deny.toml allows;
//! and what of it is in the module. `make audit` asks cargo-deny too. And that the module comes out the same wherever
//! it is built.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use semver::{Version, VersionReq};
use serde_json::Value;
use spdx::{Expression, ParseMode};
use testbed::fetch;
use time::{Date, OffsetDateTime};
use wasmparser::{Parser, Payload};

/// What is linked into the module, or run while it is compiled. Each more is one more to trust.
const IN_THE_MODULE: [&str; 19] = [
    "allocator-api2",
    "equivalent",
    "foldhash",
    "hashbrown",
    "itoa",
    "log",
    "memchr",
    "proc-macro2",
    "proxy-wasm",
    "quote",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "syn",
    "unicode-ident",
    "ws-clean-close",
    "ws-clean-close-core",
    "zmij",
];

/// What Envoy calls, less `proxy_on_`.
const EXPORTS: [&str; 9] = [
    "configure",
    "context_create",
    "delete",
    "memory_allocate",
    "queue_ready",
    "request_body",
    "response_body",
    "response_headers",
    "tick",
];

/// What the module calls of WASI. There is nothing to open a file or a socket with; Envoy writes to its log what is
/// written to standard output and error, and has no environment unless it is configured.
const WASI: [&str; 6] =
    ["clock_time_get", "environ_get", "environ_sizes_get", "fd_write", "proc_exit", "random_get"];

fn metadata(arguments: &[&str]) -> Value {
    let mut command = Command::new("cargo");
    command.current_dir(fetch::root()).args(["metadata", "--format-version", "1", "--locked"]);
    serde_json::from_str(&fetch::run(command.args(arguments))).expect("JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key:?}")).iter()
}

#[test]
fn sources_and_licences() {
    let deny = fs::read_to_string(fetch::root().join("deny.toml")).expect("deny.toml is there");
    let deny: toml::Table = deny.parse().expect("TOML");
    let allowed: BTreeSet<_> = deny["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    assert!(allowed.len() > 3);
    for arguments in [&[][..], &["--manifest-path", "fuzz/Cargo.toml"]] {
        for package in list(&metadata(arguments), "packages") {
            let (name, source) = (&package["name"], &package["source"]);
            // None: the project's own.
            assert!(
                source.is_null()
                    || source == "registry+https://github.com/rust-lang/crates.io-index",
                "{name} comes from {source}"
            );
            let text = package["license"].as_str().unwrap_or_else(|| panic!("{name}: no licence"));
            let licence = Expression::parse_mode(text, ParseMode::LAX)
                .unwrap_or_else(|e| panic!("{name}: {text}: {e}"));
            // With its exception, if it has one.
            let fine = licence.evaluate(|term| allowed.contains(&term.to_string()[..]));
            assert!(fine, "{name} is under {text}");
        }
    }
}

/// A package and all that it is built from, without the dependencies of tests.
fn linked<'a>(metadata: &'a Value, package: &str) -> Vec<&'a Value> {
    let packages: HashMap<_, _> =
        list(metadata, "packages").map(|found| (found["id"].as_str(), found)).collect();
    let root = packages.iter().find(|(_, found)| found["name"] == package);
    let mut next = vec![*root.expect("it is in the workspace").0];
    let mut found = HashSet::new();
    while let Some(id) = next.pop() {
        if !found.insert(id) {
            continue;
        }
        let node = list(&metadata["resolve"], "nodes").find(|node| node["id"].as_str() == id);
        for dependency in list(node.expect("a node"), "deps") {
            // Not those of tests.
            if list(dependency, "dep_kinds").any(|kind| kind["kind"] != "dev") {
                next.push(dependency["pkg"].as_str());
            }
        }
    }
    found.into_iter().map(|id| packages[&id]).collect()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().expect("a name")
}

/// What is in the module, and not the project's own: names and versions.
fn in_module() -> Vec<(String, Version)> {
    let metadata = metadata(&["--filter-platform", "wasm32-wasip1"]);
    let crates = linked(&metadata, "ws-clean-close").into_iter();
    let version = |found: &Value| found["version"].as_str().and_then(|v| v.parse().ok());
    crates
        .filter(|found| !found["source"].is_null())
        .map(|found| (name(found).to_owned(), version(found).expect("a version")))
        .collect()
}

/// A file of `supply-chain`.
fn kept(file: &str) -> toml::Table {
    let path = fetch::root().join("supply-chain").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// What the probe is built from, so that it builds in half a minute on two cores: each more makes that longer.
#[test]
fn the_probe_is_small() {
    let metadata = metadata(&["--filter-platform", "x86_64-unknown-linux-musl"]);
    let found = linked(&metadata, "ws-close-probe");
    assert!(found.len() <= 90, "{} packages: {found:?}", found.len());
}

#[test]
fn in_the_module() {
    let metadata = metadata(&["--filter-platform", "wasm32-wasip1"]);
    let found = linked(&metadata, "ws-clean-close");
    let found: BTreeSet<_> = found.into_iter().map(name).collect();
    assert_eq!(found, BTreeSet::from(IN_THE_MODULE));
}

/// The record that `cargo vet` reads: each version of a crate in the module has been looked at, and no other is kept.
#[test]
fn each_crate_of_the_module_is_audited() {
    let audits = kept("audits.toml");
    let audits = audits["audits"].as_table().expect("a table");
    let audited: BTreeSet<_> = audits
        .iter()
        .flat_map(|(name, audits)| {
            audits.as_array().expect("a list").iter().map(move |a| (name, a))
        })
        .map(|(name, audit)| (name.clone(), audit["version"].as_str().expect("a version").parse()))
        .map(|(name, version)| (name, version.expect("a version")))
        .collect();
    assert_eq!(audited, in_module().into_iter().collect());
}

/// The advisories that are kept with the project: they cover each crate of the module, and none is about its version.
/// `make advisories` is the real check.
#[test]
fn no_known_advisory_is_about_the_module() {
    let kept = kept("advisories.toml");
    let strings = |list: &toml::Value| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|text| text.as_str().expect("a string").to_owned()).collect()
    };
    let advisories = kept["advisory"].as_array().expect("a list");
    let about = |name: &str| -> Vec<_> {
        advisories.iter().filter(|advisory| advisory["crate"].as_str() == Some(name)).collect()
    };
    let none = strings(&kept["none"]);
    for (name, version) in in_module() {
        let known = about(&name).len();
        assert!(
            none.contains(&name) != (known > 0),
            "{name}: look up its advisories, and write into supply-chain/advisories.toml what there is"
        );
        for advisory in about(&name) {
            let affected = advisory["affected"].as_str().expect("versions");
            let affected: VersionReq = affected.parse().expect("versions");
            assert!(!affected.matches(&version), "{name} {version}: {}", advisory["id"]);
        }
    }
    let date = kept["database"].as_datetime().and_then(|d| d.date).expect("a date");
    let month = date.month.try_into().expect("a month");
    let day = Date::from_calendar_date(date.year.into(), month, date.day).expect("a day");
    let age = (OffsetDateTime::now_utc().date() - day).whole_days();
    fetch::notice(&format!(
        "advisories about the module: as RustSec knew them on {date}, {age} days ago; make advisories asks it again"
    ));
}

fn sections(module: &[u8]) -> impl Iterator<Item = Payload<'_>> {
    Parser::new(0).parse_all(module).map(|section| section.expect("a module"))
}

/// Callbacks that a connection alone has: the SDK traps on one where it takes the context for an HTTP
/// stream, which the filter says of every context.
#[test]
fn exports() {
    let module = fs::read(fetch::module()).expect("the module");
    let exports: BTreeSet<String> = sections(&module)
        .filter_map(|section| match section {
            Payload::ExportSection(exports) => Some(exports),
            _ => None,
        })
        .flatten()
        .map(|export| export.expect("an export").name.to_owned())
        .filter(|name| name.starts_with("proxy_on_"))
        .collect();
    assert_eq!(exports, EXPORTS.map(|name| format!("proxy_on_{name}")).into());
}

#[test]
fn imports() {
    let module = fs::read(fetch::module()).expect("the module");
    let imports: BTreeSet<_> = sections(&module)
        .filter_map(|section| match section {
            Payload::ImportSection(imports) => Some(imports),
            _ => None,
        })
        .flatten()
        .map(|import| import.expect("an import"))
        // Those of proxy-wasm.
        .filter(|import| import.module != "env")
        .map(|import| (import.module, import.name))
        .collect();
    assert_eq!(imports, WASI.map(|name| ("wasi_snapshot_preview1", name)).into());
}

/// Another folder, another target folder, another cargo home, without a network: the same bytes.
#[test]
fn the_module_is_the_same_wherever_it_is_built() {
    let project = fetch::root();
    let build = |folder: &Path| {
        let mut build = Command::new("scripts/build-module");
        build.current_dir(folder).env_remove("CARGO_TARGET_DIR");
        build
    };
    let module = |folder: &Path| {
        fs::read(folder.join("target/wasm32-wasip1/release/ws_clean_close.wasm")).expect("built")
    };
    fetch::run(&mut build(project));

    let elsewhere = std::env::temp_dir().join(format!("ws-clean-close-{}", std::process::id()));
    let (sources, home) = (elsewhere.join("sources"), elsewhere.join("home"));
    let mut git = Command::new("git");
    git.current_dir(project).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    for file in fetch::run(&mut git).split_terminator('\0') {
        let (from, to) = (project.join(file), sources.join(file));
        // Not what was removed and not yet committed.
        if from.is_file() {
            fs::create_dir_all(to.parent().expect("a folder")).expect("writable");
            fs::copy(&from, &to).expect("writable");
        }
    }
    // What cargo has fetched, under another path.
    fs::create_dir_all(&home).expect("writable");
    for entry in fs::read_dir(cargo_home()).expect("cargo's folder") {
        let entry = entry.expect("an entry");
        symlink(entry.path(), home.join(entry.file_name())).expect("writable");
    }
    fetch::run(build(&sources).env("CARGO_HOME", &home).env("CARGO_NET_OFFLINE", "true"));
    assert!(module(project) == module(&sources), "not the same bytes");
    fs::remove_dir_all(elsewhere).expect("writable");
}

fn cargo_home() -> PathBuf {
    let home = || std::env::home_dir().expect("a home").join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// Another linker would export them all, and a client could then choose a callback that traps.
#[test]
fn another_linker_is_refused() {
    for (key, value) in [
        ("CARGO_TARGET_WASM32_WASIP1_LINKER", "rust-lld"),
        ("CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS", "-Clinker=rust-lld"),
    ] {
        let build = Command::new("cargo")
            .current_dir(fetch::root())
            .args(["build", "--release", "--target", "wasm32-wasip1"])
            .args(["--target-dir", "target/another-linker"])
            .env(key, value)
            .output()
            .expect("cargo runs");
        let says = String::from_utf8_lossy(&build.stderr);
        assert!(!build.status.success() && says.contains("scripts/wasm-ld"), "{key}: {says}");
    }
}
