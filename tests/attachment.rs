//! Where the two filters are attached: together, alone, swapped, twice, and with configurations that Envoy
//! refuses.

use serde_json::json;
use testbed::closing::close;
use testbed::server::Behaviour;
use testbed::{wire, Mode, Server, Setup, Streams};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// As after a rolling update of the image: the filters live in two VMs and share no memory.
#[tokio::test(flavor = "multi_thread")]
async fn in_two_vms() {
    let server = Server::start().await;
    let setup = Setup { network_vm: "another", ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    for by_server in [true, false] {
        for _ in 0..20 {
            let ending = close(envoy.address(), Behaviour::Waits, by_server).await;
            assert!(ending.is_clean() && ending.is_immediate(), "{ending:?}");
        }
    }
    assert_eq!(envoy.metric("websocket.unpaired"), 0);
}

/// Without the network filter a close is delayed, as without the module; but it is counted, logged once,
/// and no failure.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_network_filter() {
    let server = Server::start().await;
    let setup = Setup { network_filter: None, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    for _ in 0..6 {
        let ending = close(envoy.address(), Behaviour::Waits, true).await;
        assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
    }
    assert_eq!(envoy.metric("websocket.unpaired"), 6);
    assert_eq!(envoy.metric("websocket.closed.clean"), 6);
    assert_eq!(envoy.over_hops("outlier_detection.ejections_enforced_total"), 0);
    let warnings = envoy.log().matches("has no network filter").count();
    // Once a worker.
    assert!((1..=2).contains(&warnings), "{warnings}:\n{}", envoy.log());
}

/// Without the HTTP filter nothing happens at all.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_http_filter() {
    let server = Server::start().await;
    let setup = Setup { http_filter: None, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    let ending = close(envoy.address(), Behaviour::Waits, true).await;
    assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
}

/// Only upgrades meet the HTTP filter: in Envoy's composite filter, or in a filter chain of their
/// own. Closes are as clean and as immediate, and requests pass.
#[tokio::test(flavor = "multi_thread")]
async fn for_upgrades_only() {
    let server = Server::start().await;
    for streams in [Streams::CompositeUpgrades, Streams::UpgradeChain] {
        let envoy = Setup { streams, ..Setup::new(Mode::Filter) }.start(server.address).await;
        for by_server in [true, false] {
            let ending = close(envoy.address(), Behaviour::Waits, by_server).await;
            assert!(ending.is_clean() && ending.is_immediate(), "{streams:?}: {ending:?}");
        }
        assert_eq!(wire::status(envoy.address(), "/plain").await.expect("a response"), 200);
        assert_eq!(envoy.metric("websocket.closed.clean"), 2, "{streams:?}");
        assert_eq!(envoy.metric("websocket.unpaired"), 0, "{streams:?}");
    }
}

/// `enforce: false` counts and changes nothing: as delayed, as unanswered, and as much a failure as
/// without the filter.
#[tokio::test(flavor = "multi_thread")]
async fn not_enforced() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter)
        .with("enforce", false)
        .with("abnormalClose", json!({ "code": 1011 }))
        .with("tcpCloseTimeout", "0.2s");
    let envoy = setup.start(server.address).await;
    let ending = close(envoy.address(), Behaviour::Waits, true).await;
    assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
    for (behaviour, by_server, code) in [
        (Behaviour::FinWithoutWaiting, false, 1006),
        (Behaviour::FinWithoutClose, true, 1006),
        (Behaviour::NeverCloses, true, 4321),
    ] {
        let ending = close(envoy.address(), behaviour, by_server).await;
        assert_eq!(ending.code(), code, "{behaviour:?}: {ending:?}");
        assert!(ending.ms() > 800.0, "{behaviour:?}: {ending:?}");
    }
    for (name, count) in [
        ("upgrades", 4),
        ("closed.clean", 2),
        ("closed.client_only", 1),
        ("closed.abnormal", 1),
        ("sent.answer", 0),
        ("sent.abnormal", 0),
        // What would have been done is counted.
        ("timeout.tcp", 1),
        ("active", 0),
    ] {
        assert_eq!(envoy.metric(&format!("websocket.{name}")), count, "{name}");
    }
    let failures = envoy.access_log(1).iter().filter(|line| line["flags"] == "UC").count();
    assert_eq!(failures, 3);
}

/// A bad configuration: Envoy refuses to start and its log names the key.
#[tokio::test(flavor = "multi_thread")]
async fn bad_configurations() {
    let server = Server::start().await;
    let http = |config| Setup { http_filter: Some(config), ..Setup::new(Mode::Filter) };
    let network = |config| Setup { network_filter: Some(config), ..Setup::new(Mode::Filter) };
    for (setup, says) in [
        (http(json!({})), "`attach` is missing"),
        (http(json!("")), "`attach` is missing"),
        (http(json!("{\"attach\": ")), "EOF while parsing"),
        (http(json!({"attach": "http", "enforced": true})), "unknown field `enforced`"),
        (http(json!({"attach": "http", "enforce": "yes"})), "`enforce` is \"yes\""),
        (
            http(json!({"attach": "http", "abnormalClose": {"code": 1006}})),
            "`abnormalClose.code` is 1006",
        ),
        (network(json!({"attach": "network", "drain": {}})), "`drain` is misplaced"),
    ] {
        match setup.try_start(server.address).await {
            Ok(_) => panic!("Envoy started; it should have said {says:?}"),
            Err(log) => {
                assert!(
                    log.contains(&format!("ws-clean-close: bad configuration: {says}")),
                    "{log}"
                );
            }
        }
    }
}

/// Swapped configurations: a filter of the wrong kind does nothing, logs it once, and lets everything
/// pass; also if the same one is attached as both, which Envoy gives one root context.
#[tokio::test(flavor = "multi_thread")]
async fn swapped() {
    const HTTP_MISPLACED: &str = "\"attach\": \"http\", but attached as a network filter";
    const NETWORK_MISPLACED: &str = "\"attach\": \"network\", but attached as an HTTP filter";
    let server = Server::start().await;
    for (http_place, network_place, complaints) in
        [("network", "http", [1, 1]), ("http", "http", [1, 0]), ("network", "network", [0, 1])]
    {
        let setup = Setup {
            http_filter: Some(json!({ "attach": http_place })),
            network_filter: Some(json!({ "attach": network_place })),
            workers: 1,
            ..Setup::new(Mode::Filter)
        };
        let envoy = setup.start(server.address).await;
        // A request that is refused before its headers are known comes first.
        let mut bad = TcpStream::connect(envoy.address()).await.expect("a connection");
        bad.write_all(b"nonsense\r\n\r\n").await.expect("open");
        let (head, _) = wire::read_head(&mut bad).await.expect("a response");
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
        for _ in 0..3 {
            let ending = close(envoy.address(), Behaviour::Waits, true).await;
            assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
        }
        let log = envoy.log();
        let seen = [HTTP_MISPLACED, NETWORK_MISPLACED].map(|line| log.matches(line).count());
        assert_eq!(seen, complaints, "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// A plugin for the mesh and another for the workload: each filter is attached twice. One does the
/// work, and counts.
#[tokio::test(flavor = "multi_thread")]
async fn attached_twice() {
    let server = Server::start().await;
    let envoy = Setup { copies: 2, ..Setup::new(Mode::Filter) }.start(server.address).await;
    for (behaviour, by_server, code) in [
        (Behaviour::Waits, true, 4321),
        (Behaviour::FinWithoutWaiting, true, 4321),
        (Behaviour::DataAfterClose, true, 4321),
        (Behaviour::Waits, false, 4000),
        (Behaviour::FinWithoutWaiting, false, 4000),
    ] {
        for _ in 0..4 {
            let ending = close(envoy.address(), behaviour, by_server).await;
            assert_eq!(ending.code(), code, "{behaviour:?}: {ending:?}");
            assert!(ending.is_immediate(), "{behaviour:?}: {ending:?}");
        }
    }
    assert_eq!(envoy.metric("websocket.upgrades"), 20);
    assert_eq!(envoy.metric("websocket.sent.answer"), 4);
    let warnings = envoy.log().matches("attached more than once").count();
    assert!((1..=2).contains(&warnings), "{warnings}");
}

/// The filter where `delayed_close_timeout: 0s` still stands: nothing is worse than with either.
#[tokio::test(flavor = "multi_thread")]
async fn beside_the_baseline() {
    let server = Server::start().await;
    let setup = Setup { delayed_close_timeout: Some("0s"), ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    for (behaviour, by_server, code) in [
        (Behaviour::Waits, true, 4321),
        (Behaviour::FinWithoutWaiting, true, 4321),
        (Behaviour::Waits, false, 4000),
        (Behaviour::FinWithoutWaiting, false, 4000),
    ] {
        for _ in 0..6 {
            let ending = close(envoy.address(), behaviour, by_server).await;
            assert_eq!(ending.code(), code, "{behaviour:?}: {ending:?}");
            assert!(ending.is_immediate(), "{behaviour:?}: {ending:?}");
        }
    }
    assert_eq!(envoy.metric("websocket.active"), 0);
}

/// A request that is refused before its headers are known, as the very first: the filters
/// find out their kinds all the same.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_bad_request() {
    let server = Server::start().await;
    let envoy = Setup { workers: 1, ..Setup::new(Mode::Filter) }.start(server.address).await;
    for _ in 0..2 {
        let mut bad = TcpStream::connect(envoy.address()).await.expect("a connection");
        bad.write_all(b"nonsense\r\n\r\n").await.expect("open");
        let (head, _) = wire::read_head(&mut bad).await.expect("a response");
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
        let ending = close(envoy.address(), Behaviour::Waits, true).await;
        assert!(ending.is_clean() && ending.is_immediate(), "{ending:?}");
    }
    let log = envoy.log();
    assert!(!log.contains("panicked") && !log.contains("but attached as"), "{log}");
}
