//! The load of a mesh: as many WebSockets on two workers as the limit of open files allows, at most 20,000. A thousand are
//! opened each second, and a tenth of them closes each second, in every way; the configuration changes once a minute, and
//! a drain ends what is left. `make load`; `LOAD_SECONDS=60` shortens it, `WEBSOCKETS=1000` makes it smaller.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use testbed::closing::until_within;
use testbed::{fetch, wire, Client, End, Ending, Envoy, Mode, Plan, Server, Setup};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::sync::{watch, Semaphore};
use tungstenite::protocol::frame::coding::{Control, OpCode};

const MOST: usize = 20_000;
const OPENED_A_SECOND: usize = 1000;
/// A tenth closes each second.
const MEAN_LIFE: Duration = Duration::from_secs(10);
/// The filter's limits: longer than a busy machine takes, so that they count those who never end, and no others.
const HANDSHAKE: Duration = Duration::from_secs(20);
const TCP: Duration = Duration::from_secs(10);
/// The drain, and how long after that it ends a silent WebSocket.
const WITHIN: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(5);

/// A way to close.
#[derive(Debug)]
struct Way {
    name: &'static str,
    path: &'static str,
    /// Of 100.
    share: u8,
    does: Does,
    /// The code that the client must see.
    code: u16,
    /// The limit of the filter's that must end it.
    limit: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Sends a Close frame.
    Closes,
    /// Sends a message, upon which the server closes.
    Speaks,
    /// Ends TCP.
    Leaves(End),
}

const fn way(name: &'static str, path: &'static str, share: u8, does: Does, code: u16) -> Way {
    Way { name, path, share, does, code, limit: None }
}

/// The server closes 100 ms after the client's message.
const WAYS: [Way; 12] = [
    way("client closes", "/echo?by=client", 30, Does::Closes, 4000),
    way("server closes", "/waits?by=server&code=4321&on=word&after=100", 24, Does::Speaks, 4321),
    way(
        "server does not wait",
        "/fin-without-waiting?by=server&code=4321&on=word&after=100",
        6,
        Does::Speaks,
        4321,
    ),
    way(
        "server closes unread",
        "/closes-unread?by=server&code=4321&on=word&after=100",
        6,
        Does::Speaks,
        4321,
    ),
    way("server resets", "/resets?by=server&code=4321&on=word&after=100", 6, Does::Speaks, 4321),
    way(
        "server byte by byte",
        "/byte-by-byte?by=server&code=4321&on=word&after=100",
        6,
        Does::Speaks,
        4321,
    ),
    way(
        "server without Close",
        "/fin-without-close?by=server&on=word&after=100",
        6,
        Does::Speaks,
        1006,
    ),
    way("server does not answer", "/fin-without-waiting?by=client", 6, Does::Closes, 4000),
    way("client leaves, FIN", "/echo?by=client", 3, Does::Leaves(End::Fin), 0),
    way("client leaves, RST", "/echo?by=client", 3, Does::Leaves(End::Rst), 0),
    Way {
        limit: Some("tcp"),
        ..way("server never ends TCP", "/never-closes?by=client", 2, Does::Closes, 4000)
    },
    Way {
        limit: Some("handshake"),
        ..way("server never answers", "/ignores?by=client", 2, Does::Closes, 1006)
    },
];

fn random(rng: &mut Rng) -> &'static Way {
    let mut left = rng.u8(..100);
    for way in &WAYS {
        match left.checked_sub(way.share) {
            Some(rest) => left = rest,
            None => return way,
        }
    }
    unreachable!("the shares are 100 together")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Load,
    /// Who is closing comes to its end; the others stay open.
    Rest,
    Drain,
}

/// What has become of all of them.
#[derive(Default)]
struct Seen {
    opened: AtomicUsize,
    open: AtomicUsize,
    closing: AtomicUsize,
    /// From the Close frames to the end of TCP, in milliseconds, by way.
    closed: Mutex<BTreeMap<&'static str, Vec<f64>>>,
    told: AtomicUsize,
    ended: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Seen {
    fn wrong(&self, what: String) {
        self.wrong.lock().expect("no panic while locked").push(what);
    }

    /// How many have closed in ways that a limit of the filter's must end.
    fn limited(&self, limit: &str) -> u64 {
        let closed = self.closed.lock().expect("no panic while locked");
        let ways = WAYS.iter().filter(|way| way.limit == Some(limit));
        ways.map(|way| closed.get(way.name).map_or(0, Vec::len) as u64).sum()
    }
}

/// Opens one from another loopback address than the last: the ports of a single one would be used up.
async fn open(address: SocketAddr, path: &str, n: usize) -> std::io::Result<Client> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    let source = Ipv4Addr::new(127, 0, 1, (n % 16) as u8 + 1);
    socket.bind((source, 0).into())?;
    Client::over(socket.connect(address).await?, path).await
}

async fn live(address: SocketAddr, n: usize, stage: watch::Receiver<Stage>, seen: &Seen) {
    let mut rng = Rng::with_seed(n as u64);
    let way = random(&mut rng);
    let mut client = match open(address, way.path, n).await {
        Ok(client) => client,
        Err(error) => return seen.wrong(format!("{}: not opened: {error}", way.name)),
    };
    seen.opened.fetch_add(1, Relaxed);
    seen.open.fetch_add(1, Relaxed);
    let life = MEAN_LIFE.mul_f64(-rng.f64().max(1e-9).ln());
    let mut stage = stage;
    let drained = tokio::select! {
        () = tokio::time::sleep(life) => false,
        _ = stage.wait_for(|stage| *stage != Stage::Load) => true,
    };
    seen.closing.fetch_add(usize::from(!drained), Relaxed);
    if drained {
        let _ = stage.wait_for(|stage| *stage == Stage::Drain).await;
        be_drained(client, way, seen).await;
    } else if let Does::Leaves(how) = way.does {
        if how == End::Rst {
            client.reset();
        }
        let mut closed = seen.closed.lock().expect("no panic while locked");
        closed.entry(way.name).or_default().push(0.0);
    } else {
        let mut plan = Plan { patience: HANDSHAKE + TCP + TCP, ..Plan::default() };
        if way.does == Does::Closes {
            plan.close = Some((4000, String::new(), Duration::ZERO));
        } else if let Err(error) = client.stream.write_all(&wire::message(b"word", true)).await {
            seen.wrong(format!("{}: {error}", way.name));
        }
        let ending = client.run(&plan).await;
        if ending.code() != way.code || ending.end == End::Never || ending.extra > 0 {
            seen.wrong(format!("{}: {ending:?}", way.name));
        }
        let mut closed = seen.closed.lock().expect("no panic while locked");
        closed.entry(way.name).or_default().push(ending.ms());
    }
    seen.closing.fetch_sub(usize::from(!drained), Relaxed);
    seen.open.fetch_sub(1, Relaxed);
}

/// Those whose server echoes go on speaking, and are told; the others are silent, and ended.
async fn be_drained(mut client: Client, way: &Way, seen: &Seen) {
    let speaks = way.path.starts_with("/echo");
    let patience = Instant::now() + WITHIN + SILENT + TCP + TCP;
    let ending: Ending = loop {
        if speaks {
            let ping = wire::frame(OpCode::Control(Control::Ping), true, b"", true);
            let _ = client.stream.write_all(&ping).await;
        }
        let wait = if speaks { Duration::from_secs(1) } else { WITHIN + SILENT + TCP };
        let next = tokio::time::timeout(wait, client.frames.next(&mut client.stream)).await;
        match next {
            Err(_) if Instant::now() < patience => {}
            Err(_) => return seen.wrong(format!("drained, {}: it stays open", way.name)),
            Ok(Ok(Some(frame))) if frame.is_close() => {
                let (code, _) = wire::read_close(&frame.payload);
                let _ = client.stream.write_all(&wire::close(code, "", true)).await;
                seen.told.fetch_add(1, Relaxed);
                let plan = Plan { patience: TCP, ..Plan::default() };
                let ending = client.run(&plan).await;
                break Ending { close: Some((code, String::new())), ..ending };
            }
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None) | Err(_)) => {
                seen.ended.fetch_add(1, Relaxed);
                if speaks {
                    seen.wrong(format!("drained, {}: ended without a Close frame", way.name));
                }
                return;
            }
        }
    };
    if ending.code() != 1001 || ending.end == End::Never {
        seen.wrong(format!("drained, {}: {ending:?}", way.name));
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |n| n.parse().expect("a number"))
}

/// A WebSocket is two open files of Envoy's, and two of this process, which is client and server.
fn as_many_as_go() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find_map(|line| {
        line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<usize>().ok()
    });
    MOST.min((files.unwrap_or(1024) - 600) / 2)
}

fn megabytes(envoy: &Envoy) -> (f64, f64) {
    (envoy.allocated_bytes() as f64 / 1e6, envoy.resident_bytes() as f64 / 1e6)
}

/// Everything there is to it, for so long.
async fn load(seconds: usize, most: usize) -> String {
    let server = Server::start().await;
    let config = json!({
        "attach": "http",
        "closeHandshakeTimeout": format!("{}s", HANDSHAKE.as_secs()),
        "tcpCloseTimeout": format!("{}s", TCP.as_secs()),
    });
    let setup = Setup {
        dynamic: true,
        workers: 2,
        http_filter: Some(config.clone()),
        outlier_detection: false,
        ..Setup::new(Mode::Filter)
    };
    let mut envoy = setup.start(server.address).await;
    let address = envoy.address();
    let seen = Arc::new(Seen::default());
    let (stage, stages) = watch::channel(Stage::Load);
    let room = Arc::new(Semaphore::new(most));
    let start = |n: usize, permit| {
        let (seen, stages) = (Arc::clone(&seen), stages.clone());
        tokio::spawn(async move {
            live(address, n, stages, &seen).await;
            drop(permit);
        })
    };

    let before = megabytes(&envoy);
    println!(
        "{most} WebSockets at most, {seconds} s; {:.1} MB heap, {:.0} MB in all",
        before.0, before.1
    );
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / (OPENED_A_SECOND as u32 / 10));
    let (mut n, mut peak, mut most_open, mut updates) = (0, before, 0, 0);
    let mut next_report = Duration::from_secs(20);
    while begun.elapsed() < Duration::from_secs(seconds as u64) {
        ticks.tick().await;
        for _ in 0..10 {
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { break };
            start(n, permit);
            n += 1;
        }
        most_open = most_open.max(seen.open.load(Relaxed));
        if begun.elapsed() >= next_report {
            next_report += Duration::from_secs(20);
            let now = megabytes(&envoy);
            peak = (peak.0.max(now.0), peak.1.max(now.1));
            println!(
                "{:.0} s: {} opened, {} open, {:.1} MB heap, {:.0} MB in all",
                begun.elapsed().as_secs_f64(),
                seen.opened.load(Relaxed),
                seen.open.load(Relaxed),
                now.0,
                now.1
            );
            server.take_closes();
        }
        if begun.elapsed().as_secs() / 60 > updates {
            updates += 1;
            // Another text, and the same limits.
            let text = format!("{}{}", " ".repeat(updates as usize), config);
            tokio::task::block_in_place(|| {
                envoy.update("http", |setup| setup.http_filter = Some(json!(text)))
            });
        }
    }

    let cpu = envoy.cpu_seconds() / begun.elapsed().as_secs_f64() * 100.0;
    stage.send(Stage::Rest).expect("somebody listens");
    let what = || "no close is left".to_owned();
    until_within(HANDSHAKE + TCP + TCP, what, || seen.closing.load(Relaxed) == 0).await;
    stage.send(Stage::Drain).expect("somebody listens");
    let left = seen.open.load(Relaxed);
    let mut last = config;
    last["drain"] = json!({
        "within": format!("{}s", WITHIN.as_secs()), "endSilentAfter": format!("{}s", SILENT.as_secs()),
    });
    tokio::task::block_in_place(|| envoy.update("http", |setup| setup.http_filter = Some(last)));
    let what = || "all have ended".to_owned();
    until_within(HANDSHAKE + TCP + TCP + WITHIN + SILENT, what, || {
        room.available_permits() == most
    })
    .await;
    let what = || "Envoy has none left".to_owned();
    until_within(TCP, what, || envoy.metric("websocket.active") == 0).await;
    println!(
        "drain: {left} open, {} told, {} ended",
        seen.told.load(Relaxed),
        seen.ended.load(Relaxed)
    );

    let closed = seen.closed.lock().expect("no panic while locked").clone();
    let mut table = String::from(
        "| closes | how many | median, ms | 99 of 100 | the last |\n| --- | --- | --- | --- | --- |\n",
    );
    let mut closes = 0;
    for way in WAYS.iter().filter(|way| closed.contains_key(way.name)) {
        let (name, mut ms) = (way.name, closed[way.name].clone());
        ms.sort_by(f64::total_cmp);
        let at = |part: f64| ms[((ms.len() - 1) as f64 * part) as usize];
        let times = format!("{:.0} | {:.0} | {:.0}", at(0.5), at(0.99), at(1.0));
        // Who leaves does not see the end.
        let times = if way.code == 0 { "| |" } else { &times };
        table += &format!("| {name} | {} | {times} |\n", ms.len());
        closes += ms.len();
    }
    println!(
        "{closes} closes, {} opened, at most {most_open} open, {updates} updates",
        seen.opened.load(Relaxed)
    );
    let wrong = seen.wrong.lock().expect("no panic while locked").clone();
    assert!(
        wrong.is_empty(),
        "{} wrong, such as {}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );

    // No late close: of timers only those that never end otherwise have waited for one.
    let metric = |name: &str| envoy.metric(&format!("websocket.{name}"));
    for limit in ["tcp", "handshake"] {
        assert_eq!(metric(&format!("timeout.{limit}")), seen.limited(limit), "{limit}");
    }
    assert_eq!(envoy.timers_expired(), seen.limited("tcp") + seen.limited("handshake"));
    // The counters add up.
    let outcomes = ["clean", "server_only", "client_only", "abnormal"];
    let counted: u64 = outcomes.iter().map(|outcome| metric(&format!("closed.{outcome}"))).sum();
    assert_eq!(metric("upgrades"), seen.opened.load(Relaxed) as u64);
    assert_eq!(metric("upgrades"), counted);
    assert_eq!(metric("untracked") + metric("unpaired"), 0);
    assert_eq!(metric("sent.drain"), seen.told.load(Relaxed) as u64);
    assert_eq!(metric("ended.silent"), seen.ended.load(Relaxed) as u64);
    let log = envoy.log();
    assert!(!log.contains("panicked") && !log.contains("Uncaught"), "{log}");
    // Memory is back: a twentieth of what the WebSockets took may stay in caches and VMs.
    let after = megabytes(&envoy);
    let opened = seen.opened.load(Relaxed);
    table += &format!(
        "\n{opened} opened in {seconds} s, at most {most_open} at a time; {updates} updates; the drain told {} and ended \
         {} silent ones. Envoy's heap: {:.0} MB before, {:.0} MB at most, {:.0} MB after; resident: {:.0}, {:.0} and {:.0} \
         MB. Opening and closing as fast as that took {cpu:.0} % of a core.\n",
        seen.told.load(Relaxed),
        seen.ended.load(Relaxed),
        before.0, peak.0, after.0, before.1, peak.1, after.1
    );
    println!("{table}");
    assert!(after.0 - before.0 <= (peak.0 - before.0) / 20.0);
    table
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make load"]
async fn of_a_mesh() {
    let most = number("WEBSOCKETS", MOST).min(as_many_as_go());
    let table = load(number("LOAD_SECONDS", 300), most).await;
    if ["LOAD_SECONDS", "WEBSOCKETS"].into_iter().all(|name| std::env::var_os(name).is_none()) {
        let page = fetch::root().join("docs/performance.md");
        fetch::write_between(&page, "<!-- load -->\n", "<!-- /load -->", &table);
    }
}
