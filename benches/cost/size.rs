//! The module's size, and what each crate adds to it, std's modules apart.

use std::collections::BTreeMap;
use std::process::Command;

use serde::{Deserialize, Serialize};
use testbed::fetch;
use wasmparser::{KnownCustom, Name, Parser, Payload};

use crate::limits;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Size {
    /// Of the module as it is shipped, in bytes.
    pub module: usize,
    /// Bytes of code by who wrote it, of the functions that are left after inlining: by crate, and
    /// for std by module. A generic function counts for its own crate, whoever uses it.
    pub code: BTreeMap<String, usize>,
    /// Strings and tables, which cannot be told apart.
    pub data: usize,
    /// Everything else: types, exports, indices.
    pub rest: usize,
    /// The largest functions.
    pub largest: Vec<(String, usize)>,
}

/// Whose a function is: `<serde_json::Value as core::ops::Drop>::drop` is serde_json's, and
/// `<str as core::fmt::Debug>::fmt` of std's `core::fmt`, which wrote it.
fn owner(function: &str) -> String {
    // The first name with a path behind it: a type of the language itself has none.
    let words = function.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
    let mut paths = words.filter_map(|word| word.split_once("::"));
    match paths.find(|(first, _)| !first.is_empty()) {
        None => "C library and allocator".to_owned(),
        Some((first @ ("core" | "alloc" | "std"), rest)) => {
            format!("{first}::{}", rest.split("::").next().unwrap_or_default())
        }
        Some(("compiler_builtins" | "__rustc" | "dlmalloc", _)) => {
            "C library and allocator".to_owned()
        }
        Some(("foldhash", _)) => "hashbrown".to_owned(),
        // It writes serde_json's numbers.
        Some(("zmij" | "itoa" | "memchr", _)) => "serde_json".to_owned(),
        Some(("serde_core", _)) => "serde".to_owned(),
        Some((first, _)) => first.to_owned(),
    }
}

pub fn run() -> Size {
    // The same module with the names of its functions.
    let target = fetch::root().join("target/named");
    fetch::run(
        Command::new("cargo")
            .current_dir(fetch::root())
            .args(["build", "--quiet", "--release", "--target", "wasm32-wasip1", "--target-dir"])
            .arg(&target)
            .env("CARGO_PROFILE_RELEASE_STRIP", "none"),
    );
    let file = target.join("wasm32-wasip1/release/ws_clean_close.wasm");
    let named = std::fs::read(file).expect("cargo has built it");
    let module = std::fs::metadata(fetch::module()).expect("the module is built").len() as usize;
    let mut size = Size { module, code: BTreeMap::new(), data: 0, rest: 0, largest: Vec::new() };
    let (mut imported, mut bodies, mut names) = (0, Vec::new(), BTreeMap::new());
    for payload in Parser::new(0).parse_all(&named) {
        match payload.expect("a module") {
            Payload::ImportSection(imports) => imported = imports.count() as usize,
            Payload::CodeSectionEntry(body) => bodies.push(body.range().len()),
            Payload::DataSection(data) => size.data = data.range().len(),
            Payload::CustomSection(section) => {
                let KnownCustom::Name(sections) = section.as_known() else { continue };
                for section in sections.into_iter().flatten() {
                    let Name::Function(functions) = section else { continue };
                    for naming in functions.into_iter().flatten() {
                        names.insert(naming.index as usize, naming.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    let nameless = String::from("?");
    for (i, len) in bodies.iter().enumerate() {
        let symbol = names.get(&(imported + i)).unwrap_or(&nameless);
        let function = format!("{:#}", rustc_demangle::demangle(symbol));
        *size.code.entry(owner(&function)).or_default() += len;
        size.largest.push((function, *len));
    }
    size.largest.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
    size.largest.truncate(12);
    size.rest = module.saturating_sub(size.data + bodies.iter().sum::<usize>());
    println!("  {module} bytes{}", limits::verdict(module as f64, Some(limits::MODULE), None));
    for (name, bytes) in &size.code {
        println!("  {bytes:8} {name}");
    }
    println!("  {:8} data\n  {:8} the rest", size.data, size.rest);
    size
}
