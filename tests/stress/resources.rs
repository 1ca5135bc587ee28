//! Stalled clients, circuit breakers and full buffers.

use std::time::{Duration, Instant};

use serde_json::json;
use testbed::closing::{open, run_all, until};
use testbed::server::{path, Behaviour, LARGE_LEN};
use testbed::{wire, End, Mode, Plan, Server, Setup};
use tokio::io::AsyncWriteExt;

use crate::crowd::{close_after, is_in_order, Crowd};

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
        let mut client = open(envoy.address(), &path).await;
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
    let other = close_after(envoy.address(), true, 0).await.expect("a WebSocket");
    assert!(other.is_clean() && other.is_immediate(), "{other:?}");
    // Its FIN may be here before Envoy has counted.
    until("the other is gone", || connected() == EACH).await;
    assert_eq!(envoy.metric("websocket.active"), EACH);
    let grown = envoy.resident_bytes().saturating_sub(before) / 1_000_000;
    assert!(grown < 100, "{grown} MB for twenty stalled clients");
    drop(stalled);
    until("Envoy has closed them", || connected() == 0).await;
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
    let mut opened = Vec::new();
    for _ in 0..LIMIT {
        opened.push(open(address, "/echo?by=client").await);
    }
    let waiting: Vec<_> =
        (0..MORE).map(|n| tokio::spawn(close_after(address, n % 2 == 0, 0))).collect();
    until("they wait", || envoy.stat("cluster.hop1.upstream_rq_pending_active") == 50).await;
    for ending in run_all(opened, &Plan::close(4000)).await {
        assert!(ending.is_clean() && ending.code() == 4000, "{ending:?}");
    }
    for ending in waiting {
        let ending = ending.await.expect("no panic").expect("there is room");
        assert!(ending.is_clean() && ending.is_immediate(), "{ending:?}");
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
    let envoy = setup.patient().start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    let clients: Vec<_> = [None, Some((300_000, Duration::from_millis(2)))]
        .into_iter()
        .flat_map(|slowly| [(true, slowly), (false, slowly)])
        .map(|(by_server, slowly)| {
            let address = envoy.address();
            tokio::spawn(async move {
                let path = path(Behaviour::Large, by_server, 4321);
                let client = open(address, &path).await;
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
    crowd.stop_on_a_busy_machine().await;
    assert_eq!(envoy.timers_expired(), 0);
    is_in_order(&envoy).await;
}
