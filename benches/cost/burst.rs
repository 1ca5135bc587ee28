//! Many WebSockets that close in the same moment: their server is shut down, or all clients go.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testbed::{Envoy, Mode, Server, Setup};
use tokio::task::JoinSet;

use crate::limits;
use crate::many::{close, open, possible};
use crate::measure::{amount, Spread};

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
    for mode in Mode::ALL {
        let setup = Setup { workers: 1, ..Setup::new(mode) };
        envoys.push((mode, setup.start(server.address).await));
    }
    let mut found = Vec::new();
    for by_server in [true, false] {
        found.extend(bursts(&server, &envoys, by_server, count).await);
    }
    found
}

async fn bursts(
    server: &Server,
    envoys: &[(Mode, Envoy)],
    by_server: bool,
    count: usize,
) -> Vec<Burst> {
    let mut seen = vec![Vec::new(); envoys.len()];
    for round in 0..amount(3, 1) {
        for turn in 0..envoys.len() {
            let which = (turn + round) % envoys.len();
            seen[which].push(once(server, &envoys[which].1, by_server, count).await);
        }
    }
    let mut found = Vec::new();
    for ((mode, _), seen) in envoys.iter().zip(&seen) {
        let burst = Burst {
            by_server,
            mode: mode.name().to_owned(),
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
    let of = |mode: Mode| found.iter().find(|burst| burst.mode == mode.name());
    if let (Some(baseline), Some(filter)) = (of(Mode::Baseline), of(Mode::Filter)) {
        let median = |of: fn(&Burst) -> Spread| of(filter).median / of(baseline).median;
        for (what, ratio) in [("last FIN", median(|b| b.seconds)), ("CPU", median(|b| b.cpu))] {
            let verdict = limits::verdict(ratio, Some(limits::BURST));
            println!("    {what}: {ratio:.2} of the baseline's{verdict}");
        }
    }
    found
}
