//! Lives of WebSockets in virtual time: a client, up to three proxies with real sessions in a model of
//! Envoy, and a server, over TCP. Each life is lived without a proxy, through default, baseline and
//! filter, with the same peers, and the filter's promises are asserted.
//!
//! `LIVES=1000000 cargo test -p ws-clean-close-core --test simulator`; `SEED=7` lives one, with its trace.

mod peers;
mod proxy;
mod world;

use std::rc::Rc;

use fastrand::Rng;
use peers::{Ending, Endpoint, Manner, Script};
use proxy::{Mode, Proxy};
use world::{Time, World};
use ws_clean_close_core::config::{Config, HttpConfig};
use ws_clean_close_core::counter::Counter;
use ws_clean_close_core::scanner::Scanner;
use ws_clean_close_core::Side as Peer;

const SECOND: Time = 1_000_000;
/// By then everything is over that ends.
const HORIZON: Time = 60 * SECOND;

const CONFIGS: [&str; 7] = [
    r#"{"attach": "http"}"#,
    r#"{"attach": "http"}"#,
    r#"{"attach": "http", "closeHandshakeTimeout": "1s", "tcpCloseTimeout": "0.5s"}"#,
    r#"{"attach": "http", "abnormalClose": {"code": 1012}}"#,
    r#"{"attach": "http", "missingCloseIsFailure": false, "answerClientClose": false}"#,
    r#"{"attach": "http", "maxAge": {"after": "0.4s", "endSilentAfter": "2s"}}"#,
    r#"{"attach": "http", "drain": {"within": "0.7s", "code": 1012}}"#,
];

/// What a life is made of.
struct Plan {
    seed: u64,
    client: Script,
    server: Script,
    delays: Vec<Time>,
    http2_upstream: bool,
    limit: usize,
    buffer: usize,
    refuses: bool,
    config: Rc<HttpConfig>,
}

fn parse(json: &str) -> Rc<HttpConfig> {
    match Config::parse(json.as_bytes()) {
        Ok(Config::Http(config)) => Rc::from(config),
        other => panic!("{json}: {other:?}"),
    }
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let by = rng.u8(..3);
        let hops = rng.usize(1..=3);
        let mut delay = || [0, 50, 1000, 20_000][rng.usize(..4)];
        let delays = (0..=hops).map(|_| delay()).collect();
        Self {
            seed,
            delays,
            client: Script::draw(&mut rng, Peer::Client, by != 0),
            server: Script::draw(&mut rng, Peer::Server, by != 1),
            http2_upstream: rng.u8(..5) == 0,
            limit: [32 * 1024, 1 << 20][rng.usize(..2)],
            buffer: [20_000, 200_000][rng.usize(..2)],
            refuses: rng.u8(..20) == 0,
            config: parse(CONFIGS[rng.usize(..CONFIGS.len())]),
        }
    }

    fn has_own_close(&self) -> bool {
        self.config.max_age.is_some() || self.config.drain.is_some()
    }
}

/// What came of it.
struct Life {
    client: Endpoint,
    server: Endpoint,
    proxies: Vec<Proxy>,
    trace: Vec<String>,
}

/// Lives it; without a proxy if there is no mode.
fn live(plan: &Plan, mode: Option<Mode>, traced: bool) -> Life {
    let all: Time = plan.delays.iter().sum();
    let delays = if mode.is_some() { plan.delays.clone() } else { vec![all] };
    let hops = delays.len() - 1;
    let mut world = World::new(plan.seed, &delays, plan.buffer, traced);
    let mut client = Endpoint::new(Peer::Client, plan.client.clone(), 0);
    let mut server = Endpoint::new(Peer::Server, plan.server.clone(), hops + 1);
    let mut proxies: Vec<Proxy> = (1..=hops)
        .map(|node| {
            let mode = mode.clone().expect("a proxy has a mode");
            let http2 = plan.http2_upstream && node == hops;
            Proxy::new(node, mode, http2, plan.limit, plan.refuses)
        })
        .collect();
    for node in 0..=hops + 1 {
        world.wake(node, 0);
    }
    let mut events = 0;
    while let Some(node) = world.next(HORIZON) {
        match node {
            0 => client.run(&mut world),
            node if node <= hops => proxies[node - 1].run(&mut world),
            _ => server.run(&mut world),
        }
        events += 1;
        assert!(events < 200_000, "seed {}: it does not come to rest", plan.seed);
    }
    Life { client, server, proxies, trace: world.trace.unwrap_or_default() }
}

/// Whether `received` is the beginning of `sent`, with at most one Close frame of the filter's behind it,
/// between two frames.
fn is_transparent(from: Peer, sent: &[u8], received: &[u8], own: usize) -> Result<usize, String> {
    let same = sent.iter().zip(received).take_while(|(a, b)| a == b).count();
    if same == received.len() {
        return Ok(0);
    }
    // A Close frame may begin with the bytes of the next frame: the boundary is at or before `same`.
    for at in (0..=same).rev() {
        let mut scanner = Scanner::new(from);
        if scanner.scan(&mut &received[..at], |_| {}).is_err() || !scanner.at_boundary() {
            continue;
        }
        let mut rest = Scanner::new(from);
        let (close, fault) = rest.find_close(&mut &received[at..]);
        let len = close.as_ref().map_or(0, |close| match from {
            Peer::Server => close.to_server_frame().len(),
            Peer::Client => close.to_client_frame([0; 4]).len(),
        });
        if fault.is_none() && close.is_some() && len == received.len() - at && own > 0 {
            return Ok(1);
        }
    }
    Err(format!("byte {same} of {} is another one", received.len()))
}

fn judge(plan: &Plan, modes: &[Life; 5]) -> Result<(), String> {
    let [direct, default, baseline, filter, observed] = modes;
    let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };

    // 1. Transparent: in every mode, both ways.
    for life in modes {
        let own = |to: Peer| {
            life.proxies
                .iter()
                .flat_map(|proxy| &proxy.injected)
                .filter(|&&side| side == to)
                .count()
        };
        is_transparent(Peer::Server, &life.server.sent, &life.client.received, own(Peer::Client))
            .map_err(|e| format!("to the client: {e}"))?;
        is_transparent(Peer::Client, &life.client.sent, &life.server.received, own(Peer::Server))
            .map_err(|e| format!("to the server: {e}"))?;
        for proxy in &life.proxies {
            check(proxy.injected.len() <= 2, "more than one frame of its own, and its answer")?;
        }
    }

    // `enforce: false` is the default, to the byte and the microsecond.
    check(observed.client.received == default.client.received, "observing changes bytes")?;
    check(observed.client.ending == default.client.ending, "observing changes the end")?;
    check(observed.server.received == default.server.received, "observing changes bytes sent")?;
    check(observed.server.ending == default.server.ending, "observing changes the server's end")?;

    let timed_out = filter.proxies.iter().any(|proxy| proxy.timed_out);
    let acted = plan.has_own_close()
        && filter.proxies.iter().any(|proxy| !proxy.injected.is_empty() || proxy.timed_out);

    // 0. Never worse: the server's code, and every byte, that arrives by default arrives.
    // But for a client that does not look for input all the time, and has sent too little for a rhythm.
    let looks_away = plan.client.looks_after > 1 || plan.client.pause.is_some();
    let ended = filter.proxies.iter().filter_map(|proxy| proxy.ended_at).min();
    // A rhythm is three steps, of at least 5 ms each (`activity.rs`).
    let fourth = 3 * plan.client.every.max(5000) + plan.delays.iter().sum::<Time>();
    let for_long = plan.client.pause.is_some_and(|(_, time)| time > 900_000);
    let unforeseen = for_long || looks_away && ended.is_some_and(|at| at < fourth);
    if !acted && !unforeseen {
        let code = |life: &Life| life.client.close.and_then(|(code, _)| code);
        if code(default).is_some() && !timed_out {
            check(code(filter) == code(default), "the code is lost")?;
        }
        let most = default.client.received.len();
        check(timed_out || filter.client.received.len() >= most, "bytes to the client are lost")?;
    }

    // 2. Immediate, and as clean as the baseline, but for a client that goes on sending.
    let stood_aside = filter.proxies.iter().any(|proxy| proxy.stood_aside);
    if let (Some((_, at)), Some((_, best)), false) =
        (filter.client.ending, baseline.client.ending, stood_aside || acted || timed_out)
    {
        check(at <= best.max(direct.client.ending.map_or(best, |(_, at)| at)) + 1000, "late")?;
    }

    // 3. A close in which the server sent its Close frame is no failure.
    for proxy in &filter.proxies {
        let server_closed = proxy
            .counted
            .iter()
            .any(|counter| matches!(counter, Counter::ClosedClean | Counter::ClosedServerOnly));
        let own = proxy.injected.contains(&Peer::Client);
        check(!(server_closed && proxy.failed) || own, "a clean close is a failure")?;
    }

    // 5. Bounded: whoever has closed comes to an end, unless somebody goes on talking.
    let closed = filter.client.closed || filter.client.close.is_some() || filter.server.closed;
    let vanished = matches!(filter.client.ending, Some((Ending::Broken, _)));
    if closed && !vanished && plan.client.manner != Manner::Closes(0) {
        check(filter.proxies.iter().all(Proxy::is_over), "a closing handshake hangs")?;
    }

    // 6. Counters add up.
    for proxy in filter.proxies.iter().chain(&observed.proxies).filter(|proxy| proxy.is_over()) {
        let ends = proxy.counted.iter().filter(|counter| {
            matches!(
                counter,
                Counter::ClosedClean
                    | Counter::ClosedServerOnly
                    | Counter::ClosedClientOnly
                    | Counter::ClosedAbnormal
            )
        });
        check(ends.count() == 1, "it ends once")?;
    }
    Ok(())
}

fn modes(plan: &Plan, traced: bool) -> [Life; 5] {
    let observing = Rc::new(HttpConfig { enforce: false, ..HttpConfig::clone(&plan.config) });
    [
        None,
        Some(Mode::Default),
        Some(Mode::Baseline),
        Some(Mode::Filter(Rc::clone(&plan.config))),
        Some(Mode::Filter(observing)),
    ]
    .map(|mode| live(plan, mode, traced))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn tell(plan: &Plan) {
    println!("client {:?}\nserver {:?}", plan.client, plan.server);
    println!("delays {:?} µs, HTTP/2 upstream {}", plan.delays, plan.http2_upstream);
    println!("buffers {} and {}, {}", plan.limit, plan.buffer, plan.config);
    let names = ["direct", "default", "baseline", "filter", "enforce: false"];
    for (name, life) in names.iter().zip(&modes(plan, true)) {
        println!("--- {name}: client {:?}, {:?}", life.client.close, life.client.ending);
        for line in &life.trace {
            println!("{line}");
        }
    }
}

#[test]
fn lives() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LIVES").unwrap_or(20_000),
    };
    let start = std::time::Instant::now();
    let count = seeds.end - seeds.start;
    let mut failed = 0;
    for seed in seeds {
        let plan = Plan::draw(seed);
        if count == 1 {
            tell(&plan);
        }
        if let Err(what) = judge(&plan, &modes(&plan, false)) {
            println!("SEED={seed} cargo test -p ws-clean-close-core --test simulator -- --nocapture: {what}");
            failed += 1;
        }
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!("{count} lives, {rate:.0} a second, {failed} broken promises");
    assert_eq!(failed, 0);
}

/// A peer that does nothing but close in its manner, or be closed.
fn peer(manner: Manner, closes_at: Option<Time>) -> Script {
    Script {
        closes_at,
        manner,
        every: SECOND,
        size: 0,
        messages: 0,
        looks_after: 1,
        pause: None,
        answers_after: 0,
        backlog: 0,
        data_after_close: false,
    }
}

/// What the client sees, in the words of the README's table.
fn cell(plan: &Plan, life: &Life) -> String {
    let client = &life.client;
    let code = client.close.and_then(|(code, _)| code).unwrap_or(1006);
    let Some((ending, at)) = client.ending else {
        return if code == 1006 { "hangs".into() } else { format!("{code}, never ends") };
    };
    // Clean: both Close frames, then FIN.
    let has_answered = client.closed && plan.client.manner != Manner::Ignores;
    let is_clean = has_answered && ending == Ending::Fin;
    let clean = if code != 1006 && !is_clean { ", not clean" } else { "" };
    let begun = plan.client.closes_at.or(plan.server.closes_at).expect("somebody closes");
    match (at - begun + SECOND / 2) / SECOND {
        0 => format!("{code}{clean}"),
        seconds => format!("{code}{clean}, {seconds} s late"),
    }
}

/// The model is Envoy's: each cell of the README's table, which was measured on a real one, comes out of it.
#[test]
fn the_model_agrees_with_the_measured_table() {
    use Manner::*;
    const ABNORMAL: &str = r#"… with `abnormalClose: {"code": 1012}`"#;
    let at = Some(100_000);
    let rows = [
        ("The server closes with 4321, is answered, ends TCP", Waits, at, Waits, None),
        ("… and resets TCP (RST)", WaitsAndResets, at, Waits, None),
        ("… and never ends TCP", StaysOpen, at, Waits, None),
        ("… and ends TCP without waiting for the answer", Fin(0), at, Waits, None),
        ("… and the client never answers", Waits, at, Ignores, None),
        ("The client closes with 4000, the server answers, ends TCP", Waits, None, Waits, at),
        ("… the server answers, never ends TCP", StaysOpen, None, Waits, at),
        ("… the server ends TCP without an answer", Fin(0), None, Waits, at),
        ("… the server resets TCP without an answer", Resets, None, Waits, at),
        ("… the server never answers", Ignores, None, Waits, at),
        ("… the server dies inside a frame", InsideFrame, None, Waits, at),
        ("Both close at the same time", Waits, at, Waits, at),
        ("The server dies, no Close frame at all", NoClose, at, Waits, None),
        (ABNORMAL, NoClose, at, Waits, None),
        ("The server dies inside a frame", InsideFrame, at, Waits, None),
    ];
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(readme).expect("the README");
    let table = readme.split("scenarios -->").nth(1).expect("the table");
    for (what, server, server_at, client, client_at) in rows {
        let plan = Plan {
            seed: 1,
            client: peer(client, client_at),
            server: peer(server, server_at),
            delays: vec![1000, 0],
            http2_upstream: false,
            limit: 1 << 20,
            buffer: 200_000,
            refuses: false,
            config: parse(CONFIGS[if what == ABNORMAL { 3 } else { 0 }]),
        };
        let [direct, default, baseline, filter, _] = modes(&plan, false);
        let cells = [direct, default, baseline, filter].map(|life| cell(&plan, &life));
        let row = format!("| {what} | {} |", cells.join(" | "));
        assert!(table.lines().any(|line| line == row), "the model has\n{row}");
    }
}
