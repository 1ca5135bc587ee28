//! Servers and clients that end without a Close frame.

use std::time::{Duration, Instant};

use testbed::closing::{open, run, until_within, IMMEDIATE};
use testbed::server::{path, Behaviour};
use testbed::{wire, End, Envoy, Mode, Plan, Server, Setup};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{closing, unanswering};

/// A code for the clients of a server that ends without a Close frame, and never more than one Close frame.
#[tokio::test(flavor = "multi_thread")]
async fn abnormal_closes() {
    let server = Server::start().await;
    let abnormal = serde_json::json!({ "code": 1012, "reason": "restarting" });
    let setup = Setup::new(Mode::Filter).hops(2).with("abnormalClose", abnormal);
    let envoy = setup.start(server.address).await;
    let restarting = Some((1012, "restarting".to_owned()));
    for hops in [1, 2] {
        let address = envoy.entry(hops);
        let gone = run(address, &path(Behaviour::FinWithoutClose, true, 0), &Plan::default()).await;
        assert_eq!((&gone.close, gone.extra), (&restarting, 0), "{gone:?}");
        assert!(gone.is_immediate(), "{gone:?}");
        // Inside a frame of the server there is no place for one.
        let cut = run(address, &path(Behaviour::DiesInFrame, true, 0), &Plan::default()).await;
        assert_eq!((cut.code(), cut.payload), (1006, 50), "{cut:?}");
        assert!(cut.is_immediate(), "{cut:?}");
        // The server's own is enough; and the client's is answered with the client's code.
        let no_wait =
            run(address, &path(Behaviour::FinWithoutWaiting, true, 4321), &Plan::default()).await;
        assert_eq!((no_wait.code(), no_wait.extra), (4321, 0), "{no_wait:?}");
        let answered =
            run(address, &path(Behaviour::FinWithoutWaiting, false, 0), &closing()).await;
        assert_eq!((answered.code(), answered.extra), (4000, 0), "{answered:?}");
    }
    // The outer hop sees the Close frame of the inner one and adds none.
    assert_eq!(envoy.metric("websocket.sent.abnormal"), 2);
    assert_eq!(envoy.metric("websocket.sent.answer"), 2);
}

/// A client that ends TCP, with FIN or RST, in mid-life or with the server's Close frame unanswered:
/// the server learns of it at once, and no one is left.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_end_without_close() {
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
            let what = || "the server learns of it".to_owned();
            until_within(IMMEDIATE, what, || server.open() == 0).await;
        }
    }
    let what = || "nothing is left".to_owned();
    until_within(IMMEDIATE, what, || envoy.metric("websocket.active") == 0).await;
    assert_eq!(envoy.metric("websocket.closed.abnormal"), 4);
    assert_eq!(envoy.metric("websocket.closed.server_only"), 4);
}

/// The server is killed (SIGKILL) in mid-life: the client learns of it at once, and gets no code that nobody sent.
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
    assert!(killed.elapsed() < IMMEDIATE, "{:?}", killed.elapsed());
}
