//! `make image`: the same digests each time, and a layout that holds what it says.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use sha2::{Digest, Sha256};
use testbed::fetch;

/// What `make image` writes and prints.
fn make(name: &str) -> (PathBuf, String) {
    make_with(name, probe())
}

fn make_with(name: &str, probe: Option<&Path>) -> (PathBuf, String) {
    let folder = fetch::folder(&format!("image-{}-{name}", std::process::id()));
    let mut command = Command::new(fetch::program("image"));
    command.args(["--image", "localhost:5000/x:1", "--to"]).arg(&folder);
    command.args(probe.map(|probe| format!("--probe={}", probe.display())));
    let printed = fetch::run(&mut command);
    (folder, printed)
}

/// The static probe; `None`, with a notice, if it cannot be built here.
fn probe() -> Option<&'static Path> {
    static PROBE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let script = fetch::root().join("scripts/build-probe");
        let output = Command::new(script).output().expect("the script runs");
        let error = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {
                let path = String::from_utf8(output.stdout).expect("a path");
                Some(fetch::root().join(path.trim_end()))
            }
            Some(3) => {
                fetch::notice(&format!("SKIPPED the probe's image: {error}"));
                None
            }
            _ => panic!("{error}"),
        }
    };
    PROBE.get_or_init(build).as_deref()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// The bytes of a blob, which are as many and of the digest that its descriptor says.
fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().expect("a digest");
    let digest = digest.strip_prefix("sha256:").expect("SHA-256");
    let bytes = fs::read(layout.join("blobs/sha256").join(digest)).expect("the blob is there");
    assert_eq!(hex(&bytes), digest);
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

fn untar(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    let entries = archive.entries().expect("a tar archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").to_string_lossy().into_owned();
        assert_eq!(entry.header().mtime().expect("a time"), 0, "{name}");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its bytes");
        (name, bytes)
    });
    entries.collect()
}

/// `make release`: what is published, and sums that are right.
#[test]
fn a_release() {
    let (image, _) = make("release");
    let dist = image.join("dist");
    let script = fetch::root().join("scripts/release");
    fetch::run(Command::new(script).args([&image, &dist]));
    let sums = fs::read_to_string(dist.join("SHA256SUMS")).expect("written");
    let mut names: Vec<&str> = Vec::new();
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").expect("a sum and a name");
        assert_eq!(hex(&fs::read(dist.join(name)).expect("it is there")), sum, "{name}");
        names.push(name);
    }
    let version = env!("CARGO_PKG_VERSION");
    let probe = [
        format!("ws-close-probe-{version}-linux-{}", std::env::consts::ARCH),
        format!("ws-close-probe-{version}.oci.tar"),
        "ws-close-probe.1".to_owned(),
        "ws-close-probe.bash".to_owned(),
        "ws-close-probe.fish".to_owned(),
        "_ws-close-probe".to_owned(),
        "probe-job.yaml".to_owned(),
        "probe-cronjob.yaml".to_owned(),
    ];
    let probe = probe.into_iter().filter(|_| self::probe().is_some());
    for name in probe.chain([
        format!("ws-clean-close-{version}.wasm"),
        format!("ws-clean-close-{version}.oci.tar"),
        "wasm-plugin.yaml".to_owned(),
        "traffic-extension.yaml".to_owned(),
        "network-per-chain.yaml".to_owned(),
        "LICENSE".to_owned(),
    ]) {
        assert!(names.contains(&&name[..]), "{name} is not in {names:?}");
    }
    assert_eq!(fs::read_dir(&dist).expect("a folder").count(), names.len() + 1);
    fs::remove_dir_all(image).expect("the testbed's folder is writable");
}

/// On a machine that cannot build the static probe: a line that says so, and a release without it.
#[test]
fn a_release_without_the_probe() {
    let (image, _) = make_with("no-probe", None);
    let elsewhere = image.join("elsewhere");
    fs::create_dir(&elsewhere).expect("the folder is writable");
    let uname = elsewhere.join("uname");
    fs::write(&uname, "#!/bin/sh\necho Darwin\n").expect("the folder is writable");
    fetch::run(Command::new("chmod").arg("+x").arg(&uname));
    let path = format!("{}:{}", elsewhere.display(), std::env::var("PATH").expect("a PATH"));
    let script = fetch::root().join("scripts/build-probe");
    let output = Command::new(script).env("PATH", path).output().expect("the script runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.starts_with("build-probe: no static probe: ") && error.lines().count() == 1);
    assert!(output.stdout.is_empty());

    let dist = image.join("dist");
    fetch::run(Command::new(fetch::root().join("scripts/release")).args([&image, &dist]));
    let sums = fs::read_to_string(dist.join("SHA256SUMS")).expect("written");
    assert!(sums.contains("wasm-plugin.yaml") && !sums.contains("probe"), "{sums}");
    fs::remove_dir_all(image).expect("the testbed's folder is writable");
}

#[test]
fn the_same_twice() {
    let (first, printed) = make("first");
    let (second, _) = make("second");
    let files = |folder: &Path| {
        let mut files = BTreeSet::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(inner) = folders.pop() {
            for entry in fs::read_dir(inner).expect("a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(folder).expect("inside").to_owned();
                files.insert((name, hex(&fs::read(&path).expect("a file"))));
            }
        }
        files
    };
    assert_eq!(files(&first), files(&second));
    // Where the crates of whoever built it lie must not be in the module: it would be another elsewhere.
    let module = fs::read(first.join("plugin.wasm")).expect("written");
    let home = std::env::var("HOME").map(|home| format!("{home}/.cargo"));
    let home = std::env::var("CARGO_HOME").or(home).expect("a home");
    let probe = fs::read(first.join("ws-close-probe")).unwrap_or_default();
    for (what, bytes) in [("module", &module), ("probe", &probe)] {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(&home), "{home} is in the {what}");
        let project = fetch::root().display().to_string();
        assert!(!text.contains(&project), "{project} is in the {what}");
    }
    assert!(printed.contains(&hex(&module)), "{printed}");
    for folder in [first, second] {
        fs::remove_dir_all(folder).expect("it was written");
    }
}

/// The probe's image: one static binary, run by nobody in particular, named with its digest in the Job and CronJob.
#[test]
fn the_probe() {
    let Some(probe) = probe() else { return };
    let (folder, printed) = make("probe");
    let layout = folder.join("probe/layout");
    let index = json(&fs::read(layout.join("index.json")).expect("written"));
    let [descriptor] = index["manifests"].as_array().expect("manifests").as_slice() else {
        panic!("one image: {index}");
    };
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!(descriptor["platform"]["architecture"], architecture);
    let digest = descriptor["digest"].as_str().expect("a digest");
    assert!(printed.contains(digest), "{printed}");
    let manifest = json(&blob(&layout, descriptor));
    let config = json(&blob(&layout, &manifest["config"]));
    assert_eq!((&config["os"], &config["architecture"]), (&"linux".into(), &architecture.into()));
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/ws-close-probe"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    let gzip = blob(&layout, &manifest["layers"][0]);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(gzip.as_slice()).read_to_end(&mut tar).expect("gzip");
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&tar)));
    let binary = fs::read(probe).expect("it has been built");
    assert_eq!(untar(&tar), [("ws-close-probe".to_owned(), binary.clone())]);
    assert!(tar::Archive::new(Cursor::new(&tar))
        .entries()
        .expect("a tar archive")
        .all(|entry| entry.expect("an entry").header().mode().expect("a mode") == 0o755));
    // A binary that needs a loader names it, and the image has none.
    let text = String::from_utf8_lossy(&binary);
    assert!(!text.contains("/ld-linux") && !text.contains("/ld-musl"), "it is not static");
    for file in ["probe-job.yaml", "probe-cronjob.yaml"] {
        let text = fs::read_to_string(folder.join(file)).expect(file);
        let line = format!("image: localhost:5000/ws-close-probe:1@{digest}\n");
        assert_eq!(text.matches(&line).count(), 1, "{line}{text}");
    }
    fs::remove_dir_all(folder).expect("it was written");
}

#[test]
fn the_layout_holds_what_it_says() {
    let (folder, printed) = make("layout");
    let module = fs::read(fetch::module()).expect("it has been built");
    let layout = folder.join("layout");
    let read = |name: &str| fs::read(layout.join(name)).expect(name);
    assert_eq!(json(&read("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = json(&read("index.json"));
    let [image, artefact] = index["manifests"].as_array().expect("manifests").as_slice() else {
        panic!("two forms: {index}");
    };
    let mut named = BTreeSet::from(["oci-layout".to_owned(), "index.json".to_owned()]);
    for (descriptor, config_type, layer_types) in [
        (
            image,
            "application/vnd.oci.image.config.v1+json",
            &["application/vnd.oci.image.layer.v1.tar+gzip"][..],
        ),
        (
            artefact,
            "application/vnd.module.wasm.config.v1+json",
            &[
                "application/vnd.module.wasm.config.v1+json",
                "application/vnd.module.wasm.content.layer.v1+wasm",
            ],
        ),
    ] {
        assert!(printed.contains(descriptor["digest"].as_str().expect("a digest")), "{printed}");
        let manifest = json(&blob(&layout, descriptor));
        assert_eq!(manifest["mediaType"], descriptor["mediaType"]);
        assert_eq!(manifest["config"]["mediaType"], config_type);
        let layers = manifest["layers"].as_array().expect("layers");
        let types: Vec<_> =
            layers.iter().map(|l| l["mediaType"].as_str().expect("a type")).collect();
        assert_eq!(types, layer_types);
        for descriptor in layers.iter().chain([descriptor, &manifest["config"]]) {
            blob(&layout, descriptor);
            named.insert(
                descriptor["digest"].as_str().expect("text").replace("sha256:", "blobs/sha256/"),
            );
        }
        let last = blob(&layout, layers.last().expect("a layer"));
        if layers.len() == 1 {
            let mut tar = Vec::new();
            flate2::read::GzDecoder::new(last.as_slice()).read_to_end(&mut tar).expect("gzip");
            assert_eq!(untar(&tar), [("plugin.wasm".to_owned(), module.clone())]);
            let config = json(&blob(&layout, &manifest["config"]));
            assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&tar)));
        } else {
            assert_eq!(last, module);
        }
    }
    // The archive is the layout, and neither has anything that nobody names.
    let archive = format!("ws-clean-close-{}.oci.tar", env!("CARGO_PKG_VERSION"));
    let archive = fs::read(folder.join(archive)).expect("an archive");
    let mut names = BTreeSet::new();
    for (name, bytes) in untar(&archive) {
        assert_eq!(read(&name), bytes, "{name}");
        names.insert(name);
    }
    assert_eq!(names, named);

    // The manifests beside it name it.
    let digest = image["digest"].as_str().expect("text").replace("sha256:", "sha256: \"") + "\"\n";
    for (file, times) in [
        ("wasm-plugin.yaml", 2),
        ("traffic-extension.yaml", 2),
        ("network-per-chain.yaml", 1),
        ("filter-low-cost.yaml", 1),
        ("waypoint-envoyfilter.yaml", 2),
    ] {
        let text = fs::read_to_string(folder.join(file)).expect(file);
        assert_eq!(text.matches(&digest).count(), times, "{file}");
        assert_eq!(text.matches("oci://localhost:5000/x:1\n").count(), times, "{file}");
    }
    fs::remove_dir_all(folder).expect("it was written");
}
