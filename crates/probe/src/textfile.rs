//! Metrics for the textfile collector of Prometheus' node exporter.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// A verdict for what could not be judged.
const ERROR: &str = "error";

pub struct Textfile {
    path: PathBuf,
    labels: String,
    results: BTreeMap<&'static str, u64>,
}

impl Textfile {
    /// `url`: without its query, which may hold a token.
    pub fn new(path: PathBuf, url: &str, closed_by: &str) -> Self {
        let labels = format!("url=\"{}\",closed_by=\"{closed_by}\"", escaped(url));
        let results = Verdict::NAMES.into_iter().chain([ERROR]).map(|name| (name, 0)).collect();
        Self { path, labels, results }
    }

    /// Counts an outcome and writes the file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn add(&mut self, outcome: &Outcome, now: SystemTime) -> io::Result<()> {
        let name = outcome.report().map_or(ERROR, |report| report.verdict().name());
        *self.results.entry(name).or_default() += 1;
        write_whole(&self.path, &self.text(outcome, now))
    }

    fn text(&self, outcome: &Outcome, now: SystemTime) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
            let _ = writeln!(text, "# HELP ws_close_probe_{name} {help}");
            let _ = writeln!(text, "# TYPE ws_close_probe_{name} {kind}");
            for (more, value) in samples {
                let _ = writeln!(text, "ws_close_probe_{name}{{{}{more}}} {value}", self.labels);
            }
        };
        let one = |value| vec![(String::new(), value)];
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        metric(
            "success",
            "gauge",
            "1 if the last close was clean and had the expected code, else 0.",
            &one(f64::from(u8::from(outcome.is_success()))),
        );
        metric(
            "last_timestamp_seconds",
            "gauge",
            "When that was, in Unix time.",
            &one(since.as_secs_f64()),
        );
        if let Some(report) = outcome.report() {
            metric(
                "code",
                "gauge",
                "Its code: 1005 if the Close frame had none, 1006 if there was no Close frame.",
                &one(f64::from(report.code())),
            );
            if let Some(after) = report.tcp_end() {
                metric(
                    "tcp_end_seconds",
                    "gauge",
                    "From its Close exchange to the end of TCP.",
                    &one(after.as_secs_f64()),
                );
            }
        }
        let results = self.results.iter();
        let results = results.map(|(name, &n)| (format!(",verdict=\"{name}\""), n as f64));
        metric(
            "results_total",
            "counter",
            "Closes since this probe started, by verdict.",
            &results.collect::<Vec<_>>(),
        );
        text
    }
}

/// The exporter must never see half a file.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    fs::write(&beside, text)?;
    fs::rename(&beside, path).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// As the exposition format has labels.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
    }
}
