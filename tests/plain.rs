//! Plain HTTP is untouched, and uploads keep their early replies.

use std::time::Instant;

use testbed::node::{self, Replies};
use testbed::{wire, Mode, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A 3 MB POST that is answered 403 before it is read: every reply arrives with the filter on the
/// listener.
#[tokio::test(flavor = "multi_thread")]
async fn early_replies_to_uploads_arrive() {
    const UPLOADS: u32 = 40;
    let server = Server::start().await;
    for mode in [Mode::Baseline, Mode::Default, Mode::Filter] {
        let envoy = Setup::new(mode).hops(2).start(server.address).await;
        let replies = node::upload(envoy.address(), UPLOADS);
        println!("{mode:?}: {replies:?} of {UPLOADS} each");
        // How many the baseline loses is the scheduler's choice: none where there is one processor.
        // `the_delay_is_kept` shows why.
        if mode != Mode::Baseline {
            assert_eq!(replies, Replies { http: UPLOADS, fetch: UPLOADS }, "{mode:?}");
        }
    }
}

/// What the replies live on: after an early reply Envoy leaves the client a second to read it, with
/// the filter too. With `delayed_close_timeout: 0s` the connection is torn down at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_delay_is_kept() {
    let server = Server::start().await;
    for (mode, seconds) in
        [(Mode::Default, 0.8..1.5), (Mode::Filter, 0.8..1.5), (Mode::Baseline, 0.0..0.5)]
    {
        let envoy = Setup::new(mode).start(server.address).await;
        let mut stream = TcpStream::connect(envoy.address()).await.expect("a connection");
        let head = b"POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n";
        stream.write_all(&[&head[..], &[b'x'; 10_000]].concat()).await.expect("open");
        let (head, mut body) = wire::read_head(&mut stream).await.expect("a response");
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        let replied = Instant::now();
        // FIN or RST: either is the end.
        while stream.read_buf(&mut body).await.is_ok_and(|n| n > 0) {}
        let open = replied.elapsed().as_secs_f64();
        assert!(seconds.contains(&open), "{mode:?}: open for {open} s after the reply");
    }
}

/// Requests on one connection, before and after each other: it is kept alive, and nothing counts.
#[tokio::test(flavor = "multi_thread")]
async fn plain_requests_pass() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let mut stream = TcpStream::connect(envoy.address()).await.expect("a connection");
    for _ in 0..50 {
        stream.write_all(b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
        let (head, mut body) = wire::read_head(&mut stream).await.expect("a response");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        while body.len() < 5 {
            stream.read_buf(&mut body).await.expect("a body");
        }
        assert_eq!(body, b"plain");
    }
    assert_eq!(envoy.metric("websocket.upgrades"), 0);
}

/// An upgrade to something else is none of ours.
#[tokio::test(flavor = "multi_thread")]
async fn only_websockets_are_followed() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let mut stream = TcpStream::connect(envoy.address()).await.expect("a connection");
    // Refused by the server with 200: no WebSocket, though the client asked for one.
    let request =
        "GET /unknown HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("open");
    let (head, _) = wire::read_head(&mut stream).await.expect("a response");
    assert!(!head.contains(" 101 "), "{head}");
    assert_eq!(envoy.metric("websocket.upgrades"), 0);
}
