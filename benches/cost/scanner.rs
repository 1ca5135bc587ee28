//! The table of `benches/scanner.rs`, from what criterion has kept.

use std::path::Path;

use serde_json::Value;
use testbed::fetch;

/// Bytes per second of one measurement.
struct Speed {
    group: String,
    /// Chunk size; `None` for the scan of all bytes.
    chunk: Option<String>,
    rate: f64,
}

fn read(folder: &Path) -> Option<Speed> {
    let json = |name: &str| -> Option<Value> {
        serde_json::from_str(&std::fs::read_to_string(folder.join("new").join(name)).ok()?).ok()
    };
    let (benchmark, estimates) = (json("benchmark.json")?, json("estimates.json")?);
    let bytes = benchmark["throughput"]["Bytes"].as_f64()?;
    Some(Speed {
        group: benchmark["group_id"].as_str()?.to_owned(),
        chunk: benchmark["value_str"].as_str().map(str::to_owned),
        rate: bytes * 1e9 / estimates["median"]["point_estimate"].as_f64()?,
    })
}

/// Every measurement below `folder`.
fn collect(folder: &Path, found: &mut Vec<Speed>) {
    found.extend(read(folder));
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        collect(&entry.path(), found);
    }
}

fn rate(bytes: f64) -> String {
    match bytes / 1e9 {
        slow if slow < 1.0 => format!("{:.0} MB/s", slow * 1e3),
        fast if fast < 100.0 => format!("{fast:.1} GB/s"),
        faster => format!("{faster:.0} GB/s"),
    }
}

/// `None` where it has not been measured.
pub fn table() -> Option<String> {
    const CHUNKS: [&str; 5] = ["1 B", "1 KiB", "16 KiB", "64 KiB", "1 MiB"];
    let mut found = Vec::new();
    collect(&fetch::root().join("target/criterion"), &mut found);
    let mut table = format!(
        "| chunks of | {} | all bytes added up |\n| --- |{}\n",
        CHUNKS.join(" | "),
        " --- |".repeat(CHUNKS.len() + 1)
    );
    let mut groups = 0;
    for kind in ["plain", "masked"] {
        for size in crate::floods::SIZES {
            let group = format!("{kind}, frames of {}", crate::floods::size_name(size));
            let cell = |chunk: Option<&str>| {
                let is = |s: &&Speed| s.group == group && s.chunk.as_deref() == chunk;
                found.iter().find(is).map(|speed| rate(speed.rate))
            };
            let Some(sum) = cell(None) else { continue };
            let cells = CHUNKS.map(|chunk| cell(Some(chunk)).unwrap_or_default());
            table += &format!("| {group} | {} | {sum} |\n", cells.join(" | "));
            groups += 1;
        }
    }
    (groups > 0).then_some(table)
}
