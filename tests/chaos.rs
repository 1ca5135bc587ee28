//! What a mesh does to a filter, each while WebSockets are open and closing: servers that are killed,
//! resets, updates of everything, restarts, limits, a trap in the module.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use testbed::peers::{Library, Serving};
use testbed::server::{path, Behaviour, LARGE_LEN};
use testbed::{fetch, wire, Client, End, Ending, Envoy, Mode, Plan, Server, Setup};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

/// A close is prompt within this; the default would take a second.
const PROMPT: f64 = 700.0;

/// WebSockets that open and close all the time, by either side, and some that stay open and talk.
struct Crowd {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    closes: Arc<Mutex<Vec<Result<Ending, String>>>>,
    talks: Vec<JoinHandle<Talk>>,
}

/// What became of a WebSocket that stays open.
#[derive(Debug)]
struct Talk {
    echoes: usize,
    /// An echo was missing, or not what had been sent.
    broken: Option<String>,
    ending: Option<Ending>,
}

impl Crowd {
    const CLOSING: usize = 12;
    const TALKING: usize = 6;

    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let closes = Arc::new(Mutex::new(Vec::new()));
        let tasks = (0..Self::CLOSING)
            .map(|n| {
                let (stop, closes) = (Arc::clone(&stop), Arc::clone(&closes));
                tokio::spawn(async move {
                    let mut rng = Rng::with_seed(n as u64);
                    while !stop.load(Relaxed) {
                        let close = close(address, rng.bool(), rng.u64(..80)).await;
                        closes.lock().expect("no panic while locked").push(close);
                    }
                })
            })
            .collect();
        let talks =
            (0..Self::TALKING).map(|_| tokio::spawn(talk(address, Arc::clone(&stop)))).collect();
        Self { stop, tasks, closes, talks }
    }

    /// Waits until so many more have closed.
    async fn closes(&self, more: usize) {
        let count = || self.closes.lock().expect("no panic while locked").len();
        let wanted = count() + more;
        until("closes go on", || count() >= wanted).await;
    }

    /// All must have been clean and prompt, and every echo the right one.
    async fn stop(self) -> usize {
        let (closes, talks) = self.end().await;
        for close in &closes {
            let ending = close.as_ref().unwrap_or_else(|e| panic!("not opened: {e}"));
            assert!(ending.is_clean() && ending.ms() < PROMPT, "{ending:?}");
            assert!([4000, 4321].contains(&ending.code()), "{ending:?}");
        }
        for talk in talks {
            assert!(talk.broken.is_none() && talk.echoes > 0, "{talk:?}");
            assert!(talk.ending.as_ref().is_some_and(Ending::is_clean), "{talk:?}");
        }
        closes.len()
    }

    async fn end(self) -> (Vec<Result<Ending, String>>, Vec<Talk>) {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.expect("a close does not panic");
        }
        let mut talks = Vec::new();
        for talk in self.talks {
            talks.push(talk.await.expect("a talk does not panic"));
        }
        let closes = std::mem::take(&mut *self.closes.lock().expect("no panic while locked"));
        (closes, talks)
    }
}

/// Opens a WebSocket and closes it after some milliseconds.
async fn close(address: SocketAddr, by_server: bool, after: u64) -> Result<Ending, String> {
    let path = format!("{}&after={after}", path(Behaviour::Waits, by_server, 4321));
    let client = Client::open(address, false, &path).await.map_err(|e| e.to_string())?;
    let after = Duration::from_millis(after);
    let close = (!by_server).then(|| (4000, String::new(), after));
    let plan = Plan { close, distance: Duration::from_millis(1), ..Plan::default() };
    Ok(client.run(&plan).await)
}

/// Talks to the echo until it is told to stop, and closes then.
async fn talk(address: SocketAddr, stop: Arc<AtomicBool>) -> Talk {
    let mut talk = Talk { echoes: 0, broken: None, ending: None };
    let mut client = match Client::open(address, false, "/echo?by=client").await {
        Ok(client) => client,
        Err(e) => return Talk { broken: Some(format!("not opened: {e}")), ..talk },
    };
    while !stop.load(Relaxed) {
        let said = format!("message {}", talk.echoes).into_bytes();
        let sent = client.stream.write_all(&wire::message(&said, true)).await;
        match client.frames.next(&mut client.stream).await {
            Ok(Some(frame)) if frame.payload == said => talk.echoes += 1,
            other => {
                talk.broken = Some(format!("{sent:?}, {other:?}"));
                return talk;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    talk.ending = Some(client.run(&Plan::close(4000)).await);
    talk
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < patience, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nothing is left, nothing was counted twice, nothing has gone wrong inside.
async fn is_in_order(envoy: &Envoy) {
    until("no WebSocket is left", || envoy.metric("websocket.active") == 0).await;
    let closed: u64 = ["clean", "server_only", "client_only", "abnormal"]
        .iter()
        .map(|outcome| envoy.metric(&format!("websocket.closed.{outcome}")))
        .sum();
    assert_eq!(envoy.metric("websocket.upgrades"), closed);
    assert_eq!(envoy.metric("websocket.unpaired"), 0);
    let log = envoy.log();
    assert!(!log.contains("panicked") && !log.contains("Uncaught"), "{log}");
}

/// The module as a new version would be: other bytes, so another VM. A custom section does it.
fn another_version() -> PathBuf {
    let mut module = fs::read(fetch::module()).expect("the module");
    module.extend(b"\x00\x04\x03new");
    let file = fetch::folder(&format!("run/version-{}", std::process::id())).join("module.wasm");
    fs::write(&file, module).expect("the testbed's folder is writable");
    file
}

/// SIGKILL of the server: its clients learn of it at once and with what they are owed; once it is back,
/// all is as before.
#[tokio::test(flavor = "multi_thread")]
async fn server_is_killed() {
    let mut server = Serving::start(Library::Ws);
    let abnormal = json!({ "code": 1012, "reason": "restart" });
    let setup = Setup::new(Mode::Filter).hops(2).with("abnormalClose", abnormal);
    let envoy = setup.start(server.address).await;
    for round in 0..3 {
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(Client::open(envoy.address(), false, "/client").await.expect("a WebSocket"));
        }
        let port = server.address.port();
        let clients: Vec<_> = open
            .into_iter()
            .enumerate()
            .map(|(n, client)| {
                // Some close in the moment of the kill.
                let close = (n % 2 == 0).then(|| (4000, String::new(), Duration::ZERO));
                let plan = Plan { close, ..Plan::default() };
                tokio::spawn(async move { client.run(&plan).await })
            })
            .collect();
        let killed = Instant::now();
        drop(server);
        for client in clients {
            let ending = client.await.expect("a client does not panic");
            assert!([1012, 4000].contains(&ending.code()), "round {round}: {ending:?}");
            assert_eq!(ending.extra, 0, "{ending:?}");
        }
        let took = killed.elapsed().as_secs_f64() * 1000.0;
        assert!(took < 2.0 * PROMPT, "round {round}: {took} ms");
        server = Serving::start_at(Library::Ws, port, false);
    }
    let client = Client::open(envoy.address(), false, "/server").await.expect("it is back");
    let ending = client.run(&Plan::default()).await;
    assert!(ending.is_clean() && ending.code() == 4321, "{ending:?}");
    is_in_order(&envoy).await;
}

/// RST from the one side or the other at any moment, while both close: everybody is let go at once,
/// and nobody sees anything behind a Close frame.
#[tokio::test(flavor = "multi_thread")]
async fn resets_at_random() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    let mut rng = Rng::with_seed(1);
    let mut clients = Vec::new();
    for _ in 0..300 {
        let (resets, at, closes_at) = (rng.bool(), rng.u64(..30_000), rng.u64(..30_000));
        let server_at = if rng.bool() { at / 1000 } else { rng.u64(..30) };
        let path = match rng.u8(..3) {
            0 => format!("/waits?by=server&code=4321&after={server_at}"),
            1 => format!("/breaks?by=client&after={server_at}"),
            _ => "/echo?by=client".to_owned(),
        };
        let address = envoy.address();
        clients.push(tokio::spawn(async move {
            let mut client =
                Client::open(address, false, &path).await.map_err(|e| e.to_string())?;
            let closes_at = Duration::from_micros(closes_at);
            let plan = Plan { close: Some((4000, String::new(), closes_at)), ..Plan::default() };
            if !resets {
                return Ok(Some((path, client.run(&plan).await)));
            }
            let half = wire::message(&[b'x'; 1000], true);
            let _ = client.stream.write_all(&half[..500]).await;
            tokio::time::sleep(Duration::from_micros(at)).await;
            client.reset();
            Result::<_, String>::Ok(None)
        }));
    }
    let mut seen = 0;
    for client in clients {
        let Some((path, ending)) = client.await.expect("no panic").expect("a WebSocket") else {
            continue;
        };
        seen += 1;
        assert!(ending.end != End::Never && ending.ms() < PROMPT, "{path}: {ending:?}");
        assert_eq!(ending.extra, 0, "{path}: {ending:?}");
    }
    assert!(seen > 100);
    is_in_order(&envoy).await;
    until("the server's connections end as well", || server.open() == 0).await;
}

/// New configurations of one half, of the other, of both; a new version of the module in the one half
/// only, so that the halves live in two VMs, then in the other too.
#[tokio::test(flavor = "multi_thread")]
async fn updates() {
    let server = Server::start().await;
    let setup = Setup { dynamic: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    for n in 1..=3 {
        envoy.update("http", |setup| {
            let limit = format!("{}s", 10 + n);
            setup.http_half = Some(json!({ "attach": "http", "closeHandshakeTimeout": limit }));
        });
        crowd.closes(30).await;
        // Nothing but a space to tell it from the last.
        envoy.update("network", |setup| {
            setup.network_half =
                Some(json!(format!("{{\"attach\":{}\"network\"}}", " ".repeat(n))));
        });
        crowd.closes(30).await;
    }
    envoy.update("http", |setup| setup.module = Some(another_version()));
    crowd.closes(60).await;
    envoy.update("network", |_| {});
    crowd.closes(60).await;
    let closes = crowd.stop().await;
    println!("{closes} closes over eight updates, all clean and prompt");
    is_in_order(&envoy).await;
}

/// An update that is no good, of the one half or the other: Envoy refuses it, the old one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn bad_updates() {
    let server = Server::start().await;
    let setup = Setup { dynamic: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    for layer in ["http", "network"] {
        envoy.update_badly(layer, |setup| {
            let half = match layer {
                "http" => &mut setup.http_half,
                _ => &mut setup.network_half,
            };
            *half = Some(json!({ "attach": layer, "nonsense": true }));
        });
        assert!(envoy.log().contains("unknown field `nonsense`"), "{}", envoy.log());
        crowd.closes(60).await;
    }
    crowd.stop().await;
    is_in_order(&envoy).await;
}

/// The plugin is removed from the listener, and attached again: what is open lives on, and closes as
/// clean and prompt as it would have; what is opened without it closes late, as ever.
#[tokio::test(flavor = "multi_thread")]
async fn removal() {
    let server = Server::start().await;
    let setup = Setup { listeners_from_file: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.clone().start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    crowd.stop().await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let path = "/talks?by=server&code=4321&every=100&until=2500";
        open.push(Client::open(envoy.address(), false, path).await.expect("a WebSocket"));
    }
    envoy.replace_listeners(|setup| {
        (setup.http_half, setup.network_half) = (None, None);
    });
    let late = close(envoy.address(), true, 0).await.expect("a WebSocket");
    assert!(late.is_clean() && late.ms() > 800.0, "{late:?}");
    for client in open {
        let ending = client.run(&Plan::default()).await;
        assert!(ending.is_clean() && ending.code() == 4321, "{ending:?}");
        assert!(ending.ms() < PROMPT, "{ending:?}");
    }
    envoy.replace_listeners(|changed| {
        (changed.http_half, changed.network_half) = (setup.http_half, setup.network_half);
    });
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    crowd.stop().await;
    is_in_order(&envoy).await;
}

/// Hot restart: a new process takes the listeners. What is open in the old one closes there, clean and
/// prompt, until Envoy ends it; everything new is as ever.
#[tokio::test(flavor = "multi_thread")]
async fn hot_restart() {
    let server = Server::start().await;
    let setup = Setup { drain_seconds: 4, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    let left_open = Client::open(envoy.address(), false, "/echo?by=client").await.expect("open");
    crowd.closes(30).await;
    // The talks of this crowd close in the old process.
    tokio::task::block_in_place(|| envoy.hot_restart());
    crowd.closes(60).await;
    crowd.stop().await;
    // Envoy cuts what is still open when the old process ends: the filter has no say in that.
    let ending = left_open.run(&Plan::default()).await;
    println!("left open over a hot restart: {ending}");
    assert_eq!(ending.code(), 1006, "{ending:?}");
    until("the old process ends", || !envoy.has_older()).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(60).await;
    crowd.stop().await;
    until("no WebSocket is left", || envoy.metric("websocket.active") == 0).await;
    let log = envoy.log();
    assert!(!log.contains("panicked") && !log.contains("Uncaught"), "{log}");
}

/// Envoy is told to fail health checks, and to drain: closes are as ever.
#[tokio::test(flavor = "multi_thread")]
async fn drain() {
    let server = Server::start().await;
    let setup = Setup { drain_seconds: 3, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    envoy.post("/healthcheck/fail");
    crowd.closes(30).await;
    crowd.stop().await;
    let mut open = Vec::new();
    for n in 0..20 {
        let path = format!("/talks?by=server&code=4321&every=50&until={}", n * 100);
        open.push(Client::open(envoy.address(), false, &path).await.expect("a WebSocket"));
    }
    envoy.post("/drain_listeners?graceful");
    for client in open {
        let ending = client.run(&Plan::default()).await;
        assert!(ending.is_clean() && ending.code() == 4321, "{ending:?}");
        assert!(ending.ms() < PROMPT, "{ending:?}");
    }
    is_in_order(&envoy).await;
}

/// Clients that read nothing more, with zero windows, while much is on its way to them. Those that have
/// sent a Close frame end at the limit, though what waits for them cannot be flushed; the others stay, as
/// without the filter, and cost no more than the buffers hold.
#[tokio::test(flavor = "multi_thread")]
async fn stalled_clients() {
    const EACH: u64 = 10;
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter)
        .with("closeHandshakeTimeout", "1s")
        .with("maxAge", json!({ "after": "1s", "jitter": 0 }));
    let envoy = setup.start(server.address).await;
    let before = envoy.resident_bytes();
    let mut stalled = Vec::new();
    for n in 0..2 * EACH {
        let path = path(Behaviour::Large, true, 4321);
        let mut client = Client::open(envoy.address(), false, &path).await.expect("a WebSocket");
        if n % 2 == 0 {
            client.stream.write_all(&wire::close(4000, "", true)).await.expect("open");
        }
        stalled.push(client);
    }
    let connected = || envoy.stat("http.hop1.downstream_cx_active");
    let begun = Instant::now();
    until("those that have closed end", || connected() <= EACH).await;
    let took = begun.elapsed().as_secs_f64();
    println!("stalled clients that have closed end after {took:.1} s");
    // The limit, and Envoy's own second for what cannot be flushed.
    assert!((0.5..4.0).contains(&took), "{took} s");
    assert_eq!(envoy.metric("websocket.timeout.handshake"), EACH);
    // Others are not held up.
    let other = close(envoy.address(), true, 0).await.expect("a WebSocket");
    assert!(other.is_clean() && other.ms() < PROMPT, "{other:?}");
    assert_eq!((connected(), envoy.metric("websocket.active")), (EACH, EACH));
    let grown = envoy.resident_bytes().saturating_sub(before) / 1_000_000;
    assert!(grown < 100, "{grown} MB for twenty stalled clients");
    drop(stalled);
    until("Envoy lets go of them", || connected() == 0).await;
    is_in_order(&envoy).await;
}

/// Envoy's circuit breaker of 1,024 connections: who is over it has to wait, who is under it closes as
/// ever and makes room.
#[tokio::test(flavor = "multi_thread")]
async fn circuit_breaker() {
    const LIMIT: usize = 1024;
    const MORE: usize = 50;
    let server = Server::start().await;
    // Two workers would let one more in before the other knows.
    let setup = Setup { max_connections: LIMIT as u32, workers: 1, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    let address = envoy.address();
    let mut open = Vec::new();
    for _ in 0..LIMIT {
        open.push(Client::open(address, false, "/echo?by=client").await.expect("a WebSocket"));
    }
    let waiting: Vec<_> = (0..MORE).map(|n| tokio::spawn(close(address, n % 2 == 0, 0))).collect();
    until("they wait", || envoy.stat("cluster.hop1.upstream_rq_pending_active") == 50).await;
    let closing: Vec<_> = open
        .into_iter()
        .map(|client| tokio::spawn(async move { client.run(&Plan::close(4000)).await }))
        .collect();
    for ending in closing {
        let ending = ending.await.expect("no panic");
        assert!(ending.is_clean() && ending.code() == 4000, "{ending:?}");
    }
    for ending in waiting {
        let ending = ending.await.expect("no panic").expect("there is room");
        assert!(ending.is_clean() && ending.ms() < PROMPT, "{ending:?}");
    }
    assert_eq!(envoy.metric("websocket.upgrades"), (LIMIT + MORE) as u64);
    is_in_order(&envoy).await;
}

/// Buffers of 4 KiB, full both ways, slow readers, and a Close frame behind it all: every byte arrives
/// before it.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_buffer_limit() {
    let server = Server::start().await;
    let setup = Setup { buffer_limit: Some(4096), ..Setup::new(Mode::Filter).hops(2) };
    let envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    let clients: Vec<_> = [None, Some((300_000, Duration::from_millis(2)))]
        .into_iter()
        .flat_map(|slowly| [(true, slowly), (false, slowly)])
        .map(|(by_server, slowly)| {
            let address = envoy.address();
            tokio::spawn(async move {
                let path = path(Behaviour::Large, by_server, 4321);
                let client = Client::open(address, false, &path).await.expect("a WebSocket");
                let close = (!by_server).then(|| (4000, String::new(), Duration::ZERO));
                let patience = Duration::from_secs(60);
                client.run(&Plan { close, slowly, patience, ..Plan::default() }).await
            })
        })
        .collect();
    for client in clients {
        let ending = client.await.expect("no panic");
        assert!(ending.intact && ending.payload == LARGE_LEN, "{ending:?}");
        assert_eq!(ending.end, End::Fin, "{ending:?}");
    }
    crowd.stop().await;
    is_in_order(&envoy).await;
}

/// A trap in the module, in the middle of a close, takes its VM with it, which is one worker's. Envoy
/// cuts what was open on that worker through the filter, whatever the policy. All else goes on: what is
/// open on the other worker, and what is new on either. With FAIL_OPEN the new closes late on the first,
/// as without the filter; with FAIL_RELOAD Envoy makes a new VM, and it is prompt again.
#[tokio::test(flavor = "multi_thread")]
async fn trap() {
    let server = Server::start().await;
    for policy in ["FAIL_OPEN", "FAIL_RELOAD"] {
        let module = Some(fetch::module_that_traps());
        let setup =
            Setup { module, failure_policy: policy, dynamic: true, ..Setup::new(Mode::Filter) };
        let mut envoy = setup.start(server.address).await;
        let stop = Arc::new(AtomicBool::new(false));
        let talks: Vec<_> =
            (0..20).map(|_| tokio::spawn(talk(envoy.address(), Arc::clone(&stop)))).collect();
        until("they talk", || envoy.metric("websocket.active") == 20).await;
        let before = close(envoy.address(), true, 0).await.expect("a WebSocket");
        assert!(before.is_clean() && before.ms() < PROMPT, "{before:?}");

        let path = path(Behaviour::Waits, true, 4999);
        let client = Client::open(envoy.address(), false, &path).await.expect("a WebSocket");
        let trapped = client.run(&Plan::default()).await;
        assert_ne!(trapped.end, End::Never, "{trapped:?}");
        until("the trap is logged", || envoy.log().contains("unreachable")).await;
        let mut refused = 0;
        for _ in 0..20 {
            refused +=
                usize::from(!matches!(wire::status(envoy.address(), "/plain").await, Ok(200)));
        }
        // With FAIL_RELOAD Envoy waits a second before it makes a new VM, and refuses until then.
        assert_eq!(refused > 0, policy == "FAIL_RELOAD", "{policy}: {refused}");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let mut late = 0;
        for n in 0..20 {
            let after = close(envoy.address(), n % 2 == 0, 0).await.expect("traffic goes on");
            assert!(after.is_clean(), "{policy}: {after:?}");
            late += usize::from(after.ms() > 800.0);
        }
        assert_eq!(wire::status(envoy.address(), "/plain").await.expect("a response"), 200);
        stop.store(true, Relaxed);
        let mut cut = 0;
        for talk in talks {
            let talk = talk.await.expect("no panic");
            cut += usize::from(talk.broken.is_some());
            let closed = talk.ending.as_ref().is_some_and(|ending| ending.code() == 4000);
            assert!(talk.broken.is_some() || closed, "{talk:?}");
        }
        println!(
            "{policy}: of 20 that were open {cut} were cut; of 20 requests right after {refused} were \
             refused; of 20 new WebSockets {late} closed late"
        );
        assert!((1..20).contains(&cut), "{policy}: {cut}");
        assert_eq!(late > 0, policy == "FAIL_OPEN", "{policy}: {late}");
        // A new configuration brings a new VM.
        envoy.update("http", |setup| *setup = setup.clone().with("closeHandshakeTimeout", "9s"));
        envoy.update("network", |setup| setup.network_vm = "new");
        for n in 0..20 {
            let after = close(envoy.address(), n % 2 == 0, 0).await.expect("a WebSocket");
            assert!(after.is_clean() && after.ms() < PROMPT, "{policy}: {after:?}");
        }
    }
}
