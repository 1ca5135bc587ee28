//! How long a close takes, from the first Close frame to the client's FIN, over one to three hops.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testbed::proxies::{Kind, Proxy};
use testbed::server::micros;
use testbed::{Client, End, Mode, Plan, Server, Setup};
use tokio::task::JoinSet;

use crate::floor::Questions;
use crate::limits;
use crate::measure::{amount, quantile};

pub const HOPS: usize = 3;

/// The proxy whose filters do nothing.
pub const FLOOR: &str = "floor";

/// The closes of one proxy, in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Closes {
    pub by_server: bool,
    pub proxy: String,
    pub hops: usize,
    pub p50: f64,
    pub p99: f64,
    /// Both Close frames and FIN.
    pub clean: usize,
    pub count: usize,
}

/// One close; its milliseconds, and whether it was clean.
async fn close(address: SocketAddr, by_server: bool) -> (f64, bool) {
    // The client is there for a moment, so that nothing of the opening is left.
    const OPEN: Duration = Duration::from_millis(20);
    let path = if by_server { "/waits?by=server&after=20&stamp=1" } else { "/waits?by=client" };
    let client = Client::open(address, path).await.expect("a WebSocket");
    if by_server {
        let ending = client.run(&Plan::default()).await;
        let now = micros();
        let stamp = ending.close.as_ref().and_then(|(_, reason)| reason.parse::<u64>().ok());
        return (stamp.map_or(f64::NAN, |stamp| (now - stamp) as f64 / 1e3), ending.is_clean());
    }
    tokio::time::sleep(OPEN).await;
    let start = Instant::now();
    let ending = client.run(&Plan::close(1000)).await;
    let clean = ending.is_clean() && ending.end == End::Fin;
    (start.elapsed().as_secs_f64() * 1e3, clean)
}

/// Closes of all proxies in turn, so that what drifts is nobody's.
async fn closes(entries: &[(&str, SocketAddr)], hops: usize, by_server: bool) -> Vec<Closes> {
    let count = amount(1000, 20);
    let mut clients = JoinSet::new();
    for i in 0..count * entries.len() {
        let (round, turn) = (i / entries.len(), i % entries.len());
        // Another first in each round: none is always behind the same one.
        let which = (turn + round) % entries.len();
        let (_, address) = entries[which];
        clients.spawn(async move {
            // One after the other, whatever the proxies make of them.
            tokio::time::sleep(Duration::from_millis(4) * i as u32).await;
            (which, close(address, by_server).await)
        });
    }
    let seen = clients.join_all().await;
    let closes = |(which, (proxy, _)): (usize, &(&str, SocketAddr))| {
        let own = || seen.iter().filter(move |(of, _)| *of == which).map(|(_, close)| close);
        let mut times: Vec<f64> = own().map(|(time, _)| *time).filter(|t| t.is_finite()).collect();
        times.sort_by(f64::total_cmp);
        let found = Closes {
            by_server,
            proxy: (*proxy).to_owned(),
            hops,
            p50: quantile(&times, 0.5),
            p99: quantile(&times, 0.99),
            clean: own().filter(|(_, clean)| *clean).count(),
            count,
        };
        println!(
            "  {} closes, {hops} hops, {proxy:21} p50 {:8.2} ms  p99 {:8.2} ms  {} of {count} clean",
            if by_server { "server" } else { "client" },
            found.p50,
            found.p99,
            found.clean
        );
        found
    };
    entries.iter().enumerate().map(closes).collect()
}

/// What is told of a server's closes.
pub const MEASURES: [&str; 2] = ["p50", "p99"];

/// Both for one proxy, as ratios to the baseline.
pub fn ratios(found: &[Closes], proxy: &str, hops: usize) -> Option<[f64; 2]> {
    let of = |proxy: &str| found.iter().find(|c| c.by_server && c.proxy == proxy && c.hops == hops);
    let (baseline, close) = (of(Mode::Baseline.name())?, of(proxy)?);
    Some([close.p50 / baseline.p50, close.p99 / baseline.p99])
}

/// Whether the server's closes are as soon with the filter as with the baseline.
fn tell(found: &[Closes], hops: usize) {
    let of = |proxy: &str| ratios(found, proxy, hops);
    let (Some(filter), Some(floor)) = (of(Mode::Filter.name()), of(FLOOR)) else { return };
    for ((what, ratio), floor) in MEASURES.iter().zip(filter).zip(floor) {
        let verdict = limits::verdict(ratio, Some(limits::CLOSE), Some(floor));
        println!("    {what}: {ratio:.2} of the baseline's, the floor's {floor:.2}{verdict}");
    }
}

pub async fn run() -> Vec<Closes> {
    let server = Server::start().await;
    let mut envoys = Vec::new();
    for mode in Mode::ALL {
        envoys.push((mode.name(), Setup::new(mode).hops(HOPS).start(server.address).await));
    }
    let floor = Questions::closing().hops(HOPS);
    envoys.push((FLOOR, floor.start(server.address).await));
    let mut others = Vec::new();
    for kind in Kind::ALL {
        match Proxy::start(kind, HOPS, server.address) {
            Ok(proxy) => others.push((kind.name(), proxy)),
            Err(why) => println!("  skipped: {why}"),
        }
    }
    let mut found = Vec::new();
    for by_server in [true, false] {
        for hops in 1..=HOPS {
            let entries = envoys.iter().map(|(name, envoy)| (*name, envoy.entry(hops)));
            let others = others.iter().map(|(name, proxy)| (*name, proxy.entry(hops)));
            let entries: Vec<_> = entries.chain(others).collect();
            found.extend(closes(&entries, hops, by_server).await);
            if by_server {
                tell(&found, hops);
            }
        }
    }
    found
}
