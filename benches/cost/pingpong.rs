//! Ping-pong of small messages on many connections: how much later an answer comes.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testbed::{wire, Mode, Server, Setup};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::floor::Questions;
use crate::limits;
use crate::many;
use crate::measure::{amount, quantile, Lanes, Spread};

const CONNECTIONS: usize = 100;
const SIZE: usize = 125;
const ROUNDS: usize = 21;

/// Round trips of one setup, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub what: String,
    pub setup: String,
    pub p50: Spread,
    pub p99: Spread,
    /// Envoy's CPU time for a round trip.
    pub cpu: Spread,
    /// To the first setup, in the same round.
    pub ratio50: Spread,
    pub ratio99: Spread,
    pub ratio_cpu: Spread,
    /// To the floor, in the same round.
    pub over_floor: Option<[Spread; 3]>,
}

/// How long each of `count` round trips took, in microseconds, sorted; and Envoy's CPU time for one.
/// With `pause`, a connection sends one in so much time; without, the next as soon as it has its
/// answer.
async fn round_trips(lanes: &Lanes, lane: usize, count: usize, pause: Duration) -> (Vec<f64>, f64) {
    let clients = many::open(lanes.address(lane), "/echo?by=client", CONNECTIONS).await;
    let before = lanes.envoy.cpu_seconds();
    let mut connections = JoinSet::new();
    for (i, mut client) in clients.into_iter().enumerate() {
        connections.spawn(async move {
            let message = wire::message(&[b'm'; SIZE], true);
            let mut times = Vec::new();
            // Not all at once.
            tokio::time::sleep(pause * i as u32 / CONNECTIONS as u32).await;
            let start = Instant::now();
            for turn in 0..count / CONNECTIONS {
                tokio::time::sleep_until((start + pause * turn as u32).into()).await;
                let sent = Instant::now();
                client.stream.write_all(&message).await.expect("open");
                client.frames.next(&mut client.stream).await.expect("open").expect("its echo");
                times.push(sent.elapsed().as_secs_f64() * 1e6);
            }
            // Open until all are done.
            (times, client)
        });
    }
    let (times, clients): (Vec<_>, Vec<_>) = connections.join_all().await.into_iter().unzip();
    let mut times = times.concat();
    let cpu = (lanes.envoy.cpu_seconds() - before) * 1e6 / times.len() as f64;
    drop(clients);
    times.sort_by(f64::total_cmp);
    (times, cpu)
}

pub async fn run() -> Vec<Latency> {
    let server = Server::start().await;
    let lanes = [
        ("none", Setup::new(Mode::Default)),
        ("filter", Setup::new(Mode::Filter)),
        ("floor", Questions::for_frames_of(SIZE).setup()),
    ];
    let lanes = Lanes::start(server.address, lanes).await;
    let rounds = amount(ROUNDS, 2);
    let mut found = Vec::new();
    for (what, pause, count) in [
        ("2,000 messages a second", Duration::from_millis(50), amount(1_000, 200)),
        ("as many as go", Duration::ZERO, amount(10_000, 1_000)),
    ] {
        let number = lanes.names().len();
        let mut p50 = vec![vec![0.0; rounds]; number];
        let (mut p99, mut cpu) = (p50.clone(), p50.clone());
        for round in 0..rounds {
            for turn in 0..number {
                let which = (turn + round) % number;
                let (times, each) = round_trips(&lanes, which, count, pause).await;
                p50[which][round] = quantile(&times, 0.5);
                p99[which][round] = quantile(&times, 0.99);
                cpu[which][round] = each;
            }
        }
        let ratios = |which: usize, base: usize| {
            [&p50, &p99, &cpu].map(|of| Spread::of_ratios(&of[which], &of[base]))
        };
        for (which, setup) in lanes.names().iter().enumerate() {
            let [ratio50, ratio99, ratio_cpu] = ratios(which, 0);
            let floor = lanes.floor_of(which);
            let latency = Latency {
                what: what.to_owned(),
                setup: setup.clone(),
                p50: Spread::of(p50[which].iter().copied()),
                p99: Spread::of(p99[which].iter().copied()),
                cpu: Spread::of(cpu[which].iter().copied()),
                ratio50,
                ratio99,
                ratio_cpu,
                over_floor: floor.map(|floor| ratios(which, floor)),
            };
            let words = latency.over_floor.map_or_else(String::new, |[p50, _, cpu]| {
                format!("{}, CPU {:.3}", p50.over_the_floor(), cpu.median)
            });
            println!(
                "  {what:24} {setup:8} p50 {:7.0} µs {:.3}   p99 {:7.0} µs {:.3}   CPU {:5.1} µs {:.3}{words}{}",
                latency.p50.median,
                latency.ratio50.median,
                latency.p99.median,
                latency.ratio99.median,
                latency.cpu.median,
                latency.ratio_cpu.median,
                limits::verdict(
                    latency.ratio50.median,
                    (setup == "filter" && !pause.is_zero()).then_some(limits::ROUND_TRIP),
                    floor.map(|floor| ratios(floor, 0)[0].median)
                )
            );
            found.push(latency);
        }
    }
    found
}
