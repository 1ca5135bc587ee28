//! Plain HTTP is untouched, and uploads keep their early replies.

use lab::node::{self, Replies};
use lab::{wire, Mode, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A 3 MB POST that is answered 403 before it is read: every reply arrives with the filter on the
/// listener. With `delayed_close_timeout: 0s` they are lost.
#[tokio::test(flavor = "multi_thread")]
async fn early_replies_to_uploads_arrive() {
    const UPLOADS: u32 = 40;
    let server = Server::start().await;
    let arrived = async |mode| {
        let envoy = Setup::new(mode).hops(2).start(server.address).await;
        let replies = node::upload(envoy.address(), UPLOADS);
        println!("{mode:?}: {replies:?} of {UPLOADS} each");
        replies
    };
    let all = Replies { http: UPLOADS, fetch: UPLOADS };
    assert_eq!(arrived(Mode::Filter).await, all);
    assert_eq!(arrived(Mode::Default).await, all);
    let lost = arrived(Mode::Baseline).await;
    assert!(lost.http < UPLOADS, "the baseline loses none: the test proves nothing");
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
