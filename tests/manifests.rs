//! Every manifest in the project, against the schemas of Istio's CRDs and the crate's own parser.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{json, Value};
use testbed::fetch;
use testbed::manifests::{documents, shipped};
use ws_clean_close_core::config::Config;

/// Kubernetes' own kinds, which have no CRD.
const BUILT_IN: [&str; 2] = ["v1/Service", "apps/v1/Deployment"];

/// The schemas of the CRDs by `apiVersion/kind`; `None`, with a notice, where there is no such file.
fn schemas() -> Option<BTreeMap<String, Value>> {
    let file = fetch::root().join("../shared/istio/crds.yaml");
    if !file.is_file() {
        fetch::notice(&format!(
            "SKIPPED: no {}, which is Istio's manifests/charts/base/files/crd-all.gen.yaml",
            file.display()
        ));
        return None;
    }
    let mut schemas = BTreeMap::new();
    for crd in documents(&file) {
        let spec = &crd.value["spec"];
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        for version in spec["versions"].as_array().expect("versions") {
            let kind = text(&spec["names"]["kind"]);
            let name = format!("{}/{}/{kind}", text(&spec["group"]), text(&version["name"]));
            let mut schema = version["schema"]["openAPIV3Schema"].clone();
            // What every resource has, and no CRD says.
            for key in ["apiVersion", "kind", "metadata"] {
                schema["properties"][key] = json!({ "x-kubernetes-preserve-unknown-fields": true });
            }
            close(&mut schema);
            schemas.insert(name, schema);
        }
    }
    Some(schemas)
}

/// Refuses what a structural schema does not name, as `kubectl apply` does. In JSON Schema an unknown
/// field is welcome unless told otherwise.
fn close(schema: &mut Value) {
    let open = schema["x-kubernetes-preserve-unknown-fields"] == json!(true);
    let Value::Object(map) = schema else { return };
    if map.contains_key("properties") && !map.contains_key("additionalProperties") && !open {
        map.insert("additionalProperties".into(), json!(false));
    }
    if map.remove("nullable") == Some(json!(true)) {
        map.remove("type");
    }
    // What stands under oneOf and the like is about values, and names only some of the fields.
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(close);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            close(inner);
        }
    }
}

fn check(schemas: &BTreeMap<String, Value>, value: &Value) -> Result<(), String> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let name = format!("{}/{}", text("apiVersion"), text("kind"));
    if BUILT_IN.contains(&&name[..]) {
        return Ok(());
    }
    let schema = schemas.get(&name).ok_or(format!("no CRD for {name}"))?;
    let validator = jsonschema::validator_for(schema).map_err(|e| e.to_string())?;
    let errors: Vec<_> =
        validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("\n"))
    }
}

#[test]
fn fit_the_crds() {
    let Some(schemas) = schemas() else { return };
    let manifests = shipped();
    let kinds: Vec<_> = manifests.iter().filter_map(|m| m.value["kind"].as_str()).collect();
    for kind in ["WasmPlugin", "TrafficExtension", "EnvoyFilter", "Gateway", "Telemetry"] {
        assert!(kinds.contains(&kind), "no {kind} among {kinds:?}");
    }
    for manifest in manifests {
        check(&schemas, &manifest.value).unwrap_or_else(|e| panic!("{manifest}: {e}"));
    }
}

/// The check above can fail: a wrong field, a wrong value, a wrong type, at any depth.
#[test]
fn wrong_manifests_are_refused() {
    let Some(schemas) = schemas() else { return };
    let find = |kind: &str| {
        let found = shipped().into_iter().find(|m| m.value["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {kind}")).value
    };
    for (kind, pointer, key, wrong, says) in [
        ("WasmPlugin", "/spec", "failStrategey", json!("FAIL_OPEN"), "failStrategey"),
        ("WasmPlugin", "/spec", "failStrategy", json!("FAIL_SOFT"), "FAIL_SOFT"),
        ("WasmPlugin", "/spec", "sha256", json!("sha256:00"), "sha256:00"),
        ("WasmPlugin", "/spec", "match", json!([{ "ports": [{ "number": 99999 }] }]), "99999"),
        ("WasmPlugin", "", "sepc", json!({}), "sepc"),
        ("TrafficExtension", "/spec", "type", json!("HTTP"), "type"),
        ("TrafficExtension", "/spec/wasm", "phase", json!("STATS"), "phase"),
        (
            "EnvoyFilter",
            "/spec/configPatches/0",
            "applyTo",
            json!("NETWORK_FILTERS"),
            "NETWORK_FILTERS",
        ),
        ("EnvoyFilter", "/spec/configPatches/0/match", "contexts", json!("GATEWAY"), "contexts"),
        ("Gateway", "/spec/servers/0/port", "number", json!("80"), "80"),
        (
            "DestinationRule",
            "/spec/trafficPolicy/outlierDetection",
            "ejection",
            json!(1),
            "ejection",
        ),
    ] {
        let mut manifest = find(kind);
        check(&schemas, &manifest).unwrap_or_else(|e| panic!("{kind}, still right: {e}"));
        manifest.pointer_mut(pointer).expect("it is there")[key] = wrong;
        let error = check(&schemas, &manifest).expect_err(&format!("{kind}{pointer}/{key}"));
        assert!(error.contains(says), "{kind}{pointer}/{key}: {error}");
    }
    let nameless = json!({ "apiVersion": "extensions.istio.io/v1", "kind": "WasmPlugin" });
    assert!(check(&schemas, &nameless).is_err());
}

/// The variants that wasm-plugin.yaml offers in comments are as right as the rest.
#[test]
fn commented_variants_fit_the_crds() {
    let Some(schemas) = schemas() else { return };
    let text = fs::read_to_string(fetch::root().join("wasm-plugin.yaml")).expect("it is there");
    let (plugin, _) = text.split_once("---").expect("two WasmPlugins");
    for key in ["selector", "targetRefs", "match"] {
        // From the key to the next line that is empty but for its #.
        let (_, variant) = plugin.split_once(&format!("  # {key}:\n")).expect(key);
        let (variant, _) = variant.split_once("  #\n").unwrap_or((variant, ""));
        let lines = variant.lines().map_while(|line| line.strip_prefix("  # "));
        let variant: String = lines.map(|line| format!("  {line}\n")).collect();
        let with = plugin.replace("\nspec:\n", &format!("\nspec:\n  {key}:\n{variant}"));
        let value: Value = testbed::manifests::parse(&with).remove(0);
        assert!(!value["spec"][key].is_null(), "{with}");
        check(&schemas, &value).unwrap_or_else(|e| panic!("{key}: {e}\n{with}"));
    }
}

/// Every configuration of the module in a manifest, with where it stands: a WasmPlugin's is an
/// object, an EnvoyFilter's is text.
fn plugin_configs(value: &Value, found: &mut Vec<(&'static str, String)>) {
    match value {
        Value::Object(map) => {
            let layer = match (&map.get("type"), &map.get("@type")) {
                (Some(Value::String(t)), _) if t == "NETWORK" => Some("network"),
                (Some(Value::String(t)), _) if t == "HTTP" => Some("http"),
                (_, Some(Value::String(t))) if t.ends_with("filters.network.wasm.v3.Wasm") => {
                    Some("network")
                }
                (_, Some(Value::String(t))) if t.ends_with("filters.http.wasm.v3.Wasm") => {
                    Some("http")
                }
                _ => None,
            };
            if let Some(layer) = layer {
                let text = map.get("config").map(|c| &c["configuration"]["value"]);
                let config = map.get("pluginConfig").map(Value::to_string);
                found.extend(
                    config
                        .or(text.and_then(|t| t.as_str().map(str::to_owned)))
                        .map(|config| (layer, config)),
                );
            }
            map.values().for_each(|inner| plugin_configs(inner, found));
        }
        Value::Array(values) => values.iter().for_each(|inner| plugin_configs(inner, found)),
        _ => {}
    }
}

/// What the module would say to each configuration, and that each stands in its place.
#[test]
fn plugin_configs_are_accepted() {
    let envoy = documents(Path::new(&fetch::root().join("examples/envoy.yaml")));
    let mut count = 0;
    for manifest in shipped().into_iter().chain(envoy) {
        let mut configs = Vec::new();
        plugin_configs(&manifest.value, &mut configs);
        for (layer, text) in configs {
            let config = Config::parse(text.as_bytes())
                .unwrap_or_else(|e| panic!("{manifest}: {text}: {e}"));
            let attach = if config == Config::Network { "network" } else { "http" };
            assert_eq!(attach, layer, "{manifest}: {text}");
            count += 1;
        }
    }
    // Two each: WasmPlugins, TrafficExtensions, local files, waypoints, Envoy's own; one each: per chain, low cost.
    assert_eq!(count, 12);
}

/// One image everywhere, and the version is the crate's.
#[test]
fn one_image() {
    let mut urls = Vec::new();
    for manifest in shipped() {
        let text = manifest.value.to_string();
        urls.extend(text.split('"').filter(|t| t.starts_with("oci://")).map(str::to_owned));
    }
    let expected =
        format!("oci://registry.example.com/ws-clean-close:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(urls.len(), 8, "{urls:?}");
    assert!(urls.iter().all(|url| *url == expected), "{urls:?}");
}
