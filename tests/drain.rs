//! `maxAge` and `drain`: WebSockets that the filter closes with a Close frame of its own, or ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{json, Value};
use testbed::browser::{Browser, Closing, Kind};
use testbed::closing::until;
use testbed::http2::Connection;
use testbed::node::Sample;
use testbed::{tokens, wire, Envoy, Mode, Server, Setup};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::WebSocketStream;

/// A client that takes no liberties: tungstenite fails where anything follows a Close frame.
struct WebSocket {
    socket: WebSocketStream<TcpStream>,
    /// A little before it was opened, so that no age is less than the time from here.
    begun: Instant,
}

impl WebSocket {
    async fn open(address: SocketAddr, path: &str) -> Self {
        let begun = Instant::now();
        let tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.set_nodelay(true).expect("a socket");
        let url = format!("ws://{address}{path}");
        let (socket, _) = tokio_tungstenite::client_async(url, tcp).await.expect("a WebSocket");
        Self { socket, begun }
    }

    async fn say(&mut self, text: &'static str) {
        self.socket.send(Message::text(text)).await.expect("open");
    }
}

/// What a client saw of its WebSocket up to the end of TCP.
#[derive(Debug)]
struct Seen {
    /// The server's numbers.
    numbers: Vec<u32>,
    /// Those of its Ping frames.
    pings: usize,
    close: Option<(u16, String)>,
    /// From before it was opened to the Close frame, and from there to the end.
    after: Duration,
    end: Duration,
    closed_at: Instant,
    error: Option<Error>,
}

impl Seen {
    /// Both Close frames, FIN, and no message lost before.
    fn is_clean(&self) -> bool {
        let in_order = self.numbers.iter().enumerate().all(|(i, &n)| n as usize == i);
        self.close.is_some() && self.error.is_none() && in_order
    }

    /// FIN before any limit of the filter's, or Envoy's second.
    fn is_prompt(&self) -> bool {
        self.end < Duration::from_millis(900)
    }

    fn is(&self, code: u16, reason: &str) -> bool {
        self.is_clean() && self.is_prompt() && self.close == Some((code, reason.to_owned()))
    }
}

/// Reads to the end of TCP, saying something itself `every` so often.
async fn follow(socket: WebSocket, every: Option<Duration>) -> Seen {
    let WebSocket { mut socket, begun } = socket;
    let (mut numbers, mut pings, mut close, mut error) = (Vec::new(), 0, None, None);
    let mut after = Duration::ZERO;
    let mut said = 0_u32;
    let mut next = tokio::time::Instant::now();
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = tokio::time::sleep_until(next), if every.is_some() && close.is_none() => {
                next += every.unwrap_or_default();
                if socket.send(Message::text(said.to_string())).await.is_ok() {
                    said += 1;
                }
                continue;
            }
        };
        match message {
            None => break,
            Some(Ok(Message::Text(text))) => {
                numbers.push(text.trim_end().parse().expect("a number"))
            }
            Some(Ok(Message::Ping(_))) => pings += 1,
            Some(Ok(Message::Close(frame))) => {
                after = begun.elapsed();
                close = Some(frame.map_or((1005, String::new()), |frame| {
                    (frame.code.into(), frame.reason.to_string())
                }));
            }
            Some(Ok(_)) => {}
            Some(Err(e)) => {
                error = Some(e);
                break;
            }
        }
    }
    Seen {
        numbers,
        pings,
        close,
        after,
        end: begun.elapsed() - after,
        closed_at: begun + after,
        error,
    }
}

/// `maxAge` without jitter.
fn max_age(after: &str) -> Value {
    json!({ "after": after, "jitter": 0, "code": 1001, "reason": "too old" })
}

/// What the server saw: ordinary closes of clients.
fn server_saw(server: &Server, code: u16, reason: &str, count: usize) {
    let closes = server.take_closes();
    assert_eq!(closes, vec![(code, reason.to_owned()); count]);
}

/// The server talks: the client is told behind the first message after the time, over each number of
/// hops, whatever the server's messages look like; the server sees the client's close.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_talks() {
    let server = Server::start().await;
    for hops in [1, 2] {
        let setup = Setup::new(Mode::Filter).with("maxAge", max_age("0.3s")).hops(hops);
        let envoy = setup.patient().start(server.address).await;
        for (path, count, often, flood) in [
            ("/talks?by=server&every=20", 8, 3, false),
            ("/talks?by=server&every=20&ping=1", 8, 3, false),
            // Fragments are put together before the Close frame.
            ("/talks?by=server&every=20&fragments=7", 8, 1, false),
            // Frames that do not fit one chunk.
            ("/talks?by=server&every=50&size=70000", 8, 3, false),
            // Frames of 1 MiB, one behind the other: cut where one ends.
            ("/talks?by=server&every=1&size=1048576", 2, 1, true),
        ] {
            let sockets = (0..count).map(|_| async {
                follow(WebSocket::open(envoy.address(), path).await, None).await
            });
            for seen in futures_util::future::join_all(sockets).await {
                assert!(seen.is_clean(), "{hops} hops, {path}: {seen:?}");
                assert!(seen.numbers.len() + seen.pings >= often, "{path}: {seen:?}");
                if hops == 1 {
                    assert_eq!(seen.close, Some((1001, "too old".to_owned())), "{path}");
                }
                // In a flood the Close frame stands behind what the client has yet to read, and the
                // server's end behind what it has yet to send: when they come is the machine's to say.
                assert!(flood || seen.is_prompt(), "{hops} hops, {path}: {seen:?}");
                let latest = if flood { u128::MAX } else { 1500 };
                assert!((300..latest).contains(&seen.after.as_millis()), "{path}: {seen:?}");
            }
            until("the server has ended all", || server.open() <= 2 * hops).await;
            let closes = server.take_closes();
            assert_eq!(closes.len(), count, "{path}");
            assert!(closes.iter().all(|(code, _)| *code == 1001), "{path}: {closes:?}");
        }
        assert_eq!(envoy.metric("websocket.active"), 0);
        assert_eq!(envoy.timers_expired(), 0, "{hops} hops");
        assert_eq!(envoy.over_hops("upstream_rq_rx_reset"), 0);
        if hops == 1 {
            assert_eq!(envoy.metric("websocket.sent.max_age"), 34);
            assert_eq!(envoy.metric("websocket.closed.clean"), 34);
            assert_eq!(envoy.metric("websocket.code.1001"), 34);
            assert_eq!(envoy.metric("websocket.initiator.server"), 0);
            let log = envoy.access_log(1);
            assert_eq!(log.len(), 34);
            for line in log {
                assert_eq!(line["close_initiator"], "filter", "{line}");
                assert_eq!(line["close_code"], "1001", "{line}");
                assert_eq!(line["close_reason"], "too old", "{line}");
                assert_eq!(line["close_outcome"], "clean", "{line}");
            }
        }
    }
}

/// A message whose fragments do not come is not waited for longer than a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_finished() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter).with("maxAge", max_age("0.3s"));
    let envoy = setup.start(server.address).await;
    let socket =
        WebSocket::open(envoy.address(), "/talks?by=server&every=200&fragments=1000").await;
    let seen = follow(socket, None).await;
    assert!(seen.is(1001, "too old"), "{seen:?}");
    assert!((1300..2900).contains(&seen.after.as_millis()), "{seen:?}");
    server_saw(&server, 1001, "too old", 1);
}

/// Only the client talks: after a second the server is asked in its name, and answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_talks() {
    let server = Server::start().await;
    for hops in [1, 2] {
        let setup = Setup::new(Mode::Filter).with("maxAge", max_age("0.3s")).hops(hops);
        let envoy = setup.start(server.address).await;
        let socket = WebSocket::open(envoy.address(), "/talks?by=server").await;
        let seen = follow(socket, Some(Duration::from_millis(10))).await;
        // The server answers as servers do, with the code alone. If the client goes on sending,
        // its connection is left to Envoy's delayed close.
        assert_eq!(seen.close, Some((1001, String::new())), "{seen:?}");
        assert!(seen.end < Duration::from_millis(1500), "{seen:?}");
        assert!((1300..2900).contains(&seen.after.as_millis()), "{seen:?}");
        server_saw(&server, 1001, "too old", 1);
        // What the client said before arrived, and nothing behind the Close frame.
        let messages = server.take_messages();
        assert!(messages.len() > 50, "{}", messages.len());
        let expected = (0..messages.len()).map(|n| n.to_string().into_bytes());
        assert!(messages.iter().cloned().eq(expected), "{messages:?}");
        assert_eq!(envoy.metric("websocket.active"), 0);
        assert_eq!(envoy.over_hops("outlier_detection.ejections_enforced_total"), 0);
    }
}

/// Both talk: the client is told, and what it still says reaches the server.
#[tokio::test(flavor = "multi_thread")]
async fn both_talk() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter).with("maxAge", max_age("0.3s"));
    let envoy = setup.start(server.address).await;
    for _ in 0..10 {
        let socket = WebSocket::open(envoy.address(), "/talks?by=server&every=3").await;
        let seen = follow(socket, Some(Duration::from_millis(1))).await;
        assert!(seen.is(1001, "too old"), "{seen:?}");
    }
    server_saw(&server, 1001, "too old", 10);
}

/// Nobody talks: nobody can be told. The WebSocket lives on until somebody does.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_talks() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter).with("maxAge", max_age("0.3s"));
    let envoy = setup.start(server.address).await;
    let mut socket = WebSocket::open(envoy.address(), "/echo?by=client").await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(envoy.metric("websocket.active"), 1);
    socket.say("0").await;
    let seen = follow(socket, None).await;
    // The answer comes before the Close frame.
    assert!(seen.is(1001, "too old") && seen.numbers == [0], "{seen:?}");
}

/// The peers that do not do their part are ended by the limits of every closing handshake.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_answer() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter)
        .with("maxAge", max_age("0.1s"))
        .with("closeHandshakeTimeout", "0.5s");
    let envoy = setup.start(server.address).await;
    // A client that does not answer the Close frame.
    let mut client =
        testbed::Client::open(envoy.address(), "/talks?by=server&every=20").await.expect("open");
    while !client.frames.next(&mut client.stream).await.expect("open").expect("a frame").is_close()
    {
    }
    let start = Instant::now();
    assert!(client.frames.next(&mut client.stream).await.expect("FIN").is_none());
    assert!((480..800).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(envoy.metric("websocket.timeout.handshake"), 1);
    assert_eq!(envoy.metric("websocket.closed.server_only"), 1);
    // A server that does not answer the request to close, and one that hangs up on it.
    for (path, close) in [
        ("/ignores?by=server", None),
        ("/talks?by=server&answer=no", Some((1001, "too old".to_owned()))),
    ] {
        let socket = WebSocket::open(envoy.address(), path).await;
        let seen = follow(socket, Some(Duration::from_millis(20))).await;
        assert_eq!(seen.close, close, "{path}: {seen:?}");
    }
    assert_eq!(envoy.metric("websocket.timeout.handshake"), 2);
    assert_eq!(envoy.metric("websocket.sent.answer"), 1);
    assert_eq!(envoy.metric("websocket.active"), 0);
}

/// The server closes in the same moments: one of the two is first, and the close is clean.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_closes_too() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter).with("maxAge", max_age("0.3s"));
    let envoy = setup.start(server.address).await;
    let sockets = (0..60).map(|i| {
        let path = format!("/talks?by=server&every=1&code=4321&until={}", 240 + 2 * i);
        let address = envoy.address();
        async move { follow(WebSocket::open(address, &path).await, None).await }
    });
    let seen = futures_util::future::join_all(sockets).await;
    for seen in &seen {
        assert!(seen.is(1001, "too old") || seen.is(4321, "bye"), "{seen:?}");
    }
    let own = seen.iter().filter(|seen| seen.is(1001, "too old")).count();
    assert!((1..60).contains(&own), "{own} of 60 were the filter's");
    assert_eq!(envoy.metric("websocket.sent.max_age"), own as u64);
    assert_eq!(envoy.metric("websocket.closed.clean"), 60);
}

/// Of 1,000 that were opened together, each tenth of the time that jitter gives has its share.
#[tokio::test(flavor = "multi_thread")]
async fn ages_are_spread() {
    let server = Server::start().await;
    let age = json!({ "after": "2s", "jitter": 1 });
    let envoy = Setup::new(Mode::Filter).with("maxAge", age).start(server.address).await;
    let sockets = (0..1000).map(|_| async {
        let socket = WebSocket::open(envoy.address(), "/talks?by=server&every=200").await;
        let opening = socket.begun.elapsed();
        let seen = follow(socket, None).await;
        assert!(seen.is(1001, "") && seen.after > Duration::from_secs(2), "{seen:?}");
        seen.after - opening
    });
    let mut tenths = [0; 10];
    for age in futures_util::future::join_all(sockets).await {
        tenths[(((age.as_secs_f64() - 2.0) / 0.2).max(0.0) as usize).min(9)] += 1;
    }
    assert!(tenths.iter().all(|n| (50..200).contains(n)), "{tenths:?}");
}

/// `drain` arrives by ECDS: who is open gets its Close frame within the time, spread over it, on every worker;
/// who is silent stays; who is new has a grace. Without the key, everybody lives on.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollout() {
    let server = Server::start().await;
    let setup = Setup { dynamic: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let talks = "/talks?by=server&every=20";
    let mut open_before = Vec::new();
    for _ in 0..100 {
        let socket = WebSocket::open(envoy.address(), talks).await;
        open_before.push(tokio::spawn(follow(socket, None)));
    }
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(WebSocket::open(envoy.address(), "/echo?by=client").await);
    }
    let drain = |envoy: &mut Envoy, value: Option<Value>| {
        envoy.update("http", |setup| {
            let config =
                setup.http_filter.as_mut().and_then(Value::as_object_mut).expect("an object");
            match value {
                Some(value) => config.insert("drain".into(), value),
                None => config.remove("drain"),
            };
        });
        Instant::now()
    };
    // The configuration arrives between these two.
    let before = Instant::now();
    let start = drain(&mut envoy, Some(json!({ "within": "2s", "reason": "rolling" })));
    let new = WebSocket::open(envoy.address(), talks).await;
    let new = tokio::spawn(follow(new, None));
    let mut halves = [0; 2];
    for client in open_before {
        let seen = client.await.expect("no panic");
        assert!(seen.is(1001, "rolling"), "{seen:?}");
        halves[usize::from(seen.closed_at > start + Duration::from_secs(1))] += 1;
    }
    // The last eleventh of the time is that of the silent, who were opened last.
    assert!(before.elapsed() > Duration::from_millis(1600), "{:?}", before.elapsed());
    assert!(start.elapsed() < Duration::from_millis(2800), "{:?}", start.elapsed());
    assert!(halves.iter().all(|n| (25..=75).contains(n)), "{halves:?}");
    // How an operator sees that it is over: only those that say nothing are left.
    let seen = new.await.expect("no panic");
    assert!(seen.is(1001, "rolling"), "{seen:?}");
    assert!(seen.after > Duration::from_secs(2), "no grace: {seen:?}");
    assert_eq!(envoy.metric("websocket.active"), 10);
    assert_eq!(envoy.metric("websocket.sent.drain"), 101);
    // One of the silent speaks, and goes.
    let mut first = silent.pop().expect("ten");
    first.say("0").await;
    assert!(follow(first, None).await.is(1001, "rolling"));

    // Called off: those that are left live on, and so do new ones.
    drain(&mut envoy, None);
    let mut spared = WebSocket::open(envoy.address(), "/echo?by=client").await;
    for socket in silent.iter_mut().chain([&mut spared]) {
        socket.say("0").await;
        let answer = socket.socket.next().await.expect("open").expect("open");
        assert_eq!(answer, Message::text("0"));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(envoy.metric("websocket.active"), 10);
    assert_eq!(envoy.metric("websocket.sent.drain"), 102);
    drop((silent, spared));
    until("all are gone", || envoy.metric("websocket.active") == 0).await;
}

/// Both keys at once: the first that is due acts, once.
#[tokio::test(flavor = "multi_thread")]
async fn both_keys() {
    let server = Server::start().await;
    for (age, within, reason) in [("0.2s", "2s", "too old"), ("20s", "0.2s", "rolling")] {
        let setup = Setup::new(Mode::Filter)
            .with("maxAge", max_age(age))
            .with("drain", json!({ "within": within, "reason": "rolling" }));
        let envoy = setup.start(server.address).await;
        let seen =
            follow(WebSocket::open(envoy.address(), "/talks?by=server&every=10").await, None).await;
        assert!(seen.is(1001, reason), "{seen:?}");
        assert_eq!(
            envoy.metric("websocket.sent.max_age") + envoy.metric("websocket.sent.drain"),
            1
        );
    }
}

/// What the filter is not to touch: `enforce: false`, and frames that it has lost.
#[tokio::test(flavor = "multi_thread")]
async fn left_alone() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter).with("maxAge", max_age("0.1s")).with("enforce", false);
    let envoy = setup.start(server.address).await;
    let path = "/talks?by=server&every=10&code=4321&until=600";
    let seen = follow(WebSocket::open(envoy.address(), path).await, None).await;
    assert_eq!(seen.close, Some((4321, "bye".into())), "{seen:?}");
    drop(envoy);

    let envoy =
        Setup::new(Mode::Filter).with("maxAge", max_age("0.1s")).start(server.address).await;
    let mut client = TcpStream::connect(envoy.address()).await.expect("a connection");
    let sent = b"\x83\x00 and what is not a frame";
    let path = "/mirror?after=700";
    tokio::io::AsyncWriteExt::write_all(&mut client, wire::opening_handshake(path).as_bytes())
        .await
        .expect("open");
    let (_, mut received) = wire::read_head(&mut client).await.expect("a response");
    for _ in 0..20 {
        tokio::io::AsyncWriteExt::write_all(&mut client, sent).await.expect("open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::io::AsyncReadExt::read_to_end(&mut client, &mut received).await.expect("FIN");
    assert_eq!(received, sent.repeat(20));
    assert_eq!(envoy.metric("websocket.sent.max_age"), 0);
}

/// Browsers, with a server that compresses (`permessage-deflate`), over one and two hops.
#[tokio::test(flavor = "multi_thread")]
async fn in_browsers() {
    for (kind, arguments) in [
        (Kind::Chromium, &["--deflate"][..]),
        (Kind::Chromium, &[]),
        (Kind::Chrome88, &["--deflate"]),
    ] {
        let mut browser = Browser::start(kind);
        let sample = Sample::start_with(false, 0, arguments);
        for hops in [1, 2] {
            let setup = Setup::new(Mode::Filter).hops(hops).with("maxAge", max_age("0.3s"));
            let envoy = setup.start(sample.address).await;
            let url = format!("ws://{}/", envoy.address());
            // A page that has sent what the browser has not yet written is never told of a clean close,
            // with or without a proxy: not too often.
            let closes = browser.closes_at_once(&url, &Closing::Sending(500, 40), 10);
            for close in closes {
                assert!(close.was_clean && close.code == 1001, "{kind:?}, {hops}: {close:?}");
                assert_eq!(close.reason, "too old");
                assert!(close.ms < 900.0, "{close:?}");
                assert_eq!(close.extensions.contains("deflate"), !arguments.is_empty());
            }
            until("Node has seen it", || sample.said("closed: 1001") == 10 * hops).await;
            assert_eq!(envoy.over_hops("upstream_rq_rx_reset"), 0);
        }
    }
}

/// Over HTTP/2 the stream alone is closed.
#[tokio::test(flavor = "multi_thread")]
async fn over_http2() {
    let server = Server::start().await;
    let envoy =
        Setup::new(Mode::Filter).with("maxAge", max_age("0.3s")).start(server.address).await;
    let mut connection = Connection::open(envoy.address()).await;
    let mut stream = connection.websocket("/talks?by=server&every=20").await.expect("a WebSocket");
    let mut messages = 0;
    let close = loop {
        let frame = stream.next().await.expect("open").expect("a frame");
        if frame.is_close() {
            break wire::read_close(&frame.payload);
        }
        messages += 1;
    };
    assert_eq!(close, (1001, "too old".to_owned()));
    assert!(messages >= 10, "{messages}");
    stream.send(wire::close(1001, "", true)).expect("open");
    // The stream ends, however that may look, and nothing else does.
    assert!(!matches!(stream.next().await, Ok(Some(_))));
    server_saw(&server, 1001, "", 1);
    assert_eq!(connection.get("/plain").await.expect("a response"), 200);
    assert!(connection.is_open());
}

/// Drains to the last: whoever speaks is told, whoever does not is ended, and a second behind the time
/// that was given nobody is left. New ones are opened meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_nobody() {
    // `EACH=1000` for figures.
    let each = std::env::var("EACH").ok().and_then(|each| each.parse().ok()).unwrap_or(250);
    let server = Server::start().await;
    let setup = Setup { dynamic: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let mut clients = Vec::new();
    for _ in 0..each {
        // Nobody speaks, the server does, the client does, both do; the server is inside a message that
        // it does not finish, or inside a closing handshake.
        for (path, every) in [
            ("/echo?by=client", None),
            ("/talks?by=server&every=300", None),
            ("/talks?by=server", Some(Duration::from_millis(300))),
            ("/talks?by=server&every=300", Some(Duration::from_millis(300))),
            ("/talks?by=server&every=300&fragments=1000", None),
        ] {
            let socket = WebSocket::open(envoy.address(), path).await;
            clients.push((path, every, tokio::spawn(follow(socket, every))));
        }
    }
    let before = Instant::now();
    envoy.update("http", |setup| {
        let drain = json!({ "within": "2s", "reason": "to the last", "endSilentAfter": "3s" });
        setup.http_filter.as_mut().expect("a configuration")["drain"] = drain;
    });
    let start = Instant::now();
    let mut new = Vec::new();
    for _ in 0..20 {
        new.push(WebSocket::open(envoy.address(), "/echo?by=client").await);
    }
    let (mut told, mut ended, mut last) = (0, 0, Duration::ZERO);
    // When each would open another, in tenths of a second.
    let mut reconnects = [0; 100];
    for (path, every, client) in clients {
        let seen = client.await.expect("no panic");
        let speaks = every.is_some() || path.contains("every");
        match &seen.close {
            Some((1001, _)) => told += 1,
            None => ended += 1,
            other => panic!("{path}: {other:?}"),
        }
        assert_eq!(seen.close.is_some(), speaks, "{path}: {seen:?}");
        last = last.max(start.elapsed());
        let at =
            (seen.closed_at + seen.end).max(start).duration_since(start).as_millis() as usize / 100;
        reconnects[at.min(99)] += 1;
    }
    let busiest: usize =
        reconnects.windows(10).map(|second| second.iter().sum()).max().unwrap_or(0);
    println!(
        "{told} told, {ended} ended, the last after {last:?}; {busiest} reconnects in the busiest second"
    );
    assert_eq!((told, ended), (4 * each, each));
    // Since the configuration arrived, which was between these two.
    assert!(before.elapsed() > Duration::from_secs(3));
    assert!(last < Duration::from_secs(6), "{last:?}");
    // Those that were opened meanwhile may have ended too.
    assert!((each..=each + 20).contains(&(envoy.metric("websocket.ended.silent") as usize)));
    assert_eq!(envoy.metric("websocket.sent.drain"), 4 * each as u64);
    // What was opened meanwhile is due later, and ends in the same way.
    until("nobody is left", || envoy.metric("websocket.active") == 0).await;
    assert!(start.elapsed() < Duration::from_secs(7));
    drop(new);
    let log = envoy.access_log(1);
    let silent = log.iter().filter(|line| line["close_outcome"] == "ended_silent");
    assert!(silent.clone().count() >= each);
    assert!(silent
        .clone()
        .all(|line| line["close_initiator"] == "filter" && line["flags"] != "UC"));
    assert_eq!(envoy.over_hops("outlier_detection.ejections_enforced_total"), 0);
}

/// Envoy's filter, which takes requests without a token too.
fn jwt_authn() -> Value {
    json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "testbed": {
                "issuer": tokens::ISSUER,
                "local_jwks": { "inline_string": tokens::keys().to_string() },
                "from_params": ["token"],
                "payload_in_metadata": "payload",
            }},
            "rules": [{ "match": { "prefix": "/" }, "requires": { "requires_any": { "requirements": [
                { "provider_name": "testbed" }, { "allow_missing": {} },
            ]}}}],
        },
    })
}

/// A WebSocket does not outlive the token that it was opened with.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires() {
    let server = Server::start().await;
    let age = json!({ "claim": "exp", "code": 1008, "reason": "token", "endSilentAfter": "1s" });
    let setup = Setup { filters_in_front: vec![jwt_authn()], ..Setup::new(Mode::Filter) };
    let envoy = setup.with("maxAge", age).start(server.address).await;
    // Expired 20 s ago is still taken by jwt_authn, whose clock may be a minute fast.
    for (left, talks) in [(3, true), (-20_i64, true), (2, false)] {
        let exp = tokens::now().as_secs().saturating_add_signed(left);
        let every = if talks { 50 } else { 0 };
        let path = format!("/talks?by=server&every={every}&token={}", tokens::token(exp));
        let seen = follow(WebSocket::open(envoy.address(), &path).await, None).await;
        let late = tokens::now().as_secs_f64() - exp as f64;
        if talks {
            assert!(seen.is(1008, "token"), "{seen:?}");
            assert!(left < 0 || (0.0..0.5).contains(&late), "{late}");
        } else {
            assert!(seen.close.is_none() && (1.0..1.5).contains(&late), "{late}: {seen:?}");
        }
    }
    // No token, and no `after`: it stays.
    let mut spared = WebSocket::open(envoy.address(), "/echo?by=client").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    spared.say("0").await;
    let answer = spared.socket.next().await.expect("open").expect("open");
    assert_eq!(answer, Message::text("0"));
}
