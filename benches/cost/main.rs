//! What the filter costs: real Envoys with and without it, in one run, alternating.
//!
//!     make bench                                   # all of it, ten minutes
//!     cargo bench --bench cost -- floods memory    # some of it
//!     BENCH_QUICK=1 make bench                     # does it run? Its figures mean nothing
//!     make bench-compare BASE=main                 # another commit's module in the same Envoys
//!     make bench-report                            # writes docs/performance.md and its plots
//!
//! Each item prints what it finds and writes it to `target/bench/<item>.json`.

mod burst;
mod closes;
mod floods;
mod floor;
mod limits;
mod many;
mod measure;
mod memory;
mod network;
mod pingpong;
mod plots;
mod report;
mod requests;
mod scanner;
mod short;
mod size;

const ITEMS: [&str; 8] =
    ["floods", "pingpong", "requests", "network", "closes", "memory", "burst", "size"];

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs benches too, to see whether they start.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let asked: Vec<&str> =
        arguments.iter().map(|argument| &argument[..]).filter(|a| !a.starts_with('-')).collect();
    if asked == ["report"] {
        return report::write();
    }
    if let Some(unknown) = asked.iter().find(|asked| !ITEMS.contains(asked)) {
        eprintln!("cost: no item `{unknown}`; there are {}, and report", ITEMS.join(", "));
        std::process::exit(2);
    }
    // Sockets by the ten thousand: Envoy inherits this.
    let _ = rlimit::increase_nofile_limit(1 << 17);
    for item in ITEMS.iter().filter(|item| asked.is_empty() || asked.contains(item)) {
        println!("{item}");
        match *item {
            "floods" => measure::save(item, &floods::run().await),
            "pingpong" => measure::save(item, &pingpong::run().await),
            "requests" => measure::save(item, &requests::run().await),
            "network" => measure::save(item, &network::run().await),
            "closes" => measure::save(item, &closes::run().await),
            "memory" => measure::save(item, &memory::run().await),
            "burst" => measure::save(item, &burst::run().await),
            _ => measure::save(item, &size::run()),
        }
    }
}
