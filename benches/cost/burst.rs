//! Many WebSockets that close in the same moment: their server is shut down, or all clients go.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testbed::{Mode, Server, Setup};
use tokio::task::JoinSet;

use crate::floor::Questions;
use crate::limits;
use crate::many::{close, open, possible};
use crate::measure::{amount, Lanes, Spread};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Burst {
    pub by_server: bool,
    pub setup: String,
    pub count: usize,
    /// Until the last client has its FIN, in seconds.
    pub seconds: Spread,
    /// CPU seconds of Envoy.
    pub cpu: Spread,
    /// To the baseline, in the same round.
    pub ratio_seconds: Spread,
    pub ratio_cpu: Spread,
    /// Closes with both Close frames and FIN, in the worst round.
    pub clean: usize,
}

/// What one round has shown.
#[derive(Clone, Copy)]
struct Seen {
    seconds: f64,
    cpu: f64,
    clean: usize,
}

async fn once(server: &Server, lanes: &Lanes, lane: usize, by_server: bool, count: usize) -> Seen {
    let path = if by_server { "/waits?by=server&told=1" } else { "/waits?by=client" };
    let clients = open(lanes.address(lane), path, count).await;
    // Until each waits for it, at the server too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (start, cpu) = (Instant::now(), lanes.envoy.cpu_seconds());
    let code = (!by_server).then_some(1000);
    let mut closes = JoinSet::new();
    for client in clients {
        closes.spawn(close(client, code));
    }
    server.close_all();
    let clean = closes.join_all().await.into_iter().filter(|clean| *clean).count();
    let seconds = start.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_millis(100)).await;
    Seen { seconds, cpu: lanes.envoy.cpu_seconds() - cpu, clean }
}

pub async fn run() -> Vec<Burst> {
    let server = Server::start().await;
    let count = possible(amount(5_000, 200));
    // Two filters that do nothing, and so leave the close to the baseline's setting.
    let floor = Setup {
        module: Questions::for_frames_of(0).setup().module,
        delayed_close_timeout: Setup::new(Mode::Baseline).delayed_close_timeout,
        ..Setup::new(Mode::Filter)
    };
    let lanes = [
        ("baseline", Setup::new(Mode::Baseline)),
        ("filter", Setup::new(Mode::Filter)),
        ("the floor", floor),
        ("default", Setup::new(Mode::Default)),
    ];
    let lanes = Lanes::start(server.address, lanes).await;
    let mut found = bursts(&server, &lanes, true, count).await;
    found.extend(bursts(&server, &lanes, false, count).await);
    found
}

async fn bursts(server: &Server, lanes: &Lanes, by_server: bool, count: usize) -> Vec<Burst> {
    let number = lanes.names().len();
    let mut seen = vec![Vec::new(); number];
    for round in 0..amount(7, 1) {
        for turn in 0..number {
            let which = (turn + round) % number;
            seen[which].push(once(server, lanes, which, by_server, count).await);
        }
    }
    let ratio = |seen: &[Seen], baseline: &[Seen], of: fn(&Seen) -> f64| {
        Spread::of(seen.iter().zip(baseline).map(|(one, other)| of(one) / of(other)))
    };
    let mut found = Vec::new();
    for (setup, rounds) in lanes.names().iter().zip(&seen) {
        let burst = Burst {
            by_server,
            setup: setup.clone(),
            count,
            seconds: Spread::of(rounds.iter().map(|seen| seen.seconds)),
            cpu: Spread::of(rounds.iter().map(|seen| seen.cpu)),
            ratio_seconds: ratio(rounds, &seen[0], |seen| seen.seconds),
            ratio_cpu: ratio(rounds, &seen[0], |seen| seen.cpu),
            clean: rounds.iter().map(|seen| seen.clean).min().unwrap_or(0),
        };
        let limit = (setup == "filter").then_some(limits::BURST);
        let verdict = |ratio: Spread| limits::verdict(ratio.median, limit);
        println!(
            "  {count} at once by the {:7} {setup:9} {} clean, last FIN after {:.2} s, {:.2}{}; CPU {:.2} s, {:.2}{}",
            if by_server { "server" } else { "clients" },
            burst.clean,
            burst.seconds.median,
            burst.ratio_seconds.median,
            verdict(burst.ratio_seconds),
            burst.cpu.median,
            burst.ratio_cpu.median,
            verdict(burst.ratio_cpu),
        );
        found.push(burst);
    }
    found
}
