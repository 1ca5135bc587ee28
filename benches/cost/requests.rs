//! Plain HTTP/1.1 requests on kept connections, on a listener that has the filter.

use std::net::SocketAddr;

use lab::server::{path, Behaviour};
use lab::{wire, Client, Mode, Plan, Server, Setup};
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
    let lanes = [
        ("none", Setup::new(Mode::Default)),
        ("both halves", filter.clone()),
        ("composite", Setup { composite: true, ..filter.clone() }),
        ("network", Setup { http_half: None, ..filter }),
        ("floor", Questions::for_frames_of(0).setup()),
    ];
    let lanes = Lanes::start(server.address, lanes).await;
    // A half that is not there costs nothing.
    for lane in [1, 2] {
        let path = path(Behaviour::Waits, true, 4321);
        let client = Client::open(lanes.address(lane), false, &path).await.expect("a WebSocket");
        let ending = client.run(&Plan::default()).await;
        assert!(ending.is_clean() && ending.ms() < 500.0, "not the filter's close: {ending}");
        assert_eq!(lanes.envoy.metric("websocket.closed.clean"), lane as u64);
    }
    let job = Job {
        what: "plain requests".to_owned(),
        unit: "µs per request",
        scale: 1e6,
        first: 2000,
    };
    job.compare(&lanes, requests).await
}
