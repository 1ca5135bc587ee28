//! What the project takes from others: only from crates.io, only under licences that deny.toml allows;
//! and what of it is in the module. `make audit` asks cargo-deny too.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, ParseMode};
use testbed::fetch;
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
        .filter_map(|name| spdx::license_id(name.as_str()?))
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
            let fine = licence.evaluate(|term| {
                term.license.id().is_some_and(|license| allowed.contains(&license))
            });
            assert!(fine, "{name} is under {text}");
        }
    }
}

/// The names of a package and of all that it is built from, without the dependencies of tests.
fn linked<'a>(metadata: &'a Value, package: &str) -> Vec<&'a str> {
    let names: HashMap<_, _> =
        list(metadata, "packages").map(|p| (p["id"].as_str(), p["name"].as_str())).collect();
    let root = names.iter().find(|(_, name)| **name == Some(package));
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
    found.into_iter().map(|id| names[&id].expect("a name")).collect()
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
    let found: BTreeSet<_> = found.into_iter().collect();
    assert_eq!(found, BTreeSet::from(IN_THE_MODULE));
}

/// Callbacks that a connection alone has: the SDK traps on one where it takes the context for an HTTP
/// stream, which the filter says of every context.
#[test]
fn exports() {
    let module = fs::read(fetch::module()).expect("the module");
    let exports: BTreeSet<String> = Parser::new(0)
        .parse_all(&module)
        .filter_map(|payload| match payload.expect("a module") {
            Payload::ExportSection(exports) => Some(exports),
            _ => None,
        })
        .flatten()
        .map(|export| export.expect("an export").name.to_owned())
        .filter(|name| name.starts_with("proxy_on_"))
        .collect();
    assert_eq!(exports, EXPORTS.map(|name| format!("proxy_on_{name}")).into());
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
