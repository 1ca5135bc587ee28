//! The network filter alone: bytes through it, and connections.

use std::net::SocketAddr;

use testbed::{wire, Mode, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::floods::Flood;
use crate::measure::{Job, Lanes, Row};
use crate::requests::request;

/// A response of so many bytes.
async fn download(address: SocketAddr, bytes: usize) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("open");
    let (_, body) = wire::read_head(&mut stream).await.expect("a response");
    let mut left = bytes - body.len();
    let mut buffer = vec![0; 1 << 18];
    while left > 0 {
        let n = stream.read(&mut buffer).await.expect("open");
        assert!(n > 0, "the body is cut off");
        left -= n;
    }
}

/// Connections that carry one request each.
async fn connections(address: SocketAddr, count: usize) {
    const AT_ONCE: usize = 16;
    let mut clients = JoinSet::new();
    for i in 0..AT_ONCE {
        let share = (count + i) / AT_ONCE;
        clients.spawn(async move {
            for _ in 0..share {
                let mut stream = connect(i, address).await;
                request(&mut stream).await;
            }
        });
    }
    clients.join_all().await;
}

/// Connects from one of several addresses of this machine: each has ports of its own.
pub async fn connect(from: usize, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    // A port may still have a connection in TIME_WAIT.
    socket.set_reuseaddr(true).expect("a socket");
    socket.bind(([127, 0, 0, 1 + (from % 8) as u8], 0).into()).expect("a loopback address");
    let stream = socket.connect(to).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    stream
}

pub async fn run() -> Vec<Row> {
    let server = Server::start().await;
    let alone = |mode, tcp| Setup { http_filter: None, tcp, ..Setup::new(mode) };
    let mut rows = Vec::new();
    for (protocol, tcp) in [("TCP", true), ("HTTP", false)] {
        let lanes = [("none", alone(Mode::Default, tcp)), ("network", alone(Mode::Filter, tcp))];
        let lanes = Lanes::start(server.address, lanes).await;
        let named = |what: &str| format!("{protocol}, {what}");
        let bytes =
            |what| Job { what, unit: "ns per byte", scale: 1e9, first: 40_000_000, rounds: 61 };
        rows.extend(bytes(named("server to client")).compare(&lanes, download).await);
        if tcp {
            // What is a flood to a client and a server is bytes to `tcp_proxy`.
            let flood = Flood { from_server: false, size: 16 * 1024, singly: false };
            let from_client = async |to, bytes| flood.run(to, bytes).await;
            rows.extend(bytes(named("client to server")).compare(&lanes, from_client).await);
        }
        let job = Job {
            what: named("a connection for each request"),
            unit: "µs each",
            scale: 1e6,
            first: 500,
            rounds: 61,
        };
        rows.extend(job.compare(&lanes, connections).await);
    }
    rows
}
