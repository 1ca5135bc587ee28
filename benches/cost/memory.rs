//! Envoy's memory for an open WebSocket, and whether it has it back when many have come and gone.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testbed::{Envoy, Mode, Server, Setup};
use tokio::task::JoinSet;

use crate::floor::Questions;
use crate::limits;
use crate::many::{close, open, possible};
use crate::measure::amount;

/// Batches of WebSockets that are opened and closed.
const BATCHES: usize = 10;

/// Envoy's memory, in bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// What Envoy has allocated, without the VMs' memory.
    pub allocated: f64,
    /// All that the process holds.
    pub resident: f64,
}

impl Memory {
    fn of(envoy: &Envoy) -> Self {
        Self { allocated: envoy.allocated_bytes() as f64, resident: envoy.resident_bytes() as f64 }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Use {
    pub setup: String,
    /// WebSockets in a batch.
    pub batch: usize,
    /// Clean closes in all batches.
    pub clean: usize,
    /// Before any.
    pub before: Memory,
    /// All of a batch open; batch by batch.
    pub open: Vec<Memory>,
    /// All of a batch closed; batch by batch. The first is the mark.
    pub closed: Vec<Memory>,
}

impl Use {
    /// Bytes for each WebSocket of the first batch.
    pub fn each(&self, of: impl Fn(&Memory) -> f64) -> f64 {
        self.open.first().map_or(f64::NAN, |open| of(open) - of(&self.before)) / self.batch as f64
    }

    /// After the last batch, over the mark.
    pub fn after_all(&self, of: impl Fn(&Memory) -> f64) -> f64 {
        match (self.closed.first(), self.closed.last()) {
            (Some(mark), Some(last)) => of(last) / of(mark),
            _ => f64::NAN,
        }
    }
}

/// Waits until Envoy has let the last connection go, and until what frees its memory has run.
async fn settle(envoy: &Envoy) {
    let patience = Instant::now() + Duration::from_secs(20);
    while envoy.stat("http.hop1.downstream_cx_active") > 0
        || envoy.stat("cluster.hop1.upstream_cx_active") > 0
    {
        assert!(Instant::now() < patience, "connections are left open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Opens and closes a batch. Envoy's memory while it is open, and how many closes were clean.
async fn batch(envoy: &Envoy, count: usize) -> (Memory, usize) {
    let clients = open(envoy.address(), "/waits?by=client", count).await;
    let while_open = Memory::of(envoy);
    let mut closes = JoinSet::new();
    for (i, client) in clients.into_iter().enumerate() {
        closes.spawn(async move {
            // 2,500 a second: `burst` is what closes all at once.
            tokio::time::sleep(Duration::from_micros(400) * i as u32).await;
            close(client, Some(1000)).await
        });
    }
    let clean = closes.join_all().await.into_iter().filter(|clean| *clean).count();
    settle(envoy).await;
    (while_open, clean)
}

/// Bytes that the filter and the floor add to what Envoy has allocated for a WebSocket.
pub fn added(found: &[Use]) -> Option<[f64; 2]> {
    let [without, with, floor] = found else { return None };
    let added = |by: &Use| by.each(|m| m.allocated) - without.each(|m| m.allocated);
    Some([added(with), added(floor)])
}

pub async fn run() -> Vec<Use> {
    let server = Server::start().await;
    let count = possible(amount(10_000, 200));
    let mut found = Vec::new();
    // What Envoy keeps for any two filters, which no module can do anything about.
    let floor = Questions::for_frames_of(0).setup();
    let floor = Setup { module: floor.module, ..Setup::new(Mode::Filter) };
    for (name, setup) in [
        ("none", Setup::new(Mode::Default)),
        ("filter", Setup::new(Mode::Filter)),
        ("floor", floor),
    ] {
        let envoy = Setup { workers: 1, ..setup }.start(server.address).await;
        // What is made once is made.
        batch(&envoy, 20).await;
        let mut used = Use {
            setup: name.to_owned(),
            batch: count,
            before: Memory::of(&envoy),
            clean: 0,
            open: Vec::new(),
            closed: Vec::new(),
        };
        for _ in 0..BATCHES {
            let (open, clean) = batch(&envoy, count).await;
            used.open.push(open);
            used.clean += clean;
            used.closed.push(Memory::of(&envoy));
        }
        println!(
            "  {name:8} {:.1} KiB a WebSocket ({:.1} resident); after {} the mark × {:.3} ({:.3} resident), \
             {} clean",
            used.each(|m| m.allocated) / 1024.0,
            used.each(|m| m.resident) / 1024.0,
            BATCHES * count,
            used.after_all(|m| m.allocated),
            used.after_all(|m| m.resident),
            used.clean
        );
        found.push(used);
    }
    if let Some([with, floor]) = added(&found) {
        let verdict = limits::verdict(with, Some(limits::WEBSOCKET), Some(floor));
        println!("  the filter adds {with:.0} bytes a WebSocket, the floor {floor:.0}{verdict}");
    }
    found
}
