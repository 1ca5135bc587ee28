//! Writes the tables of docs/performance.md, and its plots, from what the benchmark has kept.

use testbed::fetch;

use crate::burst::Burst;
use crate::closes::{Closes, HOPS};
use crate::limits;
use crate::measure::{load, Kept, Machine, Row, Spread};
use crate::memory::{Memory, Use};
use crate::pingpong::Latency;
use crate::plots;
use crate::scanner;
use crate::short;
use crate::size::Size;

pub fn write() {
    let file = fetch::root().join("docs/performance.md");
    let mut page = std::fs::read_to_string(&file).expect("docs/performance.md is there");
    let mut missing = Vec::new();
    let mut fill = |item: &str, table: Option<String>| match table {
        Some(table) => page = replace(&page, item, &table),
        None => missing.push(item.to_owned()),
    };
    fill(
        "floods",
        load("floods").map(|kept| with_plot(&kept, floods, |r| plots::floods(r, limits::of))),
    );
    fill("pingpong", load("pingpong").map(|kept| plain(&kept, latencies)));
    fill("requests", load("requests").map(|kept| with_plot(&kept, paired, plots::requests)));
    fill("network", load("network").map(|kept| plain(&kept, paired)));
    fill("closes", load("closes").map(|kept| with_plot(&kept, closes, plots::closes)));
    fill("memory", load("memory").map(|kept| with_plot(&kept, memory, plots::memory)));
    fill("burst", load("burst").map(|kept| plain(&kept, bursts)));
    fill("size", load("size").map(|kept: Kept<Size>| size(&kept.found)));
    fill("scanner", scanner::table());
    fill("short", short::table());
    std::fs::write(&file, page).expect("docs is writable");
    println!("docs/performance.md");
    if !missing.is_empty() {
        println!("left as they were, not measured yet: {}", missing.join(", "));
    }
}

/// Puts `table` between the item's markers.
fn replace(page: &str, item: &str, table: &str) -> String {
    let (start, stop) = (format!("<!-- {item} -->\n"), format!("<!-- /{item} -->"));
    let (before, rest) =
        page.split_once(&start).unwrap_or_else(|| panic!("no {start} in the page"));
    let (_, after) = rest.split_once(&stop).unwrap_or_else(|| panic!("no {stop} in the page"));
    format!("{before}{start}{table}{stop}{after}")
}

fn plain<T>(kept: &Kept<Vec<T>>, table: impl Fn(&[T]) -> String) -> String {
    format!("{}\n{}", table(&kept.found), place(&kept.machine))
}

fn with_plot<T>(
    kept: &Kept<Vec<T>>,
    table: impl Fn(&[T]) -> String,
    plot: impl Fn(&[T]),
) -> String {
    plot(&kept.found);
    plain(kept, table)
}

/// Where it was measured.
fn place(machine: &Machine) -> String {
    let Machine { processor, cores, envoy, commit, load, quick } = machine;
    let quick = if *quick { "**A smoke run: the figures mean nothing.** " } else { "" };
    format!("{quick}{cores} cores of {processor}, Envoy {envoy}, commit {commit}, load {load}.\n")
}

fn spread(of: &Spread, decimals: usize) -> String {
    let Spread { median, low, high } = of;
    format!("{median:.decimals$} ({low:.decimals$} to {high:.decimals$})")
}

/// A ratio to the floor, if there is one.
fn over(floor: Option<Spread>) -> String {
    floor.map_or_else(String::new, |over| spread(&over, 2))
}

fn paired(rows: &[Row]) -> String {
    let unit = rows.first().map_or("", |row| &row.unit[..]);
    let mixed = rows.iter().any(|row| row.unit != unit);
    let head = if mixed { String::new() } else { format!(", {unit}") };
    let floors = rows.iter().any(|row| row.floor.is_some());
    let (column, line) = if floors { (" to the floor |", " --- |") } else { ("", "") };
    let mut table = format!(
        "| what | attached | without{head} | with | ratio |{column} at most |\n\
         | --- | --- | --- | --- | --- |{line} --- |\n"
    );
    let mut base = None;
    for row in rows {
        if row.setup == "none" {
            base = Some(row);
            continue;
        }
        let without = base.map_or(f64::NAN, |base| base.cost.median);
        let unit = if mixed { format!(" {}", row.unit) } else { String::new() };
        table += &format!(
            "| {} | {} | {without:.2}{unit} | {:.2} | {} |{} {} |\n",
            row.what,
            row.setup,
            row.cost.median,
            spread(&row.ratio, 2),
            if floors {
                format!(" {} |", over(row.floor.map(|(_, over)| over)))
            } else {
                String::new()
            },
            limits::of(row).map_or_else(String::new, |limit| format!("{limit:.2}"))
        );
    }
    table
}

/// As [`paired`], the floor beside what stands on it.
fn floods(rows: &[Row]) -> String {
    let mut table = String::from(
        "| what | without, ns per byte | with | ratio | the floor's | to the floor | at most |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for lanes in rows.chunk_by(|a, b| a.what == b.what) {
        let [without, with, floor] = lanes else { continue };
        table += &format!(
            "| {} | {:.2} | {:.2} | {} | {} | {} | {} |\n",
            with.what,
            without.cost.median,
            with.cost.median,
            spread(&with.ratio, 2),
            spread(&floor.ratio, 2),
            over(with.floor.map(|(_, over)| over)),
            limits::of(with).map_or_else(String::new, |limit| format!("{limit:.2}"))
        );
    }
    table
}

fn latencies(found: &[Latency]) -> String {
    let mut table = String::from(
        "| load | | without | with | ratio | the floor's | to the floor |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for lanes in found.chunk_by(|a, b| a.what == b.what) {
        let [without, with, floor] = lanes else { continue };
        let [over50, over99, over_cpu] =
            with.over_floor.map_or([const { None }; 3], |over| over.map(Some));
        let cpu = "CPU time for a round trip";
        for (what, before, after, ratio, floor, to_floor) in [
            ("p50", without.p50, with.p50, with.ratio50, floor.ratio50, over50),
            ("p99", without.p99, with.p99, with.ratio99, floor.ratio99, over99),
            (cpu, without.cpu, with.cpu, with.ratio_cpu, floor.ratio_cpu, over_cpu),
        ] {
            let (before, after) = (before.median, after.median);
            let (ratio, floor) = (spread(&ratio, 2), spread(&floor, 2));
            table += &format!(
                "| {} | {what} | {before:.0} µs | {after:.0} µs | {ratio} | {floor} | {} |\n",
                with.what,
                over(to_floor)
            );
        }
    }
    table
}

fn closes(found: &[Closes]) -> String {
    let mut proxies: Vec<&str> = found.iter().map(|close| &close.proxy[..]).collect();
    proxies.sort_unstable();
    proxies.dedup();
    // In the order in which they were measured.
    proxies.sort_by_key(|proxy| found.iter().position(|close| close.proxy == *proxy));
    let mut table = format!(
        "| who closes, hops | {} |\n| --- |{}\n",
        proxies.join(" | "),
        " --- |".repeat(proxies.len())
    );
    for by_server in [true, false] {
        for hops in 1..=HOPS {
            let who = if by_server { "server" } else { "client" };
            table += &format!("| {who}, {hops} |");
            for proxy in &proxies {
                let is =
                    |c: &&Closes| c.by_server == by_server && c.hops == hops && c.proxy == *proxy;
                let cell = found.iter().find(is).map_or_else(String::new, |close| {
                    let unclean = close.count - close.clean;
                    let unclean =
                        if unclean > 0 { format!(", {unclean} unclean") } else { String::new() };
                    format!("{:.1} / {:.1}{unclean}", close.p50, close.p99)
                });
                table += &format!(" {cell} |");
            }
            table += "\n";
        }
    }
    table
}

fn memory(uses: &[Use]) -> String {
    let name = |used: &Use| match &used.setup[..] {
        "none" => "without",
        "filter" => "with",
        _ => "the floor",
    };
    let names: Vec<&str> = uses.iter().map(name).collect();
    let row = |what: &str, value: &dyn Fn(&Use) -> String| {
        format!("| {what} | {} |\n", uses.iter().map(value).collect::<Vec<_>>().join(" | "))
    };
    let [allocated, resident]: [fn(&Memory) -> f64; 2] = [|m| m.allocated, |m| m.resident];
    let kib = |bytes: f64| format!("{:.1} KiB", bytes / 1024.0);
    let batch = uses.first().map_or(0, |used| used.batch);
    let batches = uses.first().map_or(0, |used| used.closed.len());
    let mut table = format!(
        "| {batch} open at a time | {} |\n| --- |{}\n",
        names.join(" | "),
        " --- |".repeat(names.len())
    );
    table += &row("an open WebSocket, allocated", &|used| kib(used.each(allocated)));
    table += &row("… resident", &|used| kib(used.each(resident)));
    let after = format!("after {}, over the mark after {batch}: allocated", batches * batch);
    table += &row(&after, &|used| format!("{:.3}", used.after_all(allocated)));
    table += &row("… resident", &|used| format!("{:.3}", used.after_all(resident)));
    table += &row(&format!("clean closes of {}", batches * batch), &|used| used.clean.to_string());
    table
}

fn bursts(found: &[Burst]) -> String {
    let count = found.first().map_or(0, |burst| burst.count);
    let mut table = format!(
        "| {count} at once, closed by | | last FIN after | ratio | to the floor | CPU time | ratio | \
         to the floor | clean, in the worst round |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for burst in found {
        table += &format!(
            "| the {} | {} | {:.2} s | {} | {} | {:.2} s | {} | {} | {} |\n",
            if burst.by_server { "server" } else { "clients" },
            burst.setup,
            burst.seconds.median,
            spread(&burst.ratio_seconds, 2),
            over(burst.over_floor.map(|[seconds, _]| seconds)),
            burst.cpu.median,
            spread(&burst.ratio_cpu, 2),
            over(burst.over_floor.map(|[_, cpu]| cpu)),
            burst.clean
        );
    }
    table
}

fn size(size: &Size) -> String {
    let kib = |bytes: usize| format!("{:.1} KiB", bytes as f64 / 1024.0);
    let mut parts: Vec<(&str, usize)> =
        size.code.iter().map(|(name, bytes)| (&name[..], *bytes)).collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let mut table = format!("| the module | {} |\n| --- | --- |\n", kib(size.module));
    let (large, small): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, bytes)| *bytes >= 1024);
    for (name, bytes) in large {
        table += &format!("| code of {name} | {} |\n", kib(bytes));
    }
    let small = small.iter().map(|(_, bytes)| bytes).sum();
    table += &format!("| code of others, each less than 1 KiB | {} |\n", kib(small));
    table += &format!("| strings and tables | {} |\n", kib(size.data));
    table += &format!("| types, exports, indices | {} |\n", kib(size.rest));
    table += "\nThe largest functions:\n\n| function | bytes |\n| --- | --- |\n";
    for (name, bytes) in &size.largest {
        // A bar would end the cell.
        table += &format!("| `{}` | {bytes} |\n", name.replace('|', "\\|"));
    }
    table
}
