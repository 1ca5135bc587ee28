//! `kubectl apply -k`: what `kustomize build` makes of `kustomize/`, held against the manifests that are
//! applied without it, and against Istio's CRDs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{json, Value};
use testbed::crds::Schemas;
use testbed::fetch;
use testbed::manifests::{documents, parse};
use ws_clean_close_core::config::{Config, HttpConfig};

/// The newest that Go 1.26 builds.
const KUSTOMIZE: &str = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.2";

const OVERLAYS: [&str; 6] =
    ["enforce-gateway", "low-cost", "mesh", "network-per-chain", "observe-gateway", "workloads"];

/// What `kustomize build` makes of a folder, in the order of names; `None`, with a notice, if Go is missing.
fn build(folder: &Path) -> Option<Vec<Value>> {
    let kustomize = fetch::go_install(KUSTOMIZE, "kustomize")?;
    let text = fetch::run(Command::new(kustomize).arg("build").arg(folder));
    Some(sorted(parse(&text)))
}

fn overlay(name: &str) -> Option<Vec<Value>> {
    build(&fetch::root().join("kustomize/overlays").join(name))
}

fn file(name: &str) -> Vec<Value> {
    documents(&fetch::root().join(name)).into_iter().map(|manifest| manifest.value).collect()
}

fn name(manifest: &Value) -> &str {
    manifest["metadata"]["name"].as_str().expect("a name")
}

fn sorted(mut manifests: Vec<Value>) -> Vec<Value> {
    manifests.sort_by(|a, b| name(a).cmp(name(b)));
    manifests
}

fn plugins() -> Vec<Value> {
    sorted(file("wasm-plugin.yaml"))
}

/// kustomize reads no file from outside of its folder, hence the second text.
#[test]
fn the_base_is_wasm_plugin_yaml() {
    assert_eq!(sorted(file("kustomize/base/wasm-plugins.yaml")), plugins());
    let Some(base) = build(&fetch::root().join("kustomize/base")) else { return };
    assert_eq!(base, plugins());
}

#[test]
fn every_overlay_is_known() {
    let folders = fs::read_dir(fetch::root().join("kustomize/overlays")).expect("a folder");
    let folders: BTreeSet<_> =
        folders.flatten().map(|f| f.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(folders, OVERLAYS.map(str::to_owned).into());
}

#[test]
fn overlays_are_what_they_say() {
    let with = |manifests: &[Value], pointer: &str, key: &str, value: Value| {
        let mut manifests = manifests.to_vec();
        for manifest in &mut manifests {
            manifest.pointer_mut(pointer).expect("it is there")[key] = value.clone();
        }
        manifests
    };
    let selecting = |label: &str, value: &str| {
        with(&plugins(), "/spec", "selector", json!({ "matchLabels": { label: value } }))
    };
    let gateway = selecting("istio", "ingressgateway");
    let [http, network] = &gateway[..] else { panic!("two plugins: {gateway:#?}") };
    let observing =
        with(std::slice::from_ref(http), "/spec/pluginConfig", "enforce", json!(false)).remove(0);
    let [_, network_everywhere] = plugins().try_into().expect("two plugins");
    let low_cost = file("envoyfilter/filter-low-cost.yaml");
    let per_chain = file("envoyfilter/network-per-chain.yaml");
    for (name, expected) in [
        ("mesh", plugins()),
        ("enforce-gateway", gateway.clone()),
        ("observe-gateway", vec![observing, network.clone()]),
        ("workloads", selecting("ws-clean-close", "enabled")),
        ("low-cost", [low_cost, vec![network_everywhere]].concat()),
        ("network-per-chain", [plugins(), per_chain].concat()),
    ] {
        let Some(built) = overlay(name) else { return };
        assert_eq!(built, sorted(expected), "{name}");
    }
}

/// The manifests are accepted by Kubernetes, and their configuration by the filter.
#[test]
fn overlays_fit_the_crds() {
    let schemas = Schemas::kept();
    for name in OVERLAYS {
        let Some(built) = overlay(name) else { return };
        for manifest in &built {
            schemas.check(manifest).unwrap_or_else(|e| panic!("{name}: {e}\n{manifest:#}"));
            if manifest["kind"] != "WasmPlugin" {
                continue;
            }
            let config = Config::parse(manifest["spec"]["pluginConfig"].to_string().as_bytes());
            let expected = if manifest["spec"]["type"] == "NETWORK" {
                Config::Network
            } else {
                let enforce = name != "observe-gateway";
                Config::Http(Box::new(HttpConfig { enforce, ..HttpConfig::default() }))
            };
            assert_eq!(config.map_err(|e| e.to_string()), Ok(expected), "{name}");
        }
    }
}

/// Every `url` or `uri`, and every `sha256`, at any depth.
fn images(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let ("url" | "uri" | "sha256", Some(text)) = (&key[..], value.as_str()) {
                    found.insert(text.to_owned());
                }
                images(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|inner| images(inner, found)),
        _ => {}
    }
}

/// `kustomize/image` is the one place for the image: every overlay takes it from there. `make image` fills it in.
#[test]
fn one_place_for_the_image() {
    let folder = fetch::folder(&format!("run/kustomize-{}", std::process::id()));
    let address = "localhost:5000/x:1";
    let mut image = Command::new(fetch::program("image"));
    fetch::run(image.args(["--image", address, "--to"]).arg(&folder));
    let index = fs::read_to_string(folder.join("layout/index.json")).expect("it was written");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("a digest").replace("sha256:", "");
    // Only the component is filled in: what an overlay shows does not come from elsewhere.
    let alone = folder.join("alone");
    for part in ["kustomize/base", "kustomize/overlays", "envoyfilter"] {
        let from = fetch::root().join(part);
        let to = alone.join(part).parent().expect("a folder").to_owned();
        fs::create_dir_all(&to).expect("the testbed's folder is writable");
        fetch::run(Command::new("cp").arg("-R").arg(from).arg(to));
    }
    let component = folder.join("kustomize/image");
    fetch::run(Command::new("cp").arg("-R").arg(component).arg(alone.join("kustomize")));
    for tree in [&folder, &alone] {
        for name in OVERLAYS {
            let Some(built) = build(&tree.join("kustomize/overlays").join(name)) else { return };
            let mut found = BTreeSet::new();
            built.iter().for_each(|manifest| images(manifest, &mut found));
            let expected = BTreeSet::from([format!("oci://{address}"), digest.clone()]);
            assert_eq!(found, expected, "{name} in {}", tree.display());
        }
    }
    fs::remove_dir_all(folder).expect("it was written");
}
