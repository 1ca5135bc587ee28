//! Every manifest in the project, against the schemas of Istio's CRDs and the crate's own parser.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{json, Value};
use testbed::crds::{self, Schemas};
use testbed::fetch;
use testbed::manifests::{documents, shipped};
use ws_clean_close_core::config::Config;

#[test]
fn fit_the_crds() {
    let schemas = Schemas::kept();
    let manifests = shipped();
    let kinds: Vec<_> = manifests.iter().filter_map(|m| m.value["kind"].as_str()).collect();
    for kind in ["WasmPlugin", "TrafficExtension", "EnvoyFilter", "Gateway", "Telemetry"] {
        assert!(kinds.contains(&kind), "no {kind} among {kinds:?}");
    }
    for manifest in manifests {
        schemas.check(&manifest.value).unwrap_or_else(|e| panic!("{manifest}: {e}"));
    }
}

/// The same against every release of Istio that is supported, with what each knows: TrafficExtensions came
/// with 1.30.
#[test]
fn fit_the_crds_of_every_istio() {
    for release in crds::RELEASES {
        let Some(schemas) = Schemas::of(release) else { return };
        for manifest in shipped() {
            let new = manifest.value["kind"] == "TrafficExtension" && release < "1.30";
            assert!(!(new && schemas.knows(&manifest.value)), "{release}: {manifest}");
            if !new {
                schemas
                    .check(&manifest.value)
                    .unwrap_or_else(|e| panic!("{release}: {manifest}: {e}"));
            }
        }
    }
}

/// The schemas in the project are Istio's, of the kinds that are used. `make crds` writes them anew.
#[test]
fn kept_crds_are_istios() {
    let Some(text) = crds::text() else { return };
    if std::env::var_os("UPDATE_CRDS").is_some() {
        fs::write(crds::file(), &text).expect("writable");
    }
    let kept = fs::read_to_string(crds::file()).unwrap_or_default();
    assert!(kept == text, "{} is not what Istio has: make crds", crds::file().display());
}

/// The check above can fail: a wrong field, a wrong value, a wrong type, at any depth.
#[test]
fn wrong_manifests_are_refused() {
    let schemas = Schemas::kept();
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
        schemas.check(&manifest).unwrap_or_else(|e| panic!("{kind}, still right: {e}"));
        manifest.pointer_mut(pointer).expect("it is there")[key] = wrong;
        let error = schemas.check(&manifest).expect_err(&format!("{kind}{pointer}/{key}"));
        assert!(error.contains(says), "{kind}{pointer}/{key}: {error}");
    }
    let nameless = json!({ "apiVersion": "extensions.istio.io/v1", "kind": "WasmPlugin" });
    assert!(schemas.check(&nameless).is_err());
}

/// Jobs, Deployments and Services against Kubernetes' own schema, as far as that goes: fields and their types.
#[test]
fn built_in_kinds_fit_kubernetes() {
    let Some(schemas) = Schemas::built_in() else { return };
    let known = shipped().into_iter().filter(|manifest| schemas.knows(&manifest.value));
    let manifests: Vec<_> = known.collect();
    let kinds: BTreeSet<_> = manifests.iter().filter_map(|m| m.value["kind"].as_str()).collect();
    assert_eq!(kinds, ["CronJob", "Deployment", "Job", "Service"].into());
    for manifest in &manifests {
        schemas.check(&manifest.value).unwrap_or_else(|e| panic!("{manifest}: {e}"));
    }
    // The check can fail.
    let job = manifests.iter().find(|m| m.value["kind"] == "Job").expect("a Job");
    for (pointer, key, wrong) in [
        ("/spec", "backofLimit", json!(0)),
        ("/spec", "backoffLimit", json!("0")),
        ("/spec/template/spec", "restartpolicy", json!("Never")),
        ("/spec/template/spec/containers/0", "args", json!("--count=10")),
        ("/spec/template/spec/containers/0/securityContext", "runAsNonRoot", json!("true")),
    ] {
        let mut manifest = job.value.clone();
        manifest.pointer_mut(pointer).expect("it is there")[key] = wrong;
        assert!(schemas.check(&manifest).expect_err(key).contains(pointer), "{key}");
    }
}

/// The probe's image, and arguments that the probe takes.
#[test]
fn probes_run() {
    let probe = fetch::program("ws-close-probe");
    let mut count = 0;
    for manifest in shipped() {
        let spec = &manifest.value["spec"];
        let pod = match manifest.value["kind"].as_str() {
            Some("Job") => &spec["template"]["spec"],
            Some("CronJob") => &spec["jobTemplate"]["spec"]["template"]["spec"],
            _ => continue,
        };
        let container = &pod["containers"][0];
        let image = format!("registry.example.com/ws-close-probe:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(container["image"], image, "{manifest}");
        let arguments = container["args"].as_array().expect("arguments");
        let arguments = arguments.iter().map(|argument| argument.as_str().expect("text"));
        let output = Command::new(&probe).args(arguments).output().expect("the probe runs");
        let error = String::from_utf8_lossy(&output.stderr);
        // Nobody resolves the name here: that it comes so far shows that it takes the arguments.
        assert!(error.contains("cannot resolve wssample.default.svc"), "{manifest}: {error}");
        count += 1;
    }
    assert_eq!(count, 2);
}

/// The variants that wasm-plugin.yaml offers in comments are as right as the rest.
#[test]
fn commented_variants_fit_the_crds() {
    let schemas = Schemas::kept();
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
        schemas.check(&value).unwrap_or_else(|e| panic!("{key}: {e}\n{with}"));
    }
}

/// With the patch of examples/age-by-token the plugin is as right as without.
#[test]
fn patches_fit_the_crds() {
    let patch = fetch::root().join("examples/age-by-token/plugin-patch.yaml");
    let patch = documents(&patch).remove(0).value;
    let mut plugin = documents(&fetch::root().join("wasm-plugin.yaml")).remove(0).value;
    json_patch::merge(&mut plugin, &patch);
    Schemas::kept().check(&plugin).unwrap_or_else(|e| panic!("{e}\n{plugin:#}"));
    let config = Config::parse(plugin["spec"]["pluginConfig"].to_string().as_bytes());
    let Ok(Config::Http(config)) = config else { panic!("{config:?}") };
    assert!(config.max_age.is_some_and(|age| age.claim), "{plugin:#}");
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

/// One VM for all: Envoy makes another for another `vm_id` or environment, and Istio gives WasmPlugins no `vm_id`.
#[test]
fn one_vm() {
    for manifest in shipped() {
        let text = manifest.value.to_string();
        assert!(!text.contains("\"vm_id\"") && !text.contains("\"vmConfig\""), "{manifest}");
    }
}
