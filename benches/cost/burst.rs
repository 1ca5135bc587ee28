//! Many WebSockets that close in the same moment: their server is shut down, or all clients go.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testbed::{Envoy, Mode, Server, Setup};
use tokio::task::JoinSet;

use crate::floor::Questions;
use crate::limits;
use crate::many::{close, open, possible};
use crate::measure::{amount, Spread};

/// What any two filters of this kind add.
const FLOOR: &str = "the floor";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Burst {
    pub by_server: bool,
    pub mode: String,
    pub count: usize,
    /// Until the last client has its FIN, in seconds.
    pub seconds: Spread,
    /// CPU seconds of Envoy.
    pub cpu: Spread,
    /// Closes with both Close frames and FIN, in the worst round.
    pub clean: usize,
}

async fn once(server: &Server, envoy: &Envoy, by_server: bool, count: usize) -> (f64, f64, usize) {
    let path = if by_server { "/waits?by=server&told=1" } else { "/waits?by=client" };
    let clients = open(envoy.address(), path, count).await;
    // Until each waits for it, at the server too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (start, cpu) = (Instant::now(), envoy.cpu_seconds());
    let code = (!by_server).then_some(1000);
    let mut closes = JoinSet::new();
    for client in clients {
        closes.spawn(close(client, code));
    }
    server.close_all();
    let clean = closes.join_all().await.into_iter().filter(|clean| *clean).count();
    let seconds = start.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_millis(100)).await;
    (seconds, envoy.cpu_seconds() - cpu, clean)
}

pub async fn run() -> Vec<Burst> {
    let server = Server::start().await;
    let count = possible(amount(5_000, 200));
    let mut envoys = Vec::new();
    let mut setups: Vec<_> = Mode::ALL.map(|mode| (mode.name(), Setup::new(mode))).into();
    // Two filters that do nothing, and so leave the close to the baseline's setting.
    let module = Questions::for_frames_of(0).setup().module;
    let delay = Setup::new(Mode::Baseline).delayed_close_timeout;
    let floor = Setup { module, delayed_close_timeout: delay, ..Setup::new(Mode::Filter) };
    setups.push((FLOOR, floor));
    for (name, setup) in setups {
        let setup = Setup { workers: 1, ..setup };
        envoys.push((name, setup.start(server.address).await));
    }
    let mut found = Vec::new();
    for by_server in [true, false] {
        found.extend(bursts(&server, &envoys, by_server, count).await);
    }
    found
}

async fn bursts(
    server: &Server,
    envoys: &[(&str, Envoy)],
    by_server: bool,
    count: usize,
) -> Vec<Burst> {
    let mut seen = vec![Vec::new(); envoys.len()];
    for round in 0..amount(5, 1) {
        for turn in 0..envoys.len() {
            let which = (turn + round) % envoys.len();
            seen[which].push(once(server, &envoys[which].1, by_server, count).await);
        }
    }
    let mut found = Vec::new();
    for ((name, _), seen) in envoys.iter().zip(&seen) {
        let burst = Burst {
            by_server,
            mode: (*name).to_owned(),
            count,
            seconds: Spread::of(seen.iter().map(|(seconds, _, _)| *seconds)),
            cpu: Spread::of(seen.iter().map(|(_, cpu, _)| *cpu)),
            clean: seen.iter().map(|(_, _, clean)| *clean).min().unwrap_or(0),
        };
        println!(
            "  {count} at once by the {}, {:8} last FIN after {:.2} s, CPU {:.2} s, {} clean",
            if by_server { "server" } else { "clients" },
            burst.mode,
            burst.seconds.median,
            burst.cpu.median,
            burst.clean
        );
        found.push(burst);
    }
    let of = |name: &str| found.iter().find(|burst| burst.mode == name);
    if let (Some(baseline), Some(filter), Some(floor)) =
        (of(Mode::Baseline.name()), of(Mode::Filter.name()), of(FLOOR))
    {
        for (what, of) in [
            ("last FIN", (|burst| burst.seconds.median) as fn(&Burst) -> f64),
            ("CPU", |burst| burst.cpu.median),
        ] {
            let (ratio, floor) = (of(filter) / of(baseline), of(floor) / of(baseline));
            let verdict = limits::verdict(ratio, Some(limits::BURST));
            println!("    {what}: {ratio:.2} of the baseline's, the floor {floor:.2}{verdict}");
        }
    }
    found
}
