//! Odd Close frames, and bytes that are no frames.

use std::time::{Duration, Instant};

use testbed::closing::{open, run};
use testbed::server::{path, raw_path, Behaviour};
use testbed::{wire, End, Mode, Plan, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::unanswering;

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
/// that a client expects.
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

/// Odd Close frames of the server: they pass as they are, and the close is immediate.
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
        assert!(ending.is_clean() && ending.is_immediate(), "{what}: {ending:?}");
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
    for (what, bytes, _, answer) in odd_closes(true) {
        for single in [false, true] {
            for behaviour in [Behaviour::Waits, Behaviour::FinWithoutWaiting, Behaviour::Resets] {
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
                assert!(ending.end == End::Fin && ending.is_immediate(), "{what}: {ending:?}");
                if behaviour != Behaviour::Waits {
                    assert_eq!(ending.close, Some((answer, String::new())), "{what}: {ending:?}");
                }
            }
        }
        server.take_closes();
    }
    assert_eq!(envoy.metric("websocket.untracked"), 0);
    assert_eq!(envoy.metric("websocket.closed.abnormal"), 0);
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
