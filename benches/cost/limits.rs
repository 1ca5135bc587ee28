//! What each row may cost at most, as a ratio if nothing else is said. docs/performance.md has them
//! beside what was measured.

use crate::measure::Row;

/// Median round trip of a small message, at 2,000 of them a second.
pub const ROUND_TRIP: f64 = 1.12;
/// Median and 99th percentile of a server's close, of the baseline's, over any number of hops.
pub const CLOSE: f64 = 1.5;
/// Last FIN and CPU time of many closes in one moment, of the baseline's.
pub const BURST: f64 = 1.1;
/// Bytes that an open WebSocket adds to what Envoy has allocated.
pub const WEBSOCKET: f64 = 2048.0;
/// Bytes of the module.
pub const MODULE: f64 = 200.0 * 1024.0;

/// Of a paired measurement, to the listener without the filter.
pub fn of(row: &Row) -> Option<f64> {
    match (&row.what[..], &row.setup[..]) {
        ("plain requests", "both filters") => Some(1.20),
        ("plain requests", "composite") => Some(1.05),
        (what, "network") if what.ends_with("a connection for each request") => None,
        (_, "network") => Some(1.00),
        (what, "filter") if what.contains("singly") => None,
        (what, "filter") if what.ends_with("125 B") => Some(1.18),
        (what, "filter") if what.ends_with("16 KiB") || what.ends_with("1 MiB") => Some(1.05),
        _ => None,
    }
}

/// Whether a limit is kept.
pub enum Verdict {
    Kept,
    /// No module could keep it.
    AboveAsTheFloor,
    NotKept,
}

/// `floor`: what the floor costs.
pub fn judge(value: f64, limit: f64, floor: Option<f64>) -> Verdict {
    match floor {
        _ if value <= limit => Verdict::Kept,
        Some(floor) if floor > limit => Verdict::AboveAsTheFloor,
        _ => Verdict::NotKept,
    }
}

/// The same in words, for the end of a line.
pub fn verdict(value: f64, limit: Option<f64>, floor: Option<f64>) -> String {
    let Some(limit) = limit else { return String::new() };
    match judge(value, limit, floor) {
        Verdict::Kept => format!("  kept: at most {limit}"),
        Verdict::AboveAsTheFloor => format!("  above {limit}, as the floor is"),
        Verdict::NotKept => format!("  NOT KEPT: at most {limit}"),
    }
}
