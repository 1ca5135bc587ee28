//! The table at the top of docs/performance.md: what most readers come for.

use testbed::Mode;

use crate::burst::Burst;
use crate::closes::{self, Closes, HOPS};
use crate::limits::{self, Verdict};
use crate::measure::{load, Row};
use crate::memory::{self, Use};
use crate::pingpong::Latency;
use crate::size::Size;

struct Line {
    what: String,
    cost: f64,
    floor: Option<f64>,
    limit: Option<f64>,
    /// Of all three, where they are no ratios.
    unit: &'static str,
}

impl Line {
    fn ratio(what: String, cost: f64, floor: Option<f64>, limit: Option<f64>) -> Self {
        Self { what, cost, floor, limit, unit: "" }
    }

    fn kib(what: &str, cost: f64, floor: Option<f64>, limit: f64) -> Self {
        let kib = |bytes: f64| bytes / 1024.0;
        let (floor, limit) = (floor.map(kib), Some(kib(limit)));
        Self { what: what.to_owned(), cost: kib(cost), floor, limit, unit: " KiB" }
    }

    fn text(&self) -> String {
        let Self { what, cost, floor, limit, unit } = self;
        let decimals = if unit.is_empty() { 2 } else { 1 };
        let value = |value: f64| format!("{value:.decimals$}{unit}");
        let kept = limit.map_or("", |limit| match limits::judge(*cost, limit, *floor) {
            Verdict::Kept => "yes",
            Verdict::AboveAsTheFloor => "no, nor does the floor",
            Verdict::NotKept => "no",
        });
        let [floor, limit] = [floor, limit].map(|given| given.map_or_else(String::new, value));
        format!("| {what} | {} | {floor} | {limit} | {kept} |\n", value(*cost))
    }
}

/// Nothing, until each of the items has been measured.
pub fn table() -> Option<String> {
    let floods: Vec<Row> = load("floods")?.found;
    let requests: Vec<Row> = load("requests")?.found;
    let latencies: Vec<Latency> = load("pingpong")?.found;
    let closes: Vec<Closes> = load("closes")?.found;
    let bursts: Vec<Burst> = load("burst")?.found;
    let uses: Vec<Use> = load("memory")?.found;
    let size: Size = load("size")?.found;

    let mut lines = Vec::new();
    let row = |row: &Row, what: String| {
        let floor = row.floor.map(|(floor, _)| floor);
        Line::ratio(what, row.ratio.median, floor, limits::of(row))
    };
    let attached = |to: &str| requests.iter().find(|row| row.setup == to);
    lines.push(row(attached("both filters")?, "CPU time, a plain request".into()));
    lines.push(row(attached("composite")?, "… with the filter for upgrades only".into()));
    let limited = |row: &&Row| row.setup == "filter" && limits::of(row).is_some();
    for flood in floods.iter().filter(limited) {
        lines.push(row(flood, format!("CPU time, a flood, {}", flood.what)));
    }
    let [_, filter, floor, ..] = &latencies[..] else { return None };
    lines.push(Line::ratio(
        format!("Median round trip of a message, {}", filter.what),
        filter.ratio50.median,
        Some(floor.ratio50.median),
        Some(limits::ROUND_TRIP),
    ));
    for (i, what) in closes::MEASURES.iter().enumerate() {
        let worst = |proxy: &str| {
            let over_hops = (1..=HOPS).filter_map(|n| closes::ratios(&closes, proxy, n));
            over_hops.map(|ratios| ratios[i]).reduce(f64::max)
        };
        lines.push(Line::ratio(
            format!("A server's close, {what}, the worst of 1 to {HOPS} hops, to the baseline"),
            worst(Mode::Filter.name())?,
            worst(closes::FLOOR),
            Some(limits::CLOSE),
        ));
    }
    let count = bursts.first()?.count;
    for (i, what) in ["the last FIN", "CPU time"].into_iter().enumerate() {
        let worst = |setup: &str| {
            let of = bursts.iter().filter(|burst| burst.setup == setup);
            of.map(|burst| [burst.ratio_seconds, burst.ratio_cpu][i].median).reduce(f64::max)
        };
        lines.push(Line::ratio(
            format!("{count} closes at once, {what}, to the baseline"),
            worst("filter")?,
            worst("floor"),
            Some(limits::BURST),
        ));
    }
    let [with, floor] = memory::added(&uses)?;
    lines.push(Line::kib("Memory, an open WebSocket", with, Some(floor), limits::WEBSOCKET));
    lines.push(Line::kib("The module", size.module as f64, None, limits::MODULE));

    let mut table = String::from(
        "| what | with the filter | the floor | at most | kept |\n| --- | --- | --- | --- | --- |\n",
    );
    lines.iter().for_each(|line| table += &line.text());
    Some(table)
}
