//! Plain HTTP/1.1 requests on kept connections, on a listener that has the filter.

use std::net::SocketAddr;

use testbed::server::{path, Behaviour};
use testbed::{wire, Client, Mode, Plan, Server, Setup, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::floor::Questions;
use crate::measure::{Job, Lanes, Row};

const CONNECTIONS: usize = 32;

/// A request, and the whole of its response.
pub async fn request(stream: &mut TcpStream) {
    stream.write_all(b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
    let (_, mut body) = wire::read_head(stream).await.expect("a response");
    while body.len() < 5 {
        assert!(stream.read_buf(&mut body).await.expect("a body") > 0, "the body is cut off");
    }
}

/// Requests on kept connections, each of which sends the next as soon as it has its response.
pub async fn requests(address: SocketAddr, count: usize) {
    let mut connections = JoinSet::new();
    for i in 0..CONNECTIONS {
        let share = (count + i) / CONNECTIONS;
        connections.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            for _ in 0..share {
                request(&mut stream).await;
            }
        });
    }
    connections.join_all().await;
}

pub async fn run() -> Vec<Row> {
    let server = Server::start().await;
    let filter = Setup::new(Mode::Filter);
    let only = |streams, setup: &Setup| Setup { streams, ..setup.clone() };
    let floor = Questions::for_frames_of(0).setup();
    let lanes = [
        ("none", Setup::new(Mode::Default)),
        ("both filters", filter.clone()),
        ("floor", floor.clone()),
        ("composite", only(Streams::CompositeUpgrades, &filter)),
        ("composite, floor", only(Streams::CompositeUpgrades, &floor)),
        ("upgrade chain", only(Streams::UpgradeChain, &filter)),
        ("network", Setup { http_filter: None, ..filter }),
    ];
    let lanes = Lanes::start(server.address, lanes).await;
    // A filter that is not there costs nothing.
    for (closed, lane) in (1..).zip([1, 3, 5]) {
        let path = path(Behaviour::Waits, true, 4321);
        let client = Client::open(lanes.address(lane), &path).await.expect("a WebSocket");
        let ending = client.run(&Plan::default()).await;
        assert!(ending.is_clean() && ending.ms() < 500.0, "not the filter's close: {ending}");
        assert_eq!(lanes.envoy.metric("websocket.closed.clean"), closed);
    }
    let job = Job {
        what: "plain requests".to_owned(),
        unit: "µs per request",
        scale: 1e6,
        first: 2000,
        rounds: 121,
    };
    job.compare(&lanes, requests).await
}
