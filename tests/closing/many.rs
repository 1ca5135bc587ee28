//! Many closes at once.

use std::time::Duration;

use testbed::closing::{open, plan, run_all, SERVER_CODE};
use testbed::server::{path, Behaviour};
use testbed::{Ending, Envoy, Mode, Plan, Server, Setup};

/// Twenty clean closes at once are no failures, and eject nobody; the default and the baseline
/// eject the healthy host.
#[tokio::test(flavor = "multi_thread")]
async fn clean_closes_are_not_failures() {
    let server = Server::start().await;
    for mode in Mode::ALL {
        let envoy = Setup::new(mode).start(server.address).await;
        let endings = at_once(&envoy, 20).await;
        assert!(endings.iter().all(Ending::is_clean), "{mode:?}: {endings:?}");
        let ejections = envoy.over_hops("outlier_detection.ejections_enforced_total");
        let log = envoy.access_log(1);
        let failures = log.iter().filter(|line| line["flags"] == "UC").count();
        println!("{}: {ejections} ejections, {failures} UC", mode.name());
        assert_eq!(log.len(), 20);
        if mode == Mode::Filter {
            assert_eq!((ejections, failures), (0, 0));
            for line in log {
                assert_eq!(line["close_code"], "4321", "{line}");
                assert_eq!(line["close_reason"], "bye", "{line}");
                assert_eq!(line["close_initiator"], "server", "{line}");
                assert_eq!(line["close_outcome"], "clean", "{line}");
                assert_eq!(line["flags"], "-", "{line}");
            }
        } else {
            assert_eq!((ejections, failures), (1, 20), "the fault is not there: {}", mode.name());
        }
    }
}

/// So many, each of which the server closes 300 ms after it was opened.
async fn at_once(envoy: &Envoy, count: usize) -> Vec<Ending> {
    let path = format!("{}&after=300", path(Behaviour::Waits, true, SERVER_CODE));
    let plan = Plan { patience: Duration::from_secs(30), ..Plan::default() };
    let mut tasks = Vec::new();
    for _ in 0..count {
        let client = open(envoy.address(), &path).await;
        let plan = plan.clone();
        tasks.push(tokio::spawn(async move { client.run(&plan).await }));
    }
    let mut endings = Vec::new();
    for task in tasks {
        endings.push(task.await.expect("a close does not panic"));
    }
    endings
}

/// Two thousand, nearly at once, over two hops and two workers: each immediate and clean, and the
/// counters add up.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).patient().start(server.address).await;
    let endings = at_once(&envoy, 2000).await;
    let unclean: Vec<_> = endings.iter().filter(|e| !e.is_clean()).collect();
    assert!(unclean.is_empty(), "{} unclean, such as {}", unclean.len(), unclean[0]);
    // On a busy machine the closes queue behind each other; none waits for a timer.
    assert_eq!(envoy.timers_expired(), 0);
    assert_eq!(envoy.metric("websocket.upgrades"), 4000);
    assert_eq!(envoy.metric("websocket.closed.clean"), 4000);
    assert_eq!(envoy.metric("websocket.initiator.server"), 4000);
    assert_eq!(envoy.metric("websocket.code.private"), 4000);
    assert_eq!(envoy.metric("websocket.active"), 0);
}

/// Three thousand on one worker, in the same moment: told by their server, and by the clients. What the
/// filter asks of Envoy for many at once, Envoy must not carry out inside of each other: the stack of the
/// VM would not do.
#[tokio::test(flavor = "multi_thread")]
async fn in_one_moment() {
    const COUNT: usize = 3000;
    let server = Server::start().await;
    let setup = Setup { workers: 1, ..Setup::new(Mode::Filter) };
    let envoy = setup.patient().start(server.address).await;
    for by_server in [true, false] {
        let path = if by_server { "/waits?by=server&told=1" } else { "/waits?by=client" };
        let mut clients = Vec::new();
        for _ in 0..COUNT {
            clients.push(open(envoy.address(), path).await);
        }
        // Until each waits for it, at the server too.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let plan = Plan { patience: Duration::from_secs(30), ..plan(by_server) };
        let all = tokio::spawn(async move { run_all(clients, &plan).await });
        server.close_all();
        let mut latest = 0.0_f64;
        for ending in all.await.expect("a close does not panic") {
            assert!(ending.is_clean(), "{ending:?}");
            latest = latest.max(ending.ms());
        }
        println!("by the server: {by_server}; the latest of {COUNT} after {latest:.0} ms");
        // A busy machine may take its time over them; but none waits for a timer, and the next is immediate.
        assert_eq!(envoy.timers_expired(), 0);
        let log = envoy.log();
        assert!(!log.contains("[error][wasm]"), "{log}");
        let after = at_once(&envoy, 1).await;
        assert!(after[0].is_immediate(), "{after:?}");
    }
    assert_eq!(envoy.metric("websocket.closed.clean"), 2 * COUNT as u64 + 2);
    assert_eq!(envoy.metric("websocket.active"), 0);
}
