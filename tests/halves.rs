//! The two halves: together, apart, alone, and with configurations that are no good.

use std::time::Duration;

use serde_json::json;
use testbed::http2::Connection;
use testbed::server::{path, Behaviour};
use testbed::{wire, Client, Ending, Envoy, Mode, Plan, Server, Setup, Streams};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

async fn close(envoy: &Envoy, behaviour: Behaviour, by_server: bool) -> Ending {
    let path = path(behaviour, by_server, 4321);
    let client = Client::open(envoy.address(), false, &path).await.expect("a WebSocket");
    let plan = if by_server { Plan::default() } else { Plan::close(4000) };
    client.run(&Plan { patience: Duration::from_secs(4), ..plan }).await
}

/// As after a rolling update of the image: the halves live in two VMs and share no memory.
#[tokio::test(flavor = "multi_thread")]
async fn in_two_vms() {
    let server = Server::start().await;
    let setup = Setup { network_vm: "another", ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    for by_server in [true, false] {
        for _ in 0..20 {
            let ending = close(&envoy, Behaviour::Waits, by_server).await;
            assert!(ending.is_clean() && ending.ms() < 400.0, "{ending:?}");
        }
    }
    assert_eq!(envoy.metric("websocket.unpaired"), 0);
}

/// Without the network half a close is late, as without the filter; but it is counted, said once,
/// and no failure.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_network_half() {
    let server = Server::start().await;
    let setup = Setup { network_half: None, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    for _ in 0..6 {
        let ending = close(&envoy, Behaviour::Waits, true).await;
        assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
    }
    assert_eq!(envoy.metric("websocket.unpaired"), 6);
    assert_eq!(envoy.metric("websocket.closed.clean"), 6);
    assert_eq!(envoy.over_hops("outlier_detection.ejections_enforced_total"), 0);
    let warnings = envoy.log().matches("has no network filter").count();
    // Once a worker.
    assert!((1..=2).contains(&warnings), "{warnings}:\n{}", envoy.log());
}

/// Where only upgrades meet the HTTP half: in Envoy's composite filter, or in a filter chain of their
/// own. Closes are as clean and as prompt, and requests pass.
#[tokio::test(flavor = "multi_thread")]
async fn for_upgrades_only() {
    let server = Server::start().await;
    for streams in [Streams::CompositeUpgrades, Streams::UpgradeChain] {
        let envoy = Setup { streams, ..Setup::new(Mode::Filter) }.start(server.address).await;
        for by_server in [true, false] {
            let ending = close(&envoy, Behaviour::Waits, by_server).await;
            assert!(ending.is_clean() && ending.ms() < 400.0, "{streams:?}: {ending:?}");
        }
        assert_eq!(wire::status(envoy.address(), "/plain").await.expect("a response"), 200);
        assert_eq!(envoy.metric("websocket.closed.clean"), 2, "{streams:?}");
        assert_eq!(envoy.metric("websocket.unpaired"), 0, "{streams:?}");
    }
}

/// Without the HTTP half nothing happens at all.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_http_half() {
    let server = Server::start().await;
    let setup = Setup { http_half: None, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    let ending = close(&envoy, Behaviour::Waits, true).await;
    assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
}

/// `enforce: false` counts and changes nothing: as late, as unanswered, and as much a failure as
/// without the filter.
#[tokio::test(flavor = "multi_thread")]
async fn not_enforced() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter)
        .with("enforce", false)
        .with("abnormalClose", json!({ "code": 1011 }))
        .with("tcpCloseTimeout", "0.2s");
    let envoy = setup.start(server.address).await;
    let ending = close(&envoy, Behaviour::Waits, true).await;
    assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
    for (behaviour, by_server, code) in [
        (Behaviour::Hasty, false, 1006),
        (Behaviour::Vanishes, true, 1006),
        (Behaviour::NeverCloses, true, 4321),
    ] {
        let ending = close(&envoy, behaviour, by_server).await;
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

/// A configuration that is no good: Envoy refuses to start and its log names the key.
#[tokio::test(flavor = "multi_thread")]
async fn bad_configurations() {
    let server = Server::start().await;
    let http = |config| Setup { http_half: Some(config), ..Setup::new(Mode::Filter) };
    let network = |config| Setup { network_half: Some(config), ..Setup::new(Mode::Filter) };
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

/// Two attachments are soon mixed up: a half in the other's place does nothing, says so once, and
/// lets everything pass; also where it stands in both places, which Envoy gives one root context.
#[tokio::test(flavor = "multi_thread")]
async fn in_each_others_place() {
    const HTTP_MISPLACED: &str = "\"attach\": \"http\", but attached as a network filter";
    const NETWORK_MISPLACED: &str = "\"attach\": \"network\", but attached as an HTTP filter";
    let server = Server::start().await;
    for (http_place, network_place, complaints) in
        [("network", "http", [1, 1]), ("http", "http", [1, 0]), ("network", "network", [0, 1])]
    {
        let setup = Setup {
            http_half: Some(json!({ "attach": http_place })),
            network_half: Some(json!({ "attach": network_place })),
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
            let ending = close(&envoy, Behaviour::Waits, true).await;
            assert!(ending.is_clean() && ending.ms() > 800.0, "{ending:?}");
        }
        let log = envoy.log();
        let seen = [HTTP_MISPLACED, NETWORK_MISPLACED].map(|line| log.matches(line).count());
        assert_eq!(seen, complaints, "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// A plugin for the mesh and another for the workload: each half stands there twice. One does the
/// work, and counts.
#[tokio::test(flavor = "multi_thread")]
async fn attached_twice() {
    let server = Server::start().await;
    let envoy = Setup { copies: 2, ..Setup::new(Mode::Filter) }.start(server.address).await;
    for (behaviour, by_server, code) in [
        (Behaviour::Waits, true, 4321),
        (Behaviour::Hasty, true, 4321),
        (Behaviour::TalksOn, true, 4321),
        (Behaviour::Waits, false, 4000),
        (Behaviour::Hasty, false, 4000),
    ] {
        for _ in 0..4 {
            let ending = close(&envoy, behaviour, by_server).await;
            assert_eq!(ending.code(), code, "{behaviour:?}: {ending:?}");
            assert!(ending.ms() < 400.0, "{behaviour:?}: {ending:?}");
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
        (Behaviour::Hasty, true, 4321),
        (Behaviour::Waits, false, 4000),
        (Behaviour::Hasty, false, 4000),
    ] {
        for _ in 0..6 {
            let ending = close(&envoy, behaviour, by_server).await;
            assert_eq!(ending.code(), code, "{behaviour:?}: {ending:?}");
            assert!(ending.ms() < 400.0, "{behaviour:?}: {ending:?}");
        }
    }
    assert_eq!(envoy.metric("websocket.active"), 0);
}

/// A request that is refused before its headers are known, as the very first: the halves are in
/// their places all the same.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_bad_request() {
    let server = Server::start().await;
    let envoy = Setup { workers: 1, ..Setup::new(Mode::Filter) }.start(server.address).await;
    for _ in 0..2 {
        let mut bad = TcpStream::connect(envoy.address()).await.expect("a connection");
        bad.write_all(b"nonsense\r\n\r\n").await.expect("open");
        let (head, _) = wire::read_head(&mut bad).await.expect("a response");
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
        let ending = close(&envoy, Behaviour::Waits, true).await;
        assert!(ending.is_clean() && ending.ms() < 400.0, "{ending:?}");
    }
    let log = envoy.log();
    assert!(!log.contains("panicked") && !log.contains("but attached as"), "{log}");
}

/// An HTTP/2 connection carries other streams: its WebSockets are counted and never closed by the
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn http2_downstream() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let mut connection = Connection::open(envoy.address()).await;
    let mut other = connection.websocket("/echo?by=client").await.expect("a WebSocket");
    let mut closing =
        connection.websocket(&path(Behaviour::Waits, true, 4321)).await.expect("a WebSocket");

    let close = closing.next().await.expect("a frame").expect("a frame");
    assert_eq!(wire::read_close(&close.payload), (4321, "bye".to_owned()));
    closing.send(wire::close(4321, "", true)).expect("an open stream");
    // The stream ends, in one way or the other; the connection does not.
    while let Ok(Some(_)) = closing.next().await {}

    other.send(wire::message(b"still here", true)).expect("an open stream");
    let echo = other.next().await.expect("a frame").expect("a frame");
    assert_eq!(echo.payload, b"still here");
    assert_eq!(connection.get("/plain").await.expect("a response"), 200);
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(connection.is_open());
    assert_eq!(envoy.metric("websocket.upgrades"), 2);
    assert_eq!(envoy.metric("websocket.unpaired"), 0);
    assert_eq!(envoy.metric("websocket.closed.clean"), 1);
    assert_eq!(envoy.metric("websocket.active"), 1);
    assert_eq!(envoy.access_log(1)[0]["protocol"], "HTTP/2");
}

/// HTTP/2 between two proxies: the inner one ends its stream with RST_STREAM, of which the outer one
/// learns when it is too late. Nothing is lost, and the client's connection ends at once.
#[tokio::test(flavor = "multi_thread")]
async fn http2_between_the_hops() {
    let server = Server::start().await;
    for mode in [Mode::Default, Mode::Filter] {
        let setup = Setup { http2_between: true, ..Setup::new(mode).hops(2) };
        let envoy = setup.start(server.address).await;
        for (behaviour, by_server, code) in [
            (Behaviour::Waits, true, 4321),
            (Behaviour::Hasty, true, 4321),
            (Behaviour::Slams, true, 4321),
            (Behaviour::Waits, false, 4000),
        ] {
            for _ in 0..if mode == Mode::Filter { 20 } else { 1 } {
                let ending = close(&envoy, behaviour, by_server).await;
                assert_eq!(ending.code(), code, "{mode:?}, {behaviour:?}: {ending:?}");
                if mode == Mode::Filter {
                    assert!(ending.ms() < 400.0, "{behaviour:?}: {ending:?}");
                }
            }
        }
        let flags: Vec<_> = envoy.access_log(2).iter().map(|line| line["flags"].clone()).collect();
        println!("{mode:?}: flags at the outer hop: {:?}", flags.first());
        if mode == Mode::Filter {
            assert_eq!(envoy.metric("websocket.active"), 0);
        }
    }
}
