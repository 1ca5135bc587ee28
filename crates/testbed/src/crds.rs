//! The schemas of Istio's CRDs, and manifests held against them as `kubectl apply` would.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::{json, Value};

use crate::fetch;
use crate::manifests::{documents, parse, shipped};

/// The release whose schemas the project keeps, so that every clone can check.
pub const KEPT: &str = "1.32.0";

/// One release of each minor version that the project supports, as the Go module `istio.io/api` has it.
pub const RELEASES: [&str; 5] = ["1.28.2", "1.29.6", "1.30.3", "1.31.4", KEPT];

/// Kubernetes' own kinds, which have no CRD, with their names in its schema.
const BUILT_IN: [(&str, &str); 4] = [
    ("v1/Service", "io.k8s.api.core.v1.Service"),
    ("apps/v1/Deployment", "io.k8s.api.apps.v1.Deployment"),
    ("batch/v1/Job", "io.k8s.api.batch.v1.Job"),
    ("batch/v1/CronJob", "io.k8s.api.batch.v1.CronJob"),
];

/// The Go module that has them: Kubernetes 1.34.
const CLIENT_GO: &str = "k8s.io/client-go@v0.34.1";

/// Schemas by `apiVersion/kind`.
#[derive(Clone, Debug)]
pub struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    /// Those of [`KEPT`], from the file in the project.
    pub fn kept() -> Self {
        let text = fs::read_to_string(file()).expect("it is in the project");
        Self::closed(serde_json::from_value(parse(&text).remove(0)).expect("schemas by name"))
    }

    /// All of a release, from its Go module; `None`, with a notice, if Go is missing.
    pub fn of(release: &str) -> Option<Self> {
        Some(Self::closed(read(release)?))
    }

    /// Those of Kubernetes' own kinds that the project uses; `None`, with a notice, if Go is missing. They have
    /// the fields and their types, but not which fields must be there.
    pub fn built_in() -> Option<Self> {
        let file = fetch::go_module(CLIENT_GO)?.join("applyconfigurations/internal/internal.go");
        let source = fs::read_to_string(&file).expect("it is in the module");
        let (_, yaml) = source.split_once("typed.YAMLObject(`").expect("a schema in YAML");
        let yaml = parse(yaml.split('`').next().expect("its end")).remove(0);
        let mut definitions = serde_json::Map::new();
        for named in yaml["types"].as_array().expect("types") {
            definitions.insert(named["name"].as_str().expect("a name").into(), json_schema(named));
        }
        let schema = |(name, kind): (&str, &str)| {
            let reference = format!("#/definitions/{kind}");
            (name.to_owned(), json!({ "$ref": reference, "definitions": definitions }))
        };
        Some(Self(BUILT_IN.into_iter().map(schema).collect()))
    }

    fn closed(mut schemas: BTreeMap<String, Value>) -> Self {
        for schema in schemas.values_mut() {
            // Every resource has these, and no CRD names them.
            for key in ["apiVersion", "kind", "metadata"] {
                schema["properties"][key] = json!({ "x-kubernetes-preserve-unknown-fields": true });
            }
            close(schema);
        }
        Self(schemas)
    }

    /// Whether there is a schema for a manifest's kind.
    pub fn knows(&self, manifest: &Value) -> bool {
        self.0.contains_key(&name(manifest))
    }

    /// Kubernetes' own kinds fit unless the schemas are [`built_in`](Self::built_in).
    ///
    /// # Errors
    /// What does not fit, a line each, with where it stands.
    pub fn check(&self, manifest: &Value) -> Result<(), String> {
        let name = name(manifest);
        let Some(schema) = self.0.get(&name) else {
            let built_in = BUILT_IN.iter().any(|(known, _)| *known == name);
            return built_in.then_some(()).ok_or(format!("no CRD for {name}"));
        };
        let validator = jsonschema::validator_for(schema).map_err(|e| e.to_string())?;
        let errors = validator.iter_errors(manifest);
        let errors: Vec<_> = errors.map(|e| format!("{}: {e}", e.instance_path())).collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors.join("\n"))
        }
    }
}

/// Where the schemas are kept.
pub fn file() -> PathBuf {
    fetch::root().join("tests/istio/crds.yaml")
}

/// What [`file`] should hold: of [`KEPT`], those of the kinds that the project uses; `None`, with a
/// notice, if Go is missing.
pub fn text() -> Option<String> {
    let used: BTreeSet<_> = shipped().iter().map(|manifest| name(&manifest.value)).collect();
    let mut text = format!(
        "# Schemas of those of Istio's CRDs that this project uses, without their descriptions, one a line.
# From the Go module istio.io/api v{KEPT}, kubernetes/customresourcedefinitions.gen.yaml.
# Copyright Istio Authors, Apache License 2.0. Written by `make crds`; a test compares it with the module.
"
    );
    for (name, schema) in read(KEPT)?.iter_mut().filter(|(name, _)| used.contains(*name)) {
        strip(schema);
        text += &format!("{name}: {schema}\n");
    }
    Some(text)
}

fn name(manifest: &Value) -> String {
    let text = |key: &str| manifest[key].as_str().unwrap_or_default();
    format!("{}/{}", text("apiVersion"), text("kind"))
}

/// The schemas as they stand in the Go module.
fn read(release: &str) -> Option<BTreeMap<String, Value>> {
    let module = format!("istio.io/api@v{release}");
    let folder = fetch::go_module(&module)?;
    let mut schemas = BTreeMap::new();
    for crd in documents(&folder.join("kubernetes/customresourcedefinitions.gen.yaml")) {
        let spec = &crd.value["spec"];
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        for version in spec["versions"].as_array().expect("versions") {
            let kind = text(&spec["names"]["kind"]);
            let name = format!("{}/{}/{kind}", text(&spec["group"]), text(&version["name"]));
            schemas.insert(name, version["schema"]["openAPIV3Schema"].clone());
        }
    }
    Some(schemas)
}

/// A type of structured-merge-diff, as client-go has it, in JSON Schema.
fn json_schema(typed: &Value) -> Value {
    if let Some(name) = typed["namedType"].as_str() {
        return json!({ "$ref": format!("#/definitions/{name}") });
    }
    match typed["scalar"].as_str() {
        Some("string") => return json!({ "type": "string" }),
        Some("numeric") => return json!({ "type": "number" }),
        Some("boolean") => return json!({ "type": "boolean" }),
        Some(_) => return json!(true),
        None => {}
    }
    let (map, list) = (&typed["map"], &typed["list"]);
    if list.is_object() {
        return json!({ "type": "array", "items": json_schema(&list["elementType"]) });
    }
    if let Some(fields) = map["fields"].as_array() {
        let property = |field: &Value| {
            (field["name"].as_str().unwrap_or_default().to_owned(), json_schema(&field["type"]))
        };
        let properties: serde_json::Map<_, _> = fields.iter().map(property).collect();
        return json!({
            "type": "object", "properties": properties, "additionalProperties": false,
        });
    }
    json!({ "type": "object", "additionalProperties": json_schema(&map["elementType"]) })
}

/// Takes out what no check reads: descriptions, and rules in CEL, which only Kubernetes can evaluate.
fn strip(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // A property may be called `description`, too; its schema is no string.
            map.retain(|key, value| {
                !(key == "description" && value.is_string() || key == "x-kubernetes-validations")
            });
            map.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
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
