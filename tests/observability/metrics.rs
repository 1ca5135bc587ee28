//! The numbers and the log: they add up, they stay bounded, and one close can be found.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use testbed::closing::{close, open, plan, run};
use testbed::server::{path, raw_path, Behaviour};
use testbed::{Envoy, Mode, Plan, Server, Setup};
use tokio::sync::Semaphore;

/// Closes of every kind, and how many of each.
const KINDS: [(Behaviour, bool); 13] = [
    (Behaviour::Waits, true),
    (Behaviour::Waits, false),
    (Behaviour::FinWithoutWaiting, true),
    (Behaviour::FinWithoutWaiting, false),
    (Behaviour::ClosesUnread, true),
    (Behaviour::Resets, true),
    (Behaviour::Resets, false),
    (Behaviour::FinWithoutClose, true),
    (Behaviour::DiesInFrame, true),
    (Behaviour::DiesInFrame, false),
    (Behaviour::NeverCloses, true),
    (Behaviour::NeverCloses, false),
    (Behaviour::Ignores, false),
];
const OF_EACH: usize = 770;

/// So many of each kind, some at a time.
async fn closes(envoy: &Envoy, of_each: usize) {
    let room = Arc::new(Semaphore::new(64));
    let address = envoy.address();
    let mut tasks = Vec::new();
    for (behaviour, by_server) in KINDS.into_iter().cycle().take(KINDS.len() * of_each) {
        let room = Arc::clone(&room).acquire_owned().await.expect("open");
        tasks.push(tokio::spawn(async move {
            let _room = room;
            run(address, &path(behaviour, by_server, 4321), &plan(by_server)).await;
        }));
    }
    for task in tasks {
        task.await.expect("a close does not panic");
    }
}

fn series(envoy: &Envoy) -> usize {
    envoy.admin("/stats").lines().filter(|line| line.contains("websocket")).count()
}

/// How many times the histogram has measured. Envoy brings histograms up to date with each flush,
/// in the testbed every second.
async fn handshakes(envoy: &Envoy) -> u64 {
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let page = envoy.admin("/stats/prometheus");
    page.lines()
        .find_map(|line| line.strip_prefix("websocket_handshake_ms_count{} ")?.parse().ok())
        .unwrap_or_else(|| panic!("no histogram:\n{page}"))
}

/// Ten thousand closes of every kind, over two workers; both filters are reconfigured in between,
/// with WebSockets open that end afterwards. The counters add up exactly.
#[tokio::test(flavor = "multi_thread")]
async fn counters_add_up() {
    const LASTING: usize = 50;
    let server = Server::start().await;
    let setup = Setup { dynamic: true, ..Setup::new(Mode::Filter) }
        .with("closeHandshakeTimeout", "0.3s")
        .with("tcpCloseTimeout", "0.2s");
    let mut envoy = setup.start(server.address).await;
    closes(&envoy, 1).await;
    let before = series(&envoy);

    let mut lasting = Vec::new();
    for round in 0..2 {
        for _ in 0..LASTING {
            lasting.push(open(envoy.address(), "/echo?by=client").await);
        }
        closes(&envoy, OF_EACH / 3).await;
        assert_eq!(envoy.metric("websocket.active"), ((round + 1) * LASTING) as u64);
        envoy.update("http", |setup| {
            setup.http_filter.as_mut().unwrap()["tcpCloseTimeout"] = json!(format!("0.2{round}1s"));
        });
        // The network filter has nothing to configure; but it can be sent the same in other words.
        envoy.update("network", |setup| {
            setup.network_filter =
                Some(json!(format!("{}{{\"attach\": \"network\"}}", " ".repeat(round + 1))));
        });
    }
    for client in lasting.drain(..) {
        let ending = client.run(&Plan::close(4000)).await;
        assert!(ending.is_clean() && ending.is_immediate(), "opened before an update: {ending:?}");
    }
    closes(&envoy, OF_EACH - 1 - 2 * (OF_EACH / 3)).await;

    let lasting = 2 * LASTING as u64;
    let each = OF_EACH as u64;
    let count = |name: &str| envoy.metric(&format!("websocket.{name}"));
    assert_eq!(count("upgrades"), KINDS.len() as u64 * each + lasting);
    assert_eq!(count("active"), 0);
    assert_eq!(count("unpaired"), 0);
    assert_eq!(count("untracked"), 0);
    let outcomes = ["clean", "server_only", "client_only", "abnormal"];
    let [clean, server_only, client_only, abnormal] =
        outcomes.map(|outcome| count(&format!("closed.{outcome}")));
    assert_eq!(clean + server_only + client_only + abnormal, count("upgrades"));
    assert_eq!(abnormal, 2 * each);
    assert_eq!(client_only, 4 * each);
    // Whether an answer meets a server that did not wait for it is chance.
    assert!((5 * each + lasting - each..=7 * each + lasting).contains(&clean), "{clean}");
    assert_eq!(count("initiator.server"), 5 * each);
    assert_eq!(count("initiator.client"), 6 * each + lasting);
    assert_eq!(count("code.private"), 11 * each + lasting);
    assert_eq!(count("sent.answer"), 2 * each);
    assert_eq!(count("sent.abnormal"), 0);
    assert_eq!(count("timeout.tcp"), 2 * each);
    assert_eq!(count("timeout.handshake"), each);
    assert_eq!(handshakes(&envoy).await, 11 * each + lasting);
    assert_eq!(series(&envoy), before, "series grow with traffic");
}

/// Every field of the access log, for every way to end.
#[tokio::test(flavor = "multi_thread")]
async fn access_log_fields() {
    let server = Server::start().await;
    let abnormal = json!({ "code": 1012, "reason": "restarting" });
    let setup = Setup::new(Mode::Filter).with("abnormalClose", abnormal);
    let envoy = setup.start(server.address).await;
    let expected = [
        (Behaviour::Waits, true, ["4321", "bye", "server", "clean"]),
        (Behaviour::Waits, false, ["4000", "", "client", "clean"]),
        (Behaviour::FinWithoutWaiting, false, ["4000", "", "client", "client_only"]),
        (Behaviour::FinWithoutClose, true, ["1012", "restarting", "filter", "abnormal"]),
    ];
    for (behaviour, by_server, _) in expected {
        close(envoy.address(), behaviour, by_server).await;
    }
    // A reason is somebody else's text: what could break a log line is left out of it.
    let evil = [&[0x88, 14][..], &4000_u16.to_be_bytes(), b"a\r\nb\tc\x00\xc2\x85d\"e"].concat();
    run(envoy.address(), &raw_path(&evil), &Plan::default()).await;

    let log = envoy.access_log(1);
    let field = |line: usize, name: &str| log[line][format!("close_{name}")].clone();
    for (line, (behaviour, _, fields)) in expected.iter().enumerate() {
        for (name, value) in ["code", "reason", "initiator", "outcome"].into_iter().zip(fields) {
            assert_eq!(field(line, name), *value, "{behaviour:?}: {}", log[line]);
        }
    }
    assert_eq!(field(expected.len(), "reason"), "abcd\"e", "{log:?}");
}

/// Nothing but what an operator wants to read: a line for each filter and worker, and closes only
/// where debugging was asked for, at any time.
#[tokio::test(flavor = "multi_thread")]
async fn log_lines() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let close_and_log = async || {
        close(envoy.address(), Behaviour::Waits, true).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    close_and_log().await;
    let log = envoy.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("ws-clean-close")).collect();
    assert!(lines.iter().all(|line| line.contains("filter configured")), "{lines:#?}");
    assert!(log.contains("closeHandshakeTimeout 10s"), "{log}");
    envoy.post("/logging?wasm=debug");
    close_and_log().await;
    let line = "closed clean, begun by server, code 4321";
    assert_eq!(envoy.log().matches(line).count(), 1, "{}", envoy.log());
}
