//! Never worse than no filter: peers that do what RFC 6455 does not expect, through default, baseline
//! and filter.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use testbed::closing::{no_more_than, IMMEDIATE};
use testbed::server::{self, UPGRADE};
use testbed::{http2, wire, Envoy, Mode, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tungstenite::protocol::frame::coding::{Data, OpCode};

const MS: Duration = Duration::from_millis(1);

/// A server whose 101 has these headers, and whose WebSockets do what `life` says.
async fn serve_as<F, L>(headers: &'static str, life: F) -> SocketAddr
where
    F: Fn(Peer) -> L + Clone + Send + 'static,
    L: Future<Output = io::Result<()>> + Send + 'static,
{
    server::scripted(headers, move |tcp, rest| life(Peer { tcp, frames: wire::Frames::new(&rest) }))
        .await
}

async fn serve<F, L>(life: F) -> SocketAddr
where
    F: Fn(Peer) -> L + Clone + Send + 'static,
    L: Future<Output = io::Result<()>> + Send + 'static,
{
    serve_as(UPGRADE, life).await
}

/// Either end of a WebSocket.
struct Peer {
    tcp: TcpStream,
    frames: wire::Frames,
}

/// How a client saw it end.
#[derive(Debug, Default)]
struct Seen {
    messages: usize,
    close: Option<u16>,
    reset: bool,
    /// From the Close frame, or the beginning if there was none, to the end.
    took: Duration,
}

impl Peer {
    async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, b"").await
    }

    /// Opens one, and sends `early` together with the request.
    async fn open_with(address: SocketAddr, early: &[u8]) -> Self {
        let mut tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.set_nodelay(true).expect("a socket");
        let request = [wire::opening_handshake("/").as_bytes(), early].concat();
        tcp.write_all(&request).await.expect("open");
        let (head, rest) = wire::read_head(&mut tcp).await.expect("a response");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self { tcp, frames: wire::Frames::new(&rest) }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tcp.write_all(bytes).await
    }

    async fn next(&mut self) -> io::Result<Option<wire::Received>> {
        self.frames.next(&mut self.tcp).await
    }

    /// Reads up to the peer's Close frame; whether there was one.
    async fn until_close(&mut self) -> io::Result<bool> {
        while let Some(frame) = self.next().await? {
            if frame.is_close() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads to the end, as a client, and answers a Close frame if `answers`.
    async fn finish(&mut self, answers: bool) -> Seen {
        let mut seen = Seen::default();
        let mut start = Instant::now();
        loop {
            match tokio::time::timeout(Duration::from_secs(20), self.next()).await {
                Err(_) => panic!("no end: {seen:?}"),
                Ok(Ok(Some(frame))) if frame.is_close() => {
                    let (code, _) = wire::read_close(&frame.payload);
                    assert_eq!(seen.close.replace(code), None, "a second Close frame");
                    start = Instant::now();
                    if answers {
                        let _ = self.send(&wire::close(code, "", true)).await;
                    }
                }
                Ok(Ok(Some(_))) => seen.messages += 1,
                Ok(Ok(None)) => break,
                Ok(Err(_)) => {
                    seen.reset = true;
                    break;
                }
            }
        }
        seen.took = start.elapsed();
        seen
    }
}

fn from_server(payload: &[u8]) -> Vec<u8> {
    wire::message(payload, false)
}

fn from_client(payload: &[u8]) -> Vec<u8> {
    wire::message(payload, true)
}

/// Filter, baseline and default side by side in one process, the filter over one and two hops.
async fn all_modes(server: SocketAddr, setup: Setup) -> Envoy {
    let beside = |mode| {
        let plain = Setup::new(mode);
        Setup {
            http_filter: plain.http_filter,
            network_filter: plain.network_filter,
            delayed_close_timeout: plain.delayed_close_timeout,
            ..setup.clone()
        }
    };
    let beside = vec![beside(Mode::Baseline), beside(Mode::Default)];
    Setup { beside, ..setup }.start(server).await
}

#[test]
fn chance() {
    let differ = |by: [usize; 6]| by.map(|one| (one, 5));
    assert!(no_more_than(&[(0, 0); 6]) && no_more_than(&[(10, 10); 6]));
    assert!(no_more_than(&differ([9, 2, 7, 3, 8, 4])) && no_more_than(&differ([0, 1, 0, 0, 2, 1])));
    assert!(!no_more_than(&differ([9, 10, 9, 8, 10, 9])) && !no_more_than(&[(10, 0); 6]));
}

/// The client closes; the server works off what it was sent, acknowledging each message, and answers
/// later than the limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_works_off_its_messages() {
    const MESSAGES: usize = 60;
    let server = serve(|mut peer| async move {
        let mut messages = 0;
        while let Some(frame) = peer.next().await? {
            if frame.is_close() {
                break;
            }
            messages += 1;
        }
        for _ in 0..messages {
            sleep(50 * MS).await;
            peer.send(&from_server(b"done")).await?;
        }
        peer.send(&wire::close(1000, "", false)).await
    })
    .await;
    let setup = Setup::new(Mode::Filter).hops(2).with("closeHandshakeTimeout", "0.5s");
    let envoy = setup.start(server).await;
    for hops in [1, 2] {
        let mut client = Peer::open(envoy.entry(hops)).await;
        let sent = from_client(b"work").repeat(MESSAGES);
        client.send(&[sent, wire::close(1000, "", true)].concat()).await.expect("open");
        let seen = client.finish(false).await;
        assert_eq!((seen.messages, seen.close, seen.reset), (MESSAGES, Some(1000), false));
    }
    assert_eq!(envoy.metric("websocket.timeout.handshake"), 0);
    assert_eq!(envoy.metric("websocket.closed.clean"), 3);
}

/// The server closes; the client has messages of its own to send before it answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_finishes_what_it_has_to_send() {
    const MESSAGES: usize = 30;
    let received = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&received);
    let server = serve(move |mut peer| {
        let received = Arc::clone(&counter);
        async move {
            peer.send(&wire::close(1001, "", false)).await?;
            while let Some(frame) = peer.next().await? {
                if frame.is_close() {
                    break;
                }
                received.fetch_add(1, Relaxed);
            }
            Ok(())
        }
    })
    .await;
    let setup = Setup::new(Mode::Filter).hops(2).with("closeHandshakeTimeout", "0.5s");
    let envoy = setup.start(server).await;
    for hops in [1, 2] {
        let mut client = Peer::open(envoy.entry(hops)).await;
        assert!(client.until_close().await.expect("open"));
        for _ in 0..MESSAGES {
            sleep(100 * MS).await;
            client.send(&from_client(b"still to send")).await.expect("open");
        }
        client.send(&wire::close(1001, "", true)).await.expect("open");
        let seen = client.finish(false).await;
        assert!(!seen.reset && seen.took < IMMEDIATE, "{seen:?}");
        assert_eq!(received.swap(0, Relaxed), MESSAGES);
    }
}

/// How many of a mode's clients lose the code.
async fn lost_codes<L>(address: SocketAddr, clients: usize, life: fn(Peer) -> L) -> usize
where
    L: Future<Output = bool> + Send + 'static,
{
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let client = Peer::open(address).await;
        tasks.push(tokio::spawn(life(client)));
    }
    let mut lost = 0;
    for task in tasks {
        lost += usize::from(!task.await.expect("a client does not panic"));
    }
    lost
}

/// Sends messages of `len` bytes for as long as it can, and reads meanwhile, slowly enough for the end
/// to come before it reads again; whether it read the code.
async fn sends_and_reads(peer: Peer, len: usize) -> bool {
    let Peer { tcp, mut frames } = peer;
    let (mut read, mut write) = tcp.into_split();
    let message = from_client(&vec![b'm'; len]);
    // A client whose write fails gives up, as browsers do.
    let write = async { while write.write_all(&message).await.is_ok() {} };
    let read = async {
        loop {
            match frames.next(&mut read).await {
                Ok(Some(frame)) if frame.is_close() => return true,
                Ok(Some(_)) => {}
                _ => return false,
            }
        }
    };
    tokio::select! {
        seen = read => seen,
        () = write => false,
    }
}

/// Envoy has stopped reading the client, because the server does not read, when the server closes.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_held_up() {
    let server = serve(|mut peer| async move {
        sleep(1000 * MS).await;
        peer.send(&wire::close(4321, "", false)).await?;
        peer.tcp.shutdown().await?;
        sleep(3000 * MS).await;
        Ok(())
    })
    .await;
    let envoy = all_modes(server, Setup::new(Mode::Filter)).await;
    // Small messages end with a chunk as a rule, large ones do not.
    for life in [|peer| sends_and_reads(peer, 1000), |peer| sends_and_reads(peer, 100_000)] {
        let (lost, baseline, by_default) = tokio::join!(
            lost_codes(envoy.entry(1), 8, life),
            lost_codes(envoy.entry(2), 8, life),
            lost_codes(envoy.entry(3), 8, life),
        );
        println!("code lost: filter {lost}, baseline {baseline}, default {by_default} of 8");
        assert!(lost <= by_default, "{lost}, {by_default}");
    }
}

/// A client whose event loop looks for input after every third message.
async fn looks_now_and_then(mut peer: Peer, pause: Duration) -> bool {
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        for _ in 0..3 {
            sleep(pause).await;
            if peer.send(&from_client(b"tick")).await.is_err() {
                return false;
            }
        }
        let mut bytes = [0; 1000];
        match peer.tcp.try_read(&mut bytes) {
            Ok(0) => return false,
            Ok(len) => peer.frames.extend(&bytes[..len]),
            Err(_) => {}
        }
        if peer.frames.pop().is_some_and(|frame| frame.is_close()) {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_looks_for_input_now_and_then() {
    let server = serve(|mut peer| async move {
        let end = sleep(1500 * MS);
        tokio::pin!(end);
        loop {
            tokio::select! {
                frame = peer.frames.next(&mut peer.tcp) => if frame?.is_none() { return Ok(()) },
                () = &mut end => break,
            }
        }
        peer.send(&wire::close(4321, "", false)).await
    })
    .await;
    let envoy = all_modes(server, Setup::new(Mode::Filter)).await;
    for life in [
        |peer| looks_now_and_then(peer, 20 * MS),
        |peer| looks_now_and_then(peer, 60 * MS),
        |peer| looks_now_and_then(peer, 120 * MS),
    ] {
        let (lost, baseline, by_default) = tokio::join!(
            lost_codes(envoy.entry(1), 10, life),
            lost_codes(envoy.entry(2), 10, life),
            lost_codes(envoy.entry(3), 10, life),
        );
        println!("code lost: filter {lost}, baseline {baseline}, default {by_default} of 10");
        assert!(lost <= by_default, "{lost}, {by_default}");
    }
}

/// Closes of one kind over each of some listeners, in turn, so that a busy moment of the machine is
/// nobody's: how many were reset, and how long they took in the median.
async fn closes<const N: usize>(
    addresses: [SocketAddr; N],
    count: usize,
    asks: bool,
    code: u16,
) -> [(usize, Duration); N] {
    let mut seen = [(); N].map(|()| Vec::new());
    for _ in 0..count {
        for (i, address) in addresses.into_iter().enumerate() {
            let mut client = Peer::open(address).await;
            if asks {
                client.send(&from_client(b"may I?")).await.expect("open");
            }
            let ending = client.finish(true).await;
            assert_eq!(ending.close, Some(code), "{ending:?}");
            seen[i].push(ending);
        }
    }
    seen.map(|mut seen| {
        seen.sort_by_key(|seen| seen.took);
        (seen.iter().filter(|seen| seen.reset).count(), seen[count / 2].took)
    })
}

/// The server sends its Close frame, and FIN a little later. The client is on the proxy's machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_tcp_soon_behind_its_close_frame() {
    const ROUNDS: usize = 6;
    const COUNT: usize = 10;
    let mut all = Vec::new();
    for gap in [0, 300, 1000, 3000].map(Duration::from_micros) {
        let server = serve(move |mut peer| async move {
            sleep(20 * MS).await;
            peer.send(&wire::close(4321, "", false)).await?;
            let end = Instant::now() + gap;
            while Instant::now() < end {
                tokio::task::yield_now().await;
            }
            peer.tcp.shutdown().await?;
            peer.until_close().await.map(drop)
        })
        .await;
        let rounds = in_turn(server, 1, ROUNDS, COUNT, false, 4321).await;
        println!("gap {gap:?}: RST of {COUNT}, filter and baseline: {rounds:?}");
        all.extend(rounds);
    }
    assert!(no_more_than(&all), "{all:?}");
}

/// Rounds with an Envoy of their own each: in how many closes of each the filter's clients, and the baseline's, were reset.
/// Immediate, all of them.
async fn in_turn(
    server: SocketAddr,
    hops: usize,
    rounds: usize,
    count: usize,
    asks: bool,
    code: u16,
) -> Vec<(usize, usize)> {
    let mut seen = Vec::new();
    for _ in 0..rounds {
        let filter = Setup::new(Mode::Filter).hops(hops).start(server).await;
        let baseline = Setup::new(Mode::Baseline).hops(hops).start(server).await;
        let both = [filter.address(), baseline.address()];
        let [(filter, took), (baseline, _)] = closes(both, count, asks, code).await;
        assert!(took < IMMEDIATE, "{took:?}");
        seen.push((filter, baseline));
    }
    seen
}

/// The client sends one message, and the server refuses it with Close and FIN together.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_refused() {
    const ROUNDS: usize = 6;
    const COUNT: usize = 10;
    let server = serve(|mut peer| async move {
        peer.next().await?;
        peer.send(&wire::close(4403, "", false)).await?;
        peer.tcp.shutdown().await?;
        peer.until_close().await.map(drop)
    })
    .await;
    for hops in [1, 2] {
        let rounds = in_turn(server, hops, ROUNDS, COUNT, true, 4403).await;
        println!("{hops} hops: RST of {COUNT}, filter and baseline: {rounds:?}");
        assert!(no_more_than(&rounds), "{rounds:?}");
    }
}

/// A server that half-closes behind its Close frame, and reads on for the answer: what *it* sees.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_half_closes() {
    const COUNT: usize = 60;
    let (ended, mut has_ended) = mpsc::unbounded_channel();
    let server = serve(move |mut peer| {
        let ended = ended.clone();
        async move {
            sleep(20 * MS).await;
            peer.send(&wire::close(1000, "", false)).await?;
            peer.tcp.shutdown().await?;
            let answer = peer.until_close().await;
            let _ = ended.send(matches!(answer, Ok(true)));
            answer.map(drop)
        }
    })
    .await;
    let envoy = all_modes(server, Setup::new(Mode::Filter)).await;
    let mut seen = [0; 2];
    for _ in 0..COUNT {
        for (i, seen) in seen.iter_mut().enumerate() {
            closes([envoy.entry(i + 1)], 1, false, 1000).await;
            let answered = has_ended.recv().await.expect("the server runs");
            *seen += usize::from(!answered);
        }
    }
    println!("the server sees 1006 of {COUNT}: filter, baseline {seen:?}");
    // Nearly all, in every mode.
    assert!(seen[0] <= seen[1] + COUNT / 10, "{seen:?}");
}

/// Data behind the server's Close frame, more than the buffers hold: the server gets its answer.
#[tokio::test(flavor = "multi_thread")]
async fn much_data_behind_a_close_frame() {
    let answered = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answered);
    let server = serve(move |mut peer| {
        let answered = Arc::clone(&counter);
        async move {
            peer.send(&wire::close(1000, "", false)).await?;
            sleep(10 * MS).await;
            peer.send(&from_server(&vec![b'x'; 3 << 20])).await?;
            if peer.until_close().await? {
                answered.fetch_add(1, Relaxed);
            }
            Ok(())
        }
    })
    .await;
    let setup = Setup { buffer_limit: Some(32 * 1024), ..Setup::new(Mode::Filter) };
    let envoy = all_modes(server, setup).await;
    for _ in 0..5 {
        let seen = Peer::open(envoy.entry(1)).await.finish(true).await;
        assert_eq!((seen.close, seen.messages, seen.reset), (Some(1000), 1, false), "{seen:?}");
    }
    assert_eq!(answered.load(Relaxed), 5);
}

/// Bytes that are no frames behind a 101: none is cut, and none is timed out.
#[tokio::test(flavor = "multi_thread")]
async fn raw_tunnels() {
    const TUNNELS: u64 = 300;
    let server = serve(|peer| async move {
        let (mut read, mut write) = peer.tcp.into_split();
        tokio::io::copy(&mut read, &mut write).await.map(drop)
    })
    .await;
    let setup = Setup::new(Mode::Filter)
        .with("closeHandshakeTimeout", "0.2s")
        .with("tcpCloseTimeout", "0.2s")
        .with("abnormalClose", json!({ "code": 1012 }));
    let envoy = setup.start(server).await;
    let mut tunnels = Vec::new();
    for seed in 0..TUNNELS {
        let mut client = Peer::open(envoy.address()).await;
        tunnels.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..20 {
                let mut bytes = vec![0; random.usize(1..300)];
                random.fill(&mut bytes);
                // As many as can be look like the beginning of a Close frame.
                if random.bool() {
                    bytes.splice(0..0, [0x88, 0x80]);
                }
                client.send(&bytes).await.expect("open");
                let mut echo = vec![0; bytes.len()];
                client.tcp.read_exact(&mut echo).await.expect("an echo");
                assert_eq!(echo, bytes, "seed {seed}");
                sleep(Duration::from_millis(random.u64(0..50))).await;
            }
            sleep(500 * MS).await;
            client.send(b"still there").await.expect("open");
            let mut echo = [0; 11];
            client.tcp.read_exact(&mut echo).await.expect("an echo behind the limits");
            client.tcp.shutdown().await.expect("open");
            let mut rest = Vec::new();
            let _ = client.tcp.read_to_end(&mut rest).await;
            assert_eq!(rest, b"", "seed {seed}");
        }));
    }
    for tunnel in tunnels {
        tunnel.await.expect("a tunnel lives");
    }
    assert_eq!(envoy.metric("websocket.untracked"), TUNNELS);
}

/// Frames that come together with the request: followed like any other.
#[tokio::test(flavor = "multi_thread")]
async fn frames_in_front_of_the_101() {
    let server = serve(|mut peer| async move {
        let Some(frame) = peer.next().await? else { return Ok(()) };
        if !frame.is_close() {
            peer.send(&wire::close(4321, "", false)).await?;
            peer.until_close().await?;
        }
        Ok(())
    })
    .await;
    let envoy = Setup::new(Mode::Filter).start(server).await;
    // A message; the server closes.
    let seen = Peer::open_with(envoy.address(), &from_client(b"early")).await.finish(true).await;
    assert_eq!((seen.close, seen.reset), (Some(4321), false), "{seen:?}");
    assert!(seen.took < IMMEDIATE, "{seen:?}");
    // A message of which the second half comes later.
    let message = from_client(b"cut in two");
    let mut client = Peer::open_with(envoy.address(), &message[..5]).await;
    client.send(&message[5..]).await.expect("open");
    let seen = client.finish(true).await;
    assert_eq!((seen.close, seen.reset), (Some(4321), false), "{seen:?}");
    // A Close frame, which the server does not answer.
    let close = wire::close(4000, "early", true);
    let seen = Peer::open_with(envoy.address(), &close).await.finish(false).await;
    assert_eq!((seen.close, seen.reset), (Some(4000), false), "{seen:?}");
    assert_eq!(envoy.metric("websocket.untracked"), 0);
    assert_eq!(envoy.metric("websocket.closed.clean"), 2);
    assert_eq!(envoy.metric("websocket.sent.answer"), 1);
    let failures = envoy.access_log(1).iter().filter(|line| line["flags"] == "UC").count();
    assert_eq!(failures, 1, "the one that was not answered");
}

/// The same to a server that sends every byte back, masked as it came, which RFC 6455 §5.1 forbids: the
/// bytes pass, and are not followed.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_the_101() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let mut tcp = TcpStream::connect(envoy.address()).await.expect("a connection");
    let mut said = wire::opening_handshake("/mirror?after=300").into_bytes();
    let message = wire::message(b"early", true);
    said.extend(&message);
    tcp.write_all(&said).await.expect("open");
    let (_, mut heard) = wire::read_head(&mut tcp).await.expect("a response");
    tcp.read_to_end(&mut heard).await.expect("FIN");
    assert_eq!(heard, message);
    assert_eq!(envoy.metric("websocket.untracked"), 1);
}

/// A limit that may not act: it is counted, and what comes later is as without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_may_not_act() {
    let server = serve(|mut peer| async move {
        peer.until_close().await?;
        sleep(600 * MS).await;
        peer.send(&wire::close(1000, "", false)).await
    })
    .await;
    let setup = Setup::new(Mode::Filter).with("closeHandshakeTimeout", "0.2s");
    let envoy = setup.clone().with("enforce", false).start(server).await;
    let mut client = Peer::open(envoy.address()).await;
    client.send(&wire::close(1000, "", true)).await.expect("open");
    assert_eq!(client.finish(false).await.close, Some(1000));
    assert_eq!(envoy.metric("websocket.timeout.handshake"), 1);
    assert_eq!(envoy.metric("websocket.closed.clean"), 1);

    let envoy = setup.start(server).await;
    let mut connection = http2::Connection::open(envoy.address()).await;
    let mut stream = connection.websocket("/").await.expect("a WebSocket");
    stream.send(wire::close(1000, "", true)).expect("open");
    let answer = stream.next().await.expect("open").expect("an answer");
    assert!(answer.is_close());
    let _ = stream.next().await;
    assert_eq!(envoy.metric("websocket.timeout.handshake"), 1);
    assert_eq!(envoy.metric("websocket.closed.clean"), 1);
    assert_ne!(envoy.access_log(1)[0]["flags"], "UC");
}

/// Another filter holds response data between the HTTP filter and the router: the end is not shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_in_between() {
    let server = serve(|mut peer| async move {
        if peer.until_close().await? {
            peer.send(&wire::close(1000, "", false)).await?;
        }
        Ok(())
    })
    .await;
    let limit = json!({
        "name": "envoy.filters.http.bandwidth_limit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit",
            "stat_prefix": "limit", "enable_mode": "RESPONSE", "limit_kbps": 1000,
        },
    });
    for (filters_behind, unseen) in [(vec![limit], 3), (vec![], 0)] {
        let envoy = Setup { filters_behind, ..Setup::new(Mode::Filter) }.start(server).await;
        for _ in 0..3 {
            let mut client = Peer::open(envoy.address()).await;
            client.send(&wire::close(1000, "", true)).await.expect("open");
            client.finish(false).await;
            // Not the server's end.
            drop(Peer::open(envoy.address()).await);
        }
        sleep(100 * MS).await;
        assert_eq!(envoy.metric("websocket.end_unseen"), unseen);
        assert_eq!(envoy.metric("websocket.active"), 0);
        let warnings = envoy.log().matches("another filter between it and the router").count();
        assert!(warnings <= 2 && (warnings > 0) == (unseen > 0), "{warnings}");
    }
}

/// Servers that by design end without a Close frame.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_close_frame_that_is_no_failure() {
    for (inside, failures) in [(false, 0), (true, 20)] {
        let server = serve(move |mut peer| async move {
            sleep(200 * MS).await;
            let message = from_server(b"the last");
            peer.send(if inside { &message[..5] } else { &message }).await
        })
        .await;
        let setup = Setup::new(Mode::Filter).with("missingCloseIsFailure", false);
        let envoy = setup.start(server).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(Peer::open(envoy.address()).await);
        }
        let ends: Vec<_> = clients
            .into_iter()
            .map(|mut client| tokio::spawn(async move { client.finish(true).await }))
            .collect();
        for seen in ends {
            let seen = seen.await.expect("a client does not panic");
            assert_eq!((seen.close, seen.reset), (None, false), "{seen:?}");
            assert!(seen.took < IMMEDIATE, "{seen:?}");
        }
        let flags = envoy.access_log(1).iter().filter(|line| line["flags"] == "UC").count();
        assert_eq!(flags, failures);
        let ejections = envoy.over_hops("outlier_detection.ejections_enforced_total");
        assert_eq!(ejections > 0, failures > 0, "{ejections}");
        assert_eq!(envoy.metric("websocket.closed.abnormal"), 20);
    }
}

/// What one HTTP/2 upstream does, and what the client of a WebSocket through Envoy sees of it.
async fn through_http2<F, L>(setup: Setup, life: F, closes: bool) -> (Envoy, Vec<Vec<u8>>, Duration)
where
    F: Fn(h2::SendStream<Bytes>, h2::RecvStream) -> L + Clone + Send + 'static,
    L: Future<Output = ()> + Send + 'static,
{
    let server = http2::serve(life).await;
    let envoy = Setup { http2_upstream: true, ..setup }.start(server).await;
    let mut client = Peer::open(envoy.address()).await;
    if closes {
        client.send(&wire::close(4000, "", true)).await.expect("open");
    }
    let start = Instant::now();
    let mut frames = Vec::new();
    while let Ok(Ok(Some(frame))) =
        tokio::time::timeout(Duration::from_secs(5), client.next()).await
    {
        frames.push(frame.payload);
    }
    (envoy, frames, start.elapsed())
}

/// The last message and the end of the stream in one DATA frame: what the filter adds stands behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_http2_upstream_that_ends_with_a_message() {
    let abnormal = Setup::new(Mode::Filter).with("abnormalClose", json!({ "code": 1012 }));
    for (setup, closes, code) in
        [(Setup::new(Mode::Filter), true, 4000_u16), (abnormal, false, 1012)]
    {
        let life = |mut send: h2::SendStream<Bytes>, _| async move {
            sleep(100 * MS).await;
            let _ = send.send_data(from_server(b"last").into(), true);
            sleep(1000 * MS).await;
        };
        let (_, frames, _) = through_http2(setup, life, closes).await;
        assert_eq!(frames, [b"last".to_vec(), code.to_be_bytes().to_vec()]);
    }
}

/// An empty DATA frame in mid-life means nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_http2_upstream_that_sends_an_empty_frame() {
    let setup = Setup::new(Mode::Filter).with("abnormalClose", json!({ "code": 1012 }));
    let life = |mut send: h2::SendStream<Bytes>, _| async move {
        for message in [&b""[..], b"one", b"", b"two", b""] {
            let bytes = if message.is_empty() { vec![] } else { from_server(message) };
            let _ = send.send_data(bytes.into(), false);
            sleep(50 * MS).await;
        }
        let _ = send.send_data(wire::close(1000, "", false).into(), true);
        sleep(1000 * MS).await;
    };
    let (envoy, frames, _) = through_http2(setup, life, false).await;
    assert_eq!(frames, [b"one".to_vec(), b"two".to_vec(), 1000_u16.to_be_bytes().to_vec()]);
    assert_eq!(envoy.metric("websocket.sent.abnormal"), 0);
}

/// Envoy keeps the stream behind the upstream's END_STREAM: the limits end it.
#[tokio::test(flavor = "multi_thread")]
async fn an_http2_upstream_that_half_closes() {
    let setup = Setup {
        runtime: json!({ "envoy.reloadable_features.allow_multiplexed_upstream_half_close": true }),
        ..Setup::new(Mode::Filter)
    };
    let life = |mut send: h2::SendStream<Bytes>, mut receive: h2::RecvStream| async move {
        let _ = receive.data().await;
        let _ = send.send_data(wire::close(4000, "", false).into(), true);
        sleep(5000 * MS).await;
    };
    let (envoy, frames, took) = through_http2(setup, life, true).await;
    assert_eq!(frames, [4000_u16.to_be_bytes().to_vec()]);
    assert!(took < Duration::from_millis(1000) + IMMEDIATE, "{took:?}");
    assert_eq!(envoy.metric("websocket.closed.clean"), 1);
}

/// HTTP/1.1 servers that write `upgrade` as Envoy does for HTTP/2: their end is seen all the same.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_write_upgrade_in_lower_case() {
    const FIRST: &str = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n";
    const LAST: &str = "sec-websocket-accept: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n";
    for headers in [FIRST, LAST] {
        let server = serve_as(headers, |mut peer| async move {
            sleep(20 * MS).await;
            peer.send(&wire::frame(OpCode::Data(Data::Text), true, b"hello", false)).await?;
            peer.until_close().await.map(drop)
        })
        .await;
        let envoy = Setup::new(Mode::Filter).start(server).await;
        let mut client = Peer::open(envoy.address()).await;
        client.next().await.expect("open").expect("a message");
        client.send(&wire::close(4000, "", true)).await.expect("open");
        let seen = client.finish(false).await;
        assert_eq!((seen.close, seen.reset), (Some(4000), false), "{headers}: {seen:?}");
        assert!(seen.took < IMMEDIATE, "{seen:?}");
    }
}

/// A client that half-closes TCP behind its Close frame, and reads on: Envoy ends both sides at its FIN, before any
/// filter is called. As by default; docs/limits.md has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_half_closes() {
    const COUNT: usize = 20;
    let server = serve(|mut peer| async move {
        peer.until_close().await?;
        peer.send(&wire::close(4000, "", false)).await?;
        peer.tcp.shutdown().await
    })
    .await;
    let envoy = all_modes(server, Setup::new(Mode::Filter)).await;
    let mut answered = Vec::new();
    for address in [envoy.entry(1), envoy.entry(2), envoy.entry(3), server] {
        let mut count = 0;
        for _ in 0..COUNT {
            let mut client = Peer::open(address).await;
            client.send(&wire::close(4000, "", true)).await.expect("open");
            client.tcp.shutdown().await.expect("open");
            count += usize::from(client.finish(false).await.close == Some(4000));
        }
        answered.push(count);
    }
    println!("answered of {COUNT}: filter, baseline, default, direct {answered:?}");
    assert_eq!(answered[3], COUNT);
    // Chance, and seldom: by default too nearly none is answered.
    assert!(answered[2] <= answered[0] + COUNT / 4, "{answered:?}");
}

/// The filter on the inner proxy alone, and a server that does not wait: the outer proxy is still in its delayed close when
/// the inner one has ended. The code arrives; the end is RST. docs/limits.md says: the outermost proxy first.
#[tokio::test(flavor = "multi_thread")]
async fn the_filter_behind_a_default_proxy() {
    const COUNT: usize = 10;
    let server = serve(|mut peer| async move {
        sleep(20 * MS).await;
        peer.send(&wire::close(4321, "", false)).await?;
        peer.tcp.shutdown().await?;
        peer.until_close().await.map(drop)
    })
    .await;
    let inner = Setup::new(Mode::Filter).start(server).await;
    let outer = Setup::new(Mode::Default).start(inner.address()).await;
    let defaults = Setup::new(Mode::Default).hops(2).start(server).await;
    for (what, address) in [("filter inside", outer.address()), ("two defaults", defaults.entry(2))]
    {
        let clients = (0..COUNT).map(|_| async {
            let mut client = Peer::open(address).await;
            client.finish(true).await
        });
        let seen = futures_util::future::join_all(clients).await;
        assert!(seen.iter().all(|seen| seen.close == Some(4321)), "{seen:?}");
        let reset = seen.iter().filter(|seen| seen.reset).count();
        let took = seen.iter().map(|seen| seen.took).max().expect("some");
        println!("{what}: RST in {reset} of {COUNT}, the last after {took:?}");
    }
}
