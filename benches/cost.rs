//! What the filter costs: Envoy's CPU time with and without it, in one run, alternating.
//!
//!     make bench
//!
//! Prints ratios; 1.00 is free. The median of the rounds, and the lowest and highest.

use std::time::Duration;

use lab::server::messages;
use lab::{wire, Client, Envoy, Mode, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    // `cargo test` runs benches too, to see whether they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let server = Server::start().await;
    let workers = 1;
    let without = Setup { workers, ..Setup::new(Mode::Default) }.start(server.address).await;
    let with = Setup { workers, ..Setup::new(Mode::Filter) }.start(server.address).await;
    let network_alone = Setup { workers, http_half: None, ..Setup::new(Mode::Filter) };
    let network_alone = network_alone.start(server.address).await;

    println!("Envoy's CPU time with the filter, without = 1; {ROUNDS} rounds each");
    for (size, bytes) in [(125, 60), (1024, 150), (16 * 1024, 300), (1024 * 1024, 300)] {
        let bytes = bytes * 1_000_000;
        let from_server = async |envoy: &Envoy| flood_from_server(envoy, size, bytes).await;
        compare(&format!("server to client, {size} B frames"), &without, &with, from_server).await;
        let from_client = async |envoy: &Envoy| flood_from_client(envoy, size, bytes).await;
        compare(&format!("client to server, {size} B frames"), &without, &with, from_client).await;
    }
    let requests = async |envoy: &Envoy| plain_requests(envoy, 4000).await;
    compare("plain requests", &without, &with, requests).await;
    compare("plain requests, network half alone", &without, &network_alone, requests).await;
    let closes = async |envoy: &Envoy| open_and_close(envoy, 500).await;
    compare("WebSockets opened and closed", &without, &with, closes).await;
}

async fn compare(what: &str, without: &Envoy, with: &Envoy, work: impl AsyncFn(&Envoy)) {
    work(without).await;
    work(with).await;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        // Who is first changes, so that what drifts is nobody's.
        let order = if round % 2 == 0 { [without, with] } else { [with, without] };
        let mut seconds = Vec::new();
        for envoy in order {
            let before = envoy.cpu_seconds();
            work(envoy).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            seconds.push(envoy.cpu_seconds() - before);
        }
        if round % 2 == 1 {
            seconds.reverse();
        }
        ratios.push(seconds[1] / seconds[0]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("{what:38} {:.2} ({:.2} to {:.2})", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
}

async fn flood_from_server(envoy: &Envoy, size: usize, bytes: usize) {
    let path = format!("/flood?by=server&size={size}&bytes={bytes}");
    let mut client = Client::open(envoy.address(), false, &path).await.expect("a WebSocket");
    let mut buffer = vec![0; 1 << 20];
    // What came with the response is there already.
    let mut left = bytes - client.frames.left_over();
    while left > 0 {
        let n = client.stream.read(&mut buffer).await.expect("open");
        assert!(n > 0, "the server ended early");
        left = left.saturating_sub(n);
    }
}

async fn flood_from_client(envoy: &Envoy, size: usize, bytes: usize) {
    let mut client = Client::open(envoy.address(), false, "/sink?by=client").await.expect("open");
    let batch = messages(size, true);
    let mut left = bytes;
    while left > 0 {
        let len = left.min(batch.len());
        client.stream.write_all(&batch[..len]).await.expect("open");
        left -= len;
    }
}

async fn plain_requests(envoy: &Envoy, count: usize) {
    let mut stream = TcpStream::connect(envoy.address()).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    for _ in 0..count {
        stream.write_all(b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
        let (_, mut body) = wire::read_head(&mut stream).await.expect("a response");
        while body.len() < 5 {
            stream.read_buf(&mut body).await.expect("a body");
        }
    }
}

async fn open_and_close(envoy: &Envoy, count: usize) {
    // The client is not made to wait for the end of TCP, which is what takes a second without.
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client =
            Client::open(envoy.address(), false, "/waits?by=client").await.expect("open");
        client.stream.write_all(&wire::close(1000, "", true)).await.expect("open");
        client.frames.next(&mut client.stream).await.expect("a Close frame");
        clients.push(client);
        if clients.len() == 100 {
            clients.clear();
        }
    }
}
