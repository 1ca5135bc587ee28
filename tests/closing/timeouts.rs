//! `closeHandshakeTimeout` and `tcpCloseTimeout`.

use std::time::{Duration, Instant};

use testbed::closing::{open, run, run_all, until_within, IMMEDIATE};
use testbed::server::{path, Behaviour};
use testbed::{End, Mode, Plan, Server, Setup};

use crate::{closing, unanswering};

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

/// Each limit, whoever began: the connection ends with FIN, not before the limit, and within 100 ms after it.
#[tokio::test(flavor = "multi_thread")]
async fn limits() {
    const LIMIT: f64 = 500.0;
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter)
        .hops(2)
        .with("closeHandshakeTimeout", "0.5s")
        .with("tcpCloseTimeout", "0.5s");
    let envoy = setup.start(server.address).await;
    let mut all = Vec::new();
    for hops in [1, 2] {
        for (limit, path, plan) in hanging() {
            let start = Instant::now();
            let ending = run(envoy.entry(hops), &path, &plan).await;
            // From the beginning: if the inner hop is first, the outer one still gives the answer
            // that the server never gave.
            let ms = start.elapsed().as_secs_f64() * 1000.0;
            println!("{hops} hops, {limit}, {path}: {ending}, {ms:.0} ms in all");
            assert_eq!(ending.end, End::Fin, "{path}: {ending:?}");
            assert!(ms >= LIMIT, "{path}: {ending:?}, {ms}");
            all.push(ms);
        }
    }
    // A machine that stands still delays one of them, not half.
    all.sort_by(f64::total_cmp);
    assert!(all[all.len() / 2] <= LIMIT + 100.0, "{all:?}");
    for limit in ["handshake", "tcp"] {
        // The hops race for it: the one that is later finds the connection gone.
        let count = envoy.metric(&format!("websocket.timeout.{limit}"));
        assert!((4..=6).contains(&count), "{limit}: {count}");
    }
    assert_eq!(envoy.metric("websocket.active"), 0);
    let what = || "the server's connections end as well".to_owned();
    until_within(IMMEDIATE, what, || server.open() == 0).await;
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
    let mut latest = 0.0_f64;
    for ending in run_all(clients, &plan).await {
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
