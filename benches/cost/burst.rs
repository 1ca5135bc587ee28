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
    /// Both to the floor, in the same round.
    pub over_floor: Option<[Spread; 2]>,
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
    let lanes = [
        ("baseline", Setup::new(Mode::Baseline)),
        ("filter", Setup::new(Mode::Filter)),
        ("floor", Questions::closing()),
        ("default", Setup::new(Mode::Default)),
    ];
    let lanes = Lanes::start(server.address, lanes).await;
    let mut found = bursts(&server, &lanes, true, count).await;
    found.extend(bursts(&server, &lanes, false, count).await);
    found
}

/// One figure of each round, lane by lane.
fn per_lane(seen: &[Vec<Seen>], of: fn(&Seen) -> f64) -> Vec<Vec<f64>> {
    seen.iter().map(|rounds| rounds.iter().map(of).collect()).collect()
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
    let seconds = per_lane(&seen, |seen| seen.seconds);
    let cpu = per_lane(&seen, |seen| seen.cpu);
    let ratios = |which: usize, base: usize| {
        [&seconds, &cpu].map(|of| Spread::of_ratios(&of[which], &of[base]))
    };
    let mut found = Vec::new();
    for (which, setup) in lanes.names().iter().enumerate() {
        let [ratio_seconds, ratio_cpu] = ratios(which, 0);
        let floor = lanes.floor_of(which);
        let burst = Burst {
            by_server,
            setup: setup.clone(),
            count,
            seconds: Spread::of(seconds[which].iter().copied()),
            cpu: Spread::of(cpu[which].iter().copied()),
            ratio_seconds,
            ratio_cpu,
            over_floor: floor.map(|floor| ratios(which, floor)),
            clean: seen[which].iter().map(|seen| seen.clean).min().unwrap_or(0),
        };
        let limit = (setup == "filter").then_some(limits::BURST);
        let floors = floor.map(|floor| ratios(floor, 0).map(|ratio| ratio.median));
        let verdict = |i: usize, ratio: Spread| {
            limits::verdict(ratio.median, limit, floors.map(|floors| floors[i]))
        };
        let over = burst.over_floor.map(|over| over.map(|over| over.over_the_floor()));
        let [over_seconds, over_cpu] = over.unwrap_or_default();
        println!(
            "  {count} at once by the {:7} {setup:9} {} clean, last FIN after {:.2} s, {:.2}{over_seconds}{}; \
             CPU {:.2} s, {:.2}{over_cpu}{}",
            if by_server { "server" } else { "clients" },
            burst.clean,
            burst.seconds.median,
            burst.ratio_seconds.median,
            verdict(0, burst.ratio_seconds),
            burst.cpu.median,
            burst.ratio_cpu.median,
            verdict(1, burst.ratio_cpu),
        );
        found.push(burst);
    }
    found
}
