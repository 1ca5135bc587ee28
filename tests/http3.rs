//! HTTP/3 from the client: a QUIC listener beside the one for TCP, with the same filters. WebSockets over
//! TCP live through HTTP/3 connections; those over HTTP/3 (RFC 9220) are followed and counted, and
//! docs/http2.md says what they see, cell by cell as it is measured here (`make table`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use testbed::closing::{open, run_all};
use testbed::http2::Connection as Http2;
use testbed::http3::Connection;
use testbed::server::{self, path, Behaviour, UPGRADE};
use testbed::streams::{is_documented, scenarios, PATIENCE};
use testbed::{wire, Client, Envoy, Mode, Plan, Server, Setup};
use tokio::io::AsyncWriteExt;

fn filter() -> Setup {
    Setup { quic: true, ..Setup::new(Mode::Filter) }
}

/// Closes them all at once: each is clean and immediate.
async fn close_all(clients: Vec<Client>) {
    let plan = Plan { patience: Duration::from_secs(4), ..Plan::close(4000) };
    for ending in run_all(clients, &plan).await {
        assert!(ending.code() == 4000 && ending.is_clean(), "{ending:?}");
        assert!(ending.is_immediate(), "{ending:?}");
    }
}

fn is_well(envoy: &Envoy) {
    let log = envoy.log();
    for bad in ["panicked", "wasm vm", "[error][wasm]", "[critical]"] {
        assert!(!log.contains(bad), "{bad}:\n{log}");
    }
}

/// A client that opens HTTP/3 connections harms nobody: in one VM, and in two.
#[tokio::test(flavor = "multi_thread")]
async fn websockets_over_tcp_live_through_http3() {
    let server = Server::start().await;
    for network_vm in ["ws", "another"] {
        let envoy = Setup { network_vm, ..filter() }.start(server.address).await;
        let mut clients = Vec::new();
        for _ in 0..50 {
            clients.push(open(envoy.address(), &path(Behaviour::Waits, false, 0)).await);
        }
        for _ in 0..5 {
            let mut connection = Connection::open(envoy.address()).await;
            assert_eq!(connection.get("/plain").await, 200);
        }
        close_all(clients).await;
        assert_eq!(envoy.metric("websocket.active"), 0);
        assert_eq!(envoy.metric("websocket.closed.clean"), 50);
        assert_eq!(envoy.metric("websocket.unpaired"), 0);
        is_well(&envoy);
    }
}

/// Each configuration in each place, doubled, and replaced while connections are open: everything
/// passes.
#[tokio::test(flavor = "multi_thread")]
async fn misplaced_on_a_quic_listener() {
    let server = Server::start().await;
    let change = |config: &mut Option<Value>| {
        if let Some(config) = config {
            config["closeHandshakeTimeout"] = json!("3s");
        }
    };
    for (http, network) in
        [("http", "network"), ("network", "http"), ("http", "http"), ("network", "network")]
    {
        let setup = Setup {
            http_filter: Some(json!({ "attach": http })),
            network_filter: Some(json!({ "attach": network })),
            copies: 2,
            dynamic: true,
            ..filter()
        };
        let mut envoy = setup.start(server.address).await;
        for updated in [false, true] {
            let mut connection = Connection::open(envoy.address()).await;
            assert_eq!(connection.get("/plain").await, 200);
            let socket = connection.websocket("/echo?by=client").await;
            if !updated && http == "http" {
                envoy.update("http", |setup| change(&mut setup.http_filter));
            } else if !updated && network == "http" {
                envoy.update("network", |setup| change(&mut setup.network_filter));
            }
            connection.send(socket, &wire::message(b"hello", true)).await;
            let read = connection.read(socket, 0.3).await;
            assert_eq!(read.frames.len(), 1, "{read:?}");
            let client = open(envoy.address(), &path(Behaviour::Waits, false, 0)).await;
            let plan = Plan { patience: Duration::from_secs(4), ..Plan::close(4000) };
            let ending = client.run(&plan).await;
            assert!(ending.code() == 4000 && ending.is_clean(), "{ending:?}");
        }
        let log = envoy.log();
        assert!(!log.contains("panicked") && !log.contains("wasm vm"), "{log}");
    }
}

/// What the WebSockets of one connection see, each closing in its own way while another talks.
async fn column(envoy: &Envoy) -> Vec<String> {
    let mut connection = Connection::open(envoy.address()).await;
    let echo = connection.websocket("/echo?by=client").await;
    let mut streams = Vec::new();
    for scenario in scenarios() {
        let stream = connection.websocket(&scenario.path).await;
        streams.push((scenario, stream, None, None, Instant::now()));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (scenario, stream, _, _, last) in &mut streams {
        if scenario.closes {
            connection.send(*stream, &wire::close(4000, "", true)).await;
            *last = Instant::now();
        }
    }
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < PATIENCE {
        for (scenario, stream, code, end, last) in &mut streams {
            if end.is_some() {
                continue;
            }
            let read = connection.read(*stream, 0.01).await;
            for frame in read.frames.iter().filter(|frame| frame.is_close()) {
                let (received, _) = wire::read_close(&frame.payload);
                *code = Some(received);
                *last = Instant::now();
                if scenario.answers && !scenario.closes {
                    connection.send(*stream, &wire::close(received, "", true)).await;
                }
            }
            if let Some(how) = read.end {
                *end = Some((how, last.elapsed()));
            }
        }
        connection.send(echo, &wire::message(b"hello", true)).await;
        let read = connection.read(echo, 0.02).await;
        rounds += read.frames.len();
        assert_eq!(read.end, None, "another stream is harmed");
    }
    assert!(rounds > 20 && connection.is_alive().await, "{rounds}");
    assert_eq!(connection.get("/plain").await, 200);
    let cells = streams.into_iter().map(|(_, _, code, end, _)| {
        let code = code.map_or("no code".to_owned(), |code: u16| code.to_string());
        // RFC 9114 §8.1.
        let end = end.map(|(how, took): (String, Duration)| {
            let how = how.replace("reset 0x10f", "RESET_STREAM H3_CONNECT_ERROR");
            (how.replace("reset 0x10b", "RESET_STREAM H3_REQUEST_REJECTED"), took)
        });
        match end {
            None => format!("{code}, stays open"),
            Some((how, took)) => match took.as_secs_f64().round() as u64 {
                0 => format!("{code}, {how}"),
                seconds => format!("{code}, {how} {seconds} s late"),
            },
        }
    });
    cells.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_other_streams() {
    let server = Server::start().await;
    let mut cells = Vec::new();
    for mode in Mode::ALL {
        let setup = Setup { quic: true, ..Setup::new(mode) }
            .with("closeHandshakeTimeout", "2s")
            .with("tcpCloseTimeout", "1s");
        let envoy = setup.start(server.address).await;
        cells.push(column(&envoy).await);
        if mode == Mode::Filter {
            assert_eq!(envoy.metric("websocket.upgrades"), scenarios().len() as u64 + 1);
            assert_eq!(envoy.metric("websocket.unpaired"), 0);
            is_well(&envoy);
        }
    }
    let whats: Vec<_> = scenarios().iter().map(|scenario| scenario.what).collect();
    is_documented("http3", &whats, &cells);
}

/// The operator's Close frames over HTTP/3.
#[tokio::test(flavor = "multi_thread")]
async fn own_close_frames() {
    let server = Server::start().await;
    let setup = filter()
        .with("abnormalClose", json!({ "code": 1012 }))
        .with("maxAge", json!({ "after": "0.5s", "jitter": 0, "endSilentAfter": "1s" }));
    let envoy = setup.start(server.address).await;
    let mut connection = Connection::open(envoy.address()).await;
    let dies = connection.websocket(&path(Behaviour::FinWithoutClose, true, 0)).await;
    let talks = connection.websocket("/talks?by=server&every=50").await;
    let silent = connection.websocket("/echo?by=client").await;
    for (stream, code) in [(dies, 1012), (talks, 1001)] {
        let read = connection.read(stream, 2.0).await;
        let close = read.frames.iter().find(|frame| frame.is_close());
        let close = close.map(|frame| wire::read_close(&frame.payload).0);
        assert_eq!(close, Some(code), "{read:?}");
    }
    // Nobody speaks: it is ended, and it alone.
    let read = connection.read(silent, 3.0).await;
    assert!(read.end.is_some_and(|end| end.starts_with("reset")), "{:?}", read.frames);
    assert_eq!(connection.get("/plain").await, 200);
    assert!(envoy.metric("websocket.ended.silent") >= 1);
    assert_eq!(envoy.metric("websocket.sent.abnormal"), 1);
    assert_eq!(envoy.metric("websocket.sent.max_age"), 1);
    is_well(&envoy);
}

/// The server sends much and does not wait: Envoy drops what the client has not taken yet, with or
/// without the filter.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_behind_much_data() {
    let server = much_data_and_no_waiting().await;
    let mut lost = Vec::new();
    for mode in Mode::ALL {
        let envoy = Setup { quic: true, ..Setup::new(mode) }.start(server).await;
        let mut count = [0, 0];
        for _ in 0..5 {
            let mut http2 = Http2::open(envoy.address()).await;
            let mut stream = http2.websocket("/").await.expect("a WebSocket");
            let mut code = false;
            while let Ok(Some(frame)) = stream.next().await {
                code |= frame.is_close();
            }
            count[0] += usize::from(!code);
            let mut http3 = Connection::open(envoy.address()).await;
            let stream = http3.websocket("/").await;
            let read = http3.read(stream, 3.0).await;
            count[1] += usize::from(!read.frames.iter().any(|frame| frame.is_close()));
        }
        println!("{}: code lost in {count:?} of 5 over HTTP/2 and HTTP/3", mode.name());
        lost.push(count);
    }
    assert!(lost[2][0] <= lost[0][0] && lost[2][1] <= lost[0][1], "{lost:?}");
}

/// A server that sends 1 MB, its Close frame and FIN, and reads on.
async fn much_data_and_no_waiting() -> SocketAddr {
    server::scripted(UPGRADE, |mut tcp, _| async move {
        tcp.write_all(&wire::message(&vec![b'x'; 1 << 20], false)).await?;
        tcp.write_all(&wire::close(4321, "", false)).await?;
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await
    })
    .await
}
