//! Updates of the filters, removal, hot restart and Envoy's own drain, under open WebSockets.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use testbed::closing::{open, until};
use testbed::{fetch, Mode, Plan, Server, Setup};

use crate::crowd::{close_after, is_in_order, Crowd};

/// The module as a new version would be: other bytes, so another VM. A custom section does it.
fn another_version() -> PathBuf {
    let mut module = fs::read(fetch::module()).expect("the module");
    module.extend(b"\x00\x04\x03new");
    let file = fetch::folder(&format!("run/version-{}", std::process::id())).join("module.wasm");
    fs::write(&file, module).expect("the testbed's folder is writable");
    file
}

/// New configurations of one filter, of the other, of both; a new version of the module in one filter
/// only, so that the two live in two VMs, then in the other too.
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
            setup.http_filter = Some(json!({ "attach": "http", "closeHandshakeTimeout": limit }));
        });
        crowd.closes(30).await;
        // Nothing but a space to tell it from the last.
        envoy.update("network", |setup| {
            setup.network_filter =
                Some(json!(format!("{{\"attach\":{}\"network\"}}", " ".repeat(n))));
        });
        crowd.closes(30).await;
    }
    envoy.update("http", |setup| setup.module = Some(another_version()));
    crowd.closes(60).await;
    envoy.update("network", |_| {});
    crowd.closes(60).await;
    let closes = crowd.stop().await;
    println!("{closes} closes over eight updates, all clean and immediate");
    is_in_order(&envoy).await;
}

/// A bad update, of one filter or the other: Envoy refuses it, the old one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn bad_updates() {
    let server = Server::start().await;
    let setup = Setup { dynamic: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    for layer in ["http", "network"] {
        envoy.update_badly(layer, |setup| {
            let config = match layer {
                "http" => &mut setup.http_filter,
                _ => &mut setup.network_filter,
            };
            *config = Some(json!({ "attach": layer, "nonsense": true }));
        });
        assert!(envoy.log().contains("unknown field `nonsense`"), "{}", envoy.log());
        crowd.closes(60).await;
    }
    crowd.stop().await;
    is_in_order(&envoy).await;
}

/// The plugin is removed from the listener, and attached again: what is open lives on, and closes as
/// clean and immediate as it would have; what is opened without it closes with a delay, as ever.
#[tokio::test(flavor = "multi_thread")]
async fn removal() {
    let server = Server::start().await;
    let setup = Setup { listeners_from_file: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.clone().start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    crowd.stop().await;
    let mut opened = Vec::new();
    for _ in 0..10 {
        let path = "/talks?by=server&code=4321&every=100&until=2500";
        opened.push(open(envoy.address(), path).await);
    }
    envoy.replace_listeners(|setup| {
        (setup.http_filter, setup.network_filter) = (None, None);
    });
    let late = close_after(envoy.address(), true, 0).await.expect("a WebSocket");
    assert!(late.is_clean() && late.ms() > 800.0, "{late:?}");
    for client in opened {
        let ending = client.run(&Plan::default()).await;
        assert!(ending.is_clean() && ending.code() == 4321, "{ending:?}");
        assert!(ending.is_immediate(), "{ending:?}");
    }
    envoy.replace_listeners(|changed| {
        (changed.http_filter, changed.network_filter) = (setup.http_filter, setup.network_filter);
    });
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    crowd.stop().await;
    is_in_order(&envoy).await;
}

/// Hot restart: a new process takes the listeners. What is open in the old one closes there, clean and
/// immediate, until Envoy ends it; everything new is as ever.
#[tokio::test(flavor = "multi_thread")]
async fn hot_restart() {
    let server = Server::start().await;
    let setup = Setup { drain_seconds: 4, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    let left_open = open(envoy.address(), "/echo?by=client").await;
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
async fn envoys_own_drain() {
    let server = Server::start().await;
    let setup = Setup { drain_seconds: 3, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    let crowd = Crowd::start(envoy.address());
    crowd.closes(30).await;
    envoy.post("/healthcheck/fail");
    crowd.closes(30).await;
    crowd.stop().await;
    let mut opened = Vec::new();
    for n in 0..20 {
        let path = format!("/talks?by=server&code=4321&every=50&until={}", n * 100);
        opened.push(open(envoy.address(), &path).await);
    }
    envoy.post("/drain_listeners?graceful");
    for client in opened {
        let ending = client.run(&Plan::default()).await;
        assert!(ending.is_clean() && ending.code() == 4321, "{ending:?}");
        assert!(ending.is_immediate(), "{ending:?}");
    }
    is_in_order(&envoy).await;
}
