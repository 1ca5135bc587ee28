//! Messages of one size, as fast as they go, in one direction.

use std::net::SocketAddr;

use testbed::server::messages;
use testbed::{wire, Client, Mode, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::floor::Questions;
use crate::measure::{Job, Lanes, Row};

/// Payload lengths.
pub const SIZES: [usize; 4] = [125, 1024, 16 * 1024, 1024 * 1024];

/// Which way, and how they are written.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    pub from_server: bool,
    pub size: usize,
    /// One write(2) for each message, as servers and clients do; otherwise for a megabyte of them,
    /// which costs Envoy the least.
    pub singly: bool,
}

impl Flood {
    pub fn name(self) -> String {
        let way = if self.from_server { "server to client" } else { "client to server" };
        let how = if self.singly { ", written singly" } else { "" };
        format!("{way}, {}{how}", size_name(self.size))
    }

    /// Sends `bytes` bytes, and waits until they have arrived.
    pub async fn run(self, address: SocketAddr, bytes: usize) {
        if self.from_server {
            self.read(address, bytes).await;
        } else {
            self.write(address, bytes).await;
        }
    }

    async fn read(self, address: SocketAddr, bytes: usize) {
        let singly = if self.singly { "&singly=1" } else { "" };
        let path = format!("/flood?by=server&size={}&bytes={bytes}{singly}", self.size);
        let mut client = Client::open(address, &path).await.expect("a WebSocket");
        let mut buffer = vec![0; 1 << 18];
        // What came with the response is there already.
        let mut left = bytes.saturating_sub(client.frames.left_over());
        while left > 0 {
            let n = client.stream.read(&mut buffer).await.expect("open");
            assert!(n > 0, "the server ended early");
            left = left.saturating_sub(n);
        }
    }

    async fn write(self, address: SocketAddr, bytes: usize) {
        let path = format!("/sink?by=client&bytes={bytes}");
        let mut client = Client::open(address, &path).await.expect("a WebSocket");
        let batch = if self.singly {
            wire::message(&vec![b'm'; self.size], true)
        } else {
            messages(self.size, true)
        };
        let mut left = bytes;
        while left > 0 {
            let len = left.min(batch.len());
            client.stream.write_all(&batch[..len]).await.expect("open");
            left -= len;
        }
        client.frames.next(&mut client.stream).await.expect("open").expect("its receipt");
    }
}

pub fn size_name(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}

/// All floods that are measured.
pub fn all() -> Vec<Flood> {
    let both = |size, singly| [true, false].map(|from_server| Flood { from_server, size, singly });
    let batched = SIZES.into_iter().flat_map(|size| both(size, false));
    batched.chain([125, 1024].into_iter().flat_map(|size| both(size, true))).collect()
}

pub async fn run() -> Vec<Row> {
    let server = Server::start().await;
    let mut rows = Vec::new();
    // BENCH_SIZES: some of them, for whoever tries something.
    let asked = std::env::var("BENCH_SIZES").unwrap_or_default();
    let asked: Vec<usize> = asked.split(',').filter_map(|size| size.parse().ok()).collect();
    for size in SIZES.into_iter().filter(|size| asked.is_empty() || asked.contains(size)) {
        let lanes = [
            ("none", Setup::new(Mode::Default)),
            ("filter", Setup::new(Mode::Filter)),
            ("floor", Questions::for_frames_of(size).setup()),
        ];
        let lanes = Lanes::start(server.address, lanes).await;
        for flood in all().into_iter().filter(|flood| flood.size == size) {
            let job = Job {
                what: flood.name(),
                unit: "ns per byte",
                scale: 1e9,
                first: if flood.singly { 1_000_000 } else { 40_000_000 },
                rounds: 61,
            };
            rows.extend(job.compare(&lanes, async |to, bytes| flood.run(to, bytes).await).await);
        }
    }
    rows
}
