//! Every close ends well: time limits, owed answers, odd frames, peers that vanish.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::server::{path, raw_path, Behaviour};
use testbed::{wire, Client, End, Ending, Envoy, Mode, Plan, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

const PROMPT: f64 = 600.0;

async fn open(address: SocketAddr, path: &str) -> Client {
    Client::open(address, false, path).await.unwrap_or_else(|e| panic!("{path}: {e}"))
}

async fn run(address: SocketAddr, path: &str, plan: &Plan) -> Ending {
    open(address, path).await.run(plan).await
}

fn unanswering() -> Plan {
    Plan { answer: false, patience: Duration::from_secs(3), ..Plan::default() }
}

fn closing() -> Plan {
    Plan { patience: Duration::from_secs(3), ..Plan::close(4000) }
}

/// A closing handshake that hangs, the side that began and what the client does.
fn hanging() -> [(&'static str, String, Plan); 4] {
    [
        ("handshake", path(Behaviour::Waits, true, 4321), unanswering()),
        ("handshake", path(Behaviour::Ignores, false, 0), closing()),
        (
            "tcp",
            path(Behaviour::NeverCloses, true, 4321),
            Plan { patience: Duration::from_secs(3), ..Plan::default() },
        ),
        ("tcp", path(Behaviour::NeverCloses, false, 0), closing()),
    ]
}

/// Each limit, whoever began: the connection ends with FIN within the limit plus 100 ms.
#[tokio::test(flavor = "multi_thread")]
async fn limits() {
    const LIMIT: f64 = 500.0;
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter)
        .hops(2)
        .with("closeHandshakeTimeout", "0.5s")
        .with("tcpCloseTimeout", "0.5s");
    let envoy = setup.start(server.address).await;
    for hops in [1, 2] {
        for (limit, path, plan) in hanging() {
            let start = Instant::now();
            let ending = run(envoy.entry(hops), &path, &plan).await;
            // From the beginning: where the inner hop is first, the outer one still gives the answer
            // that the client is owed.
            let ms = start.elapsed().as_secs_f64() * 1000.0;
            println!("{hops} hops, {limit}, {path}: {ending}, {ms:.0} ms in all");
            assert_eq!(ending.end, End::Fin, "{path}: {ending:?}");
            // The promise is 100 ms beyond it; a busy machine is given as much again.
            assert!((LIMIT - 50.0..=LIMIT + 200.0).contains(&ms), "{path}: {ending:?}, {ms}");
        }
    }
    for limit in ["handshake", "tcp"] {
        // The hops race for it: the one that is later finds the connection gone.
        let count = envoy.metric(&format!("websocket.timeout.{limit}"));
        assert!((4..=6).contains(&count), "{limit}: {count}");
    }
    assert_eq!(envoy.metric("websocket.active"), 0);
    wait_until(|| server.open() == 0, "the server's connections end as well").await;
}

/// `"0s"` turns each limit off, and leaves the other.
#[tokio::test(flavor = "multi_thread")]
async fn no_limits() {
    let server = Server::start().await;
    for (off, on) in [("closeHandshakeTimeout", "tcp"), ("tcpCloseTimeout", "handshake")] {
        let setup = Setup::new(Mode::Filter)
            .with("closeHandshakeTimeout", "0.2s")
            .with("tcpCloseTimeout", "0.2s")
            .with(off, "0s");
        let envoy = setup.start(server.address).await;
        for (limit, path, plan) in hanging() {
            let ending = run(envoy.address(), &path, &plan).await;
            let expected = if limit == on { End::Fin } else { End::Never };
            assert_eq!(ending.end, expected, "{off} off, {path}: {ending:?}");
        }
    }
}

/// Thousands of closing handshakes hang at once, on one worker: each ends in time; and when nobody waits
/// any more, nothing ticks.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_hang() {
    const COUNT: usize = 3000;
    let server = Server::start().await;
    let setup = Setup { workers: 1, ..Setup::new(Mode::Filter) };
    let envoy = setup.with("closeHandshakeTimeout", "1s").start(server.address).await;
    let mut clients = Vec::new();
    for _ in 0..COUNT {
        clients.push(open(envoy.address(), &path(Behaviour::Ignores, false, 0)).await);
    }
    let plan = Plan { patience: Duration::from_secs(10), ..Plan::close(4000) };
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|client| {
            let plan = plan.clone();
            tokio::spawn(async move { client.run(&plan).await })
        })
        .collect();
    let mut latest = 0.0_f64;
    for task in tasks {
        let ending = task.await.expect("a close does not panic");
        assert_eq!(ending.end, End::Fin, "{ending:?}");
        latest = latest.max(ending.ms());
    }
    println!(
        "the latest of {COUNT} ended {latest:.0} ms after its Close frame; the limit is 1,000 ms"
    );
    let log = envoy.log();
    assert!(!log.contains("[error][wasm]"), "{log}");
    // Without the limit it would be never; three thousand ends take their time on a slow machine.
    assert!(latest < 6000.0);
    assert_eq!(envoy.metric("websocket.timeout.handshake"), COUNT as u64);
    assert_eq!(envoy.metric("websocket.active"), 0);

    tokio::time::sleep(Duration::from_millis(1200)).await;
    envoy.post("/logging?wasm=trace");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let log = envoy.log();
    assert!(!log.contains("proxy_on_tick"), "it ticks");
    // The log would show it.
    run(envoy.address(), &path(Behaviour::Waits, true, 1000), &Plan::default()).await;
    assert!(envoy.log().contains("proxy_on_response_body"));
}

fn control(opcode: Control, payload: &[u8], masked: bool) -> Vec<u8> {
    wire::frame(OpCode::Control(opcode), true, payload, masked)
}

fn text(fin: bool, payload: &[u8], masked: bool) -> Vec<u8> {
    wire::frame(OpCode::Data(Data::Text), fin, payload, masked)
}

fn rest_of_message(payload: &[u8], masked: bool) -> Vec<u8> {
    wire::frame(OpCode::Data(Data::Continue), true, payload, masked)
}

/// Close frames of all kinds: their bytes, the counter for their code, and the code of the answer
/// that a client is owed for one.
fn odd_closes(masked: bool) -> Vec<(&'static str, Vec<u8>, &'static str, u16)> {
    let close = |payload: &[u8]| control(Control::Close, payload, masked);
    let code = |code: u16, reason: &[u8]| [&code.to_be_bytes(), reason].concat();
    vec![
        ("an empty payload", close(b""), "1005", 1005),
        ("one byte", close(b"\x03"), "invalid", 1002),
        ("a code that may not be on the wire", close(&code(1006, b"")), "invalid", 1002),
        ("broken UTF-8", close(&code(4000, b"\xff")), "invalid", 1002),
        ("the longest reason", close(&code(4000, &[b'x'; 123])), "private", 4000),
        (
            "behind a message in fragments, and a Ping",
            [
                text(false, b"a", masked),
                control(Control::Ping, b"?", masked),
                rest_of_message(b"b", masked),
                close(&code(1000, b"")),
            ]
            .concat(),
            "1000",
            1000,
        ),
        (
            "in the middle of a message in fragments",
            [text(false, b"a", masked), close(&code(1001, b""))].concat(),
            "1001",
            1001,
        ),
    ]
}

/// Odd Close frames of the server: they pass as they are, and the close is as prompt as any.
#[tokio::test(flavor = "multi_thread")]
async fn odd_closes_of_the_server() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    for (what, bytes, counter, _) in odd_closes(false) {
        let counter = format!("websocket.code.{counter}");
        let before = envoy.metric(&counter);
        let direct = run(server.address, &raw_path(&bytes), &Plan::default()).await;
        let ending = run(envoy.address(), &raw_path(&bytes), &Plan::default()).await;
        assert_eq!(ending.close, direct.close, "{what}: {ending:?}");
        assert!(ending.is_clean() && ending.ms() < PROMPT, "{what}: {ending:?}");
        assert_eq!(envoy.metric(&counter), before + 2, "{what}");
    }
    assert_eq!(envoy.metric("websocket.untracked"), 0);
}

/// Odd Close frames of the client, answered by the server and not; whole and in single bytes. Where
/// the server drops TCP, the client is answered as RFC 6455 has it.
#[tokio::test(flavor = "multi_thread")]
async fn odd_closes_of_the_client() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    for (what, bytes, _, owed) in odd_closes(true) {
        for single in [false, true] {
            for behaviour in [Behaviour::Waits, Behaviour::Hasty, Behaviour::Resets] {
                let mut client = open(envoy.address(), &path(behaviour, false, 0)).await;
                let step = if single { 1 } else { bytes.len() };
                for bytes in bytes.chunks(step) {
                    client.stream.write_all(bytes).await.expect("open");
                    if single {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                let what = format!("{what}, {behaviour:?}, in single bytes: {single}");
                let ending = client.run(&unanswering()).await;
                assert!(ending.end == End::Fin && ending.ms() < PROMPT, "{what}: {ending:?}");
                if behaviour != Behaviour::Waits {
                    assert_eq!(ending.close, Some((owed, String::new())), "{what}: {ending:?}");
                }
            }
        }
        server.take_closes();
    }
    assert_eq!(envoy.metric("websocket.untracked"), 0);
    assert_eq!(envoy.metric("websocket.closed.abnormal"), 0);
}

/// A code for the clients of a server that dies, and never more than one Close frame.
#[tokio::test(flavor = "multi_thread")]
async fn abnormal_closes() {
    let server = Server::start().await;
    let abnormal = serde_json::json!({ "code": 1012, "reason": "restarting" });
    let setup = Setup::new(Mode::Filter).hops(2).with("abnormalClose", abnormal);
    let envoy = setup.start(server.address).await;
    let restarting = Some((1012, "restarting".to_owned()));
    for hops in [1, 2] {
        let address = envoy.entry(hops);
        let vanished = run(address, &path(Behaviour::Vanishes, true, 0), &Plan::default()).await;
        assert_eq!((&vanished.close, vanished.extra), (&restarting, 0), "{vanished:?}");
        assert!(vanished.ms() < PROMPT, "{vanished:?}");
        // Inside a frame of the server there is no place for one.
        let cut = run(address, &path(Behaviour::DiesInFrame, true, 0), &Plan::default()).await;
        assert_eq!((cut.code(), cut.payload), (1006, 50), "{cut:?}");
        assert!(cut.ms() < PROMPT, "{cut:?}");
        // The server's own is enough; and the client's is answered with the client's code.
        let hasty = run(address, &path(Behaviour::Hasty, true, 4321), &Plan::default()).await;
        assert_eq!((hasty.code(), hasty.extra), (4321, 0), "{hasty:?}");
        let answered = run(address, &path(Behaviour::Hasty, false, 0), &closing()).await;
        assert_eq!((answered.code(), answered.extra), (4000, 0), "{answered:?}");
    }
    // The outer hop sees the Close frame of the inner one and adds none.
    assert_eq!(envoy.metric("websocket.sent.abnormal"), 2);
    assert_eq!(envoy.metric("websocket.sent.answer"), 2);
}

/// Both begin at once: each gets the other's code, and nobody waits.
#[tokio::test(flavor = "multi_thread")]
async fn both_at_once() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    let path = format!("{}&after=20", path(Behaviour::Waits, true, 4321));
    for i in 0..60 {
        // Around the moment in which the server does, so that the frames cross at every place.
        let after = Duration::from_micros(18_000 + i * 100);
        let plan = Plan { close: Some((4000, "mine".to_owned(), after)), ..Plan::default() };
        let ending = run(envoy.address(), &path, &plan).await;
        assert!(matches!(ending.code(), 4321 | 4000), "{ending:?}");
        assert!(ending.is_clean() && ending.ms() < PROMPT, "{ending:?}");
    }
    assert_eq!(envoy.metric("websocket.closed.clean"), 120);
    assert_eq!(envoy.metric("websocket.timeout.tcp"), 0);
}

/// A client that vanishes, with FIN or RST, in mid-life or with the server's Close frame unanswered:
/// the server learns of it at once, and no one is left.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    for reset in [false, true] {
        for path in ["/echo?by=client".to_owned(), path(Behaviour::Waits, true, 4321)] {
            let mut tcp = TcpStream::connect(envoy.address()).await.expect("a connection");
            tcp.write_all(wire::opening_handshake(&path).as_bytes()).await.expect("open");
            wire::read_head(&mut tcp).await.expect("a response");
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(server.open(), 1);
            if reset {
                tcp.set_zero_linger().expect("a socket");
            }
            drop(tcp);
            wait_until(|| server.open() == 0, "the server learns of it").await;
        }
    }
    wait_until(|| envoy.metric("websocket.active") == 0, "nothing is left").await;
    assert_eq!(envoy.metric("websocket.closed.abnormal"), 4);
    assert_eq!(envoy.metric("websocket.closed.server_only"), 4);
}

async fn wait_until(reached: impl Fn() -> bool, what: &str) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_millis(600), "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What breaks the protocol is not the proxy's to judge: it passes, in both directions, is counted,
/// and the stream ends as soon as its server does.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_protocol() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let faults: [(&str, &[u8]); 5] = [
        ("a reserved opcode", &[0x83, 0x01, b'x']),
        ("a Ping in fragments", &[0x09, 0x00]),
        ("a Close frame of more than 125 bytes", &[0x88, 126, 0, 126]),
        ("a length with its top bit set", &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 1]),
        ("no frames at all", b"this is not a WebSocket any more"),
    ];
    for (i, (what, fault)) in faults.iter().enumerate() {
        let mut client = open(envoy.address(), "/mirror?after=300").await;
        let said = [&wire::message(b"fine", true), *fault, &[0xff; 300]].concat();
        client.stream.write_all(&said).await.expect("open");
        let mut heard = Vec::new();
        let sent = Instant::now();
        client.stream.read_to_end(&mut heard).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(heard, said, "{what}");
        assert!(sent.elapsed() < Duration::from_millis(900), "{what}: {:?}", sent.elapsed());
        assert_eq!(envoy.metric("websocket.untracked"), i as u64 + 1, "{what}");
    }
    assert_eq!(envoy.metric("websocket.closed.abnormal"), faults.len() as u64);
    assert_eq!(envoy.metric("websocket.active"), 0);
}

/// A client that does not wait for the 101: what it sent was not followed, and passes.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_the_101() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let mut tcp = TcpStream::connect(envoy.address()).await.expect("a connection");
    let mut said = wire::opening_handshake("/mirror?after=300").into_bytes();
    let message = wire::message(b"hasty", true);
    said.extend(&message);
    tcp.write_all(&said).await.expect("open");
    let (_, mut heard) = wire::read_head(&mut tcp).await.expect("a response");
    tcp.read_to_end(&mut heard).await.expect("FIN");
    assert_eq!(heard, message);
    assert_eq!(envoy.metric("websocket.untracked"), 1);
}

/// The server is killed (SIGKILL) in mid-life: the client knows at once, and is told no tale.
#[tokio::test(flavor = "multi_thread")]
async fn killed_servers() {
    let mut sample = testbed::node::Sample::start(false, 0);
    let envoy: Envoy = Setup::new(Mode::Filter).hops(2).start(sample.address).await;
    let client = open(envoy.address(), "/").await;
    let task = tokio::spawn(async move { client.run(&unanswering()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let killed = Instant::now();
    sample.kill();
    let ending = task.await.expect("a close does not panic");
    assert_eq!((ending.code(), ending.end), (1006, End::Fin), "{ending:?}");
    assert!(killed.elapsed() < Duration::from_millis(600), "{:?}", killed.elapsed());
}
