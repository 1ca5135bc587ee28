//! YAML manifests as values.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fetch;

/// One document of a file.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub file: PathBuf,
    pub value: Value,
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} {}",
            self.file.display(),
            self.value["kind"],
            self.value["metadata"]["name"]
        )
    }
}

/// The documents of a text.
///
/// # Panics
/// Where it is not YAML.
pub fn parse(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|e| panic!("{e}:\n{text}"))
}

/// The documents of a file.
///
/// # Panics
/// Where it cannot be read as YAML.
pub fn documents(file: &Path) -> Vec<Manifest> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    parse(&text).into_iter().map(|value| Manifest { file: file.to_owned(), value }).collect()
}

/// Every Kubernetes resource that is applied as it stands: those of `kustomize/` are built first.
pub fn shipped() -> Vec<Manifest> {
    let mut files = Vec::new();
    for folder in [
        "",
        "envoyfilter",
        "examples",
        "examples/age-by-token",
        "examples/probe",
        "examples/sample-app",
        "examples/waypoint",
    ] {
        let folder = fetch::root().join(folder);
        let entries = fs::read_dir(&folder).expect("the folder is there").flatten();
        let yaml = |path: &PathBuf| path.extension().is_some_and(|e| e == "yaml");
        files.extend(entries.map(|entry| entry.path()).filter(yaml));
    }
    files.sort();
    files.retain(|file| !file.ends_with("kustomization.yaml"));
    let all = files.iter().flat_map(|file| documents(file));
    all.filter(|manifest| manifest.value["kind"].is_string()).collect()
}
