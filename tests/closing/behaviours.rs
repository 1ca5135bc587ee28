//! Each closing behaviour of a server, through default, baseline and filter, over one and two hops,
//! server- and client-initiated.

use std::ops::Range;
use std::time::Duration;

use testbed::closing::{close, plan, run, CLIENT_CODE, IMMEDIATE, SERVER_CODE};
use testbed::server::{path, Behaviour, LARGE_LEN, TALK};
use testbed::{wire, Client, End, Ending, Envoy, Mode, Plan, Server, Setup};

/// Every behaviour through so many hops: at once, except that those with much data come last.
async fn every_close(envoy: &Envoy, hops: usize) -> Vec<(Behaviour, bool, Ending)> {
    let (much, little): (Vec<_>, Vec<_>) =
        Behaviour::COMMON.into_iter().partition(|b| *b == Behaviour::Large);
    let mut endings = close_at_once(envoy, hops, &little).await;
    endings.extend(close_at_once(envoy, hops, &much).await);
    endings
}

async fn close_at_once(
    envoy: &Envoy,
    hops: usize,
    behaviours: &[Behaviour],
) -> Vec<(Behaviour, bool, Ending)> {
    let address = envoy.entry(hops);
    let cases = behaviours.iter().flat_map(|b| [(*b, true), (*b, false)]);
    let tasks: Vec<_> = cases
        .map(|(b, by_server)| (b, by_server, tokio::spawn(close(address, b, by_server))))
        .collect();
    let mut endings = Vec::new();
    for (behaviour, by_server, task) in tasks {
        let ending = task.await.expect("a close does not panic");
        let by = if by_server { "server" } else { "client" };
        println!("{hops} hops, {:13} by {by}: {ending}", behaviour.name());
        endings.push((behaviour, by_server, ending));
    }
    endings
}

const IMMEDIATE_MS: Range<f64> = 0.0..IMMEDIATE.as_millis() as f64;

/// What the filter promises: the code, whether clean (`None`: not promised), and how soon.
fn promise(behaviour: Behaviour, by_server: bool) -> (u16, Option<bool>, Range<f64>) {
    use Behaviour::*;
    match (behaviour, by_server) {
        // `tcpCloseTimeout` is 1 s; a client that learns late of the Close frame measures less.
        (NeverCloses, true) => (SERVER_CODE, Some(true), 700.0..1400.0),
        (NeverCloses, false) => (CLIENT_CODE, Some(true), 700.0..1400.0),
        (DiesInFrame, _) => (1006, Some(false), IMMEDIATE_MS),
        (FinWithoutClose, true) => (1006, Some(false), IMMEDIATE_MS),
        // The answer may meet a socket that Envoy no longer reads: see `quiet_clients_of_servers_that_do_not_wait`.
        (FinWithoutWaiting | ClosesUnread, true) => (SERVER_CODE, None, IMMEDIATE_MS),
        (_, true) => (SERVER_CODE, Some(true), IMMEDIATE_MS),
        // The filter answers the client if the server never did.
        (_, false) => (CLIENT_CODE, Some(true), IMMEDIATE_MS),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filter() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    for hops in [1, 2] {
        for (behaviour, by_server, ending) in every_close(&envoy, hops).await {
            let (code, clean, when) = promise(behaviour, by_server);
            let what = format!("{hops} hops, {behaviour:?}, by server: {by_server}: {ending:?}");
            assert_eq!(ending.code(), code, "{what}");
            assert!(clean.is_none_or(|clean| ending.is_clean() == clean), "{what}");
            assert!(when.contains(&ending.ms()), "{what}");
            assert_eq!(ending.extra, 0, "{what}");
            match behaviour {
                Behaviour::Large => assert!(ending.payload == LARGE_LEN && ending.intact, "{what}"),
                // Half a frame is what there was, and nothing was put behind it.
                Behaviour::DiesInFrame => assert_eq!(ending.payload, 50, "{what}"),
                _ => assert_eq!(ending.payload, 0, "{what}"),
            }
            if by_server && code == SERVER_CODE {
                assert_eq!(ending.close.as_ref().map(|c| &c.1[..]), Some("bye"), "{what}");
            }
        }
    }
    assert_eq!(envoy.metric("websocket.active"), 0);
    assert_eq!(envoy.metric("websocket.unpaired"), 0);
    assert_eq!(envoy.metric("websocket.untracked"), 0);
}

/// Every close without the filter, which each hop delays by so many seconds.
async fn without_the_filter(mode: Mode, delay: f64) {
    let server = Server::start().await;
    let envoy = Setup::new(mode).hops(2).start(server.address).await;
    for hops in [1, 2] {
        for (behaviour, by_server, ending) in every_close(&envoy, hops).await {
            let what = format!("{hops} hops, {behaviour:?}, by server: {by_server}: {ending:?}");
            if behaviour == Behaviour::NeverCloses {
                assert_eq!(ending.end, End::Never, "{what}");
            } else {
                // With much data the delay of the inner hop passes meanwhile.
                let hops = if behaviour == Behaviour::Large { 1 } else { hops };
                let least = delay * 900.0 * hops as f64 - 100.0;
                assert!((least..=least + 1500.0).contains(&ending.ms()), "{what}");
            }
            if !by_server && behaviour == Behaviour::FinWithoutWaiting {
                assert_eq!(ending.code(), 1006, "nobody answers for the server: {what}");
            }
        }
    }
    assert_eq!(envoy.timers_expired() > 0, delay > 0.0);
}

/// The fault is there: without it the table above would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn default() {
    without_the_filter(Mode::Default, 1.0).await;
}

/// `delayed_close_timeout: 0s` is immediate; it gives no answers.
#[tokio::test(flavor = "multi_thread")]
async fn baseline() {
    without_the_filter(Mode::Baseline, 0.0).await;
}

/// A server that sends its Close frame and FIN together, and a client that is quiet: the code always,
/// FIN as reliably as with the baseline, and always where the client is a millisecond away.
#[tokio::test(flavor = "multi_thread")]
async fn quiet_clients_of_servers_that_do_not_wait() {
    const COUNT: usize = 600;
    const NEARBY: usize = 50;
    let server = Server::start().await;
    // In one process, as the scheduler treats two of them differently.
    let beside = vec![Setup::new(Mode::Filter).patient()];
    let envoy = Setup { beside, ..Setup::new(Mode::Baseline) }.start(server.address).await;
    let [baseline, filter] = [1, 2].map(|listener| envoy.entry(listener));
    // Pairs in which FIN came with the one and RST with the other, and with both.
    let (mut only_baseline, mut only_filter, mut both) = (0, 0, 0);
    // In turns: a busy moment of the machine is nobody's.
    for n in 0..COUNT {
        let mut fins = [false; 2];
        for turn in [n % 2, (n + 1) % 2] {
            let address = [baseline, filter][turn];
            let ending = close(address, Behaviour::FinWithoutWaiting, true).await;
            assert_eq!(ending.code(), SERVER_CODE, "{ending:?}");
            fins[turn] = ending.end == End::Fin;
        }
        match fins {
            [true, false] => only_baseline += 1,
            [false, true] => only_filter += 1,
            [true, true] => both += 1,
            [false, false] => {}
        }
    }
    let mut clean = 0;
    for _ in 0..NEARBY {
        let path = path(Behaviour::FinWithoutWaiting, true, SERVER_CODE);
        let plan = Plan { distance: Duration::from_millis(1), ..Plan::default() };
        let ending = run(filter, &path, &plan).await;
        assert_eq!(ending.code(), SERVER_CODE, "{ending:?}");
        clean += usize::from(ending.is_clean());
    }
    assert_eq!(envoy.timers_expired(), 0);
    // All, unless a busy machine stops Envoy for that millisecond between its `write` and its `close`.
    assert!(clean >= NEARBY * 9 / 10, "{clean} of {NEARBY} a millisecond away");
    println!(
        "FIN in {} (baseline) and {} (filter) of {COUNT}",
        both + only_baseline,
        both + only_filter
    );
    // Whether FIN or RST is the scheduler's choice, on a busy machine in three of four closes RST. If the filter were no
    // worse, this would fail once in 30,000 runs: four standard deviations of a fair coin.
    let deviation = f64::from(only_baseline + only_filter).sqrt();
    assert!(f64::from(only_baseline - only_filter) <= 4.0 * deviation);
}

/// TLS to the client and between the hops.
#[tokio::test(flavor = "multi_thread")]
async fn over_tls() {
    let server = Server::start().await;
    let setup = Setup { tls: true, ..Setup::new(Mode::Filter).hops(2) };
    let envoy = setup.start(server.address).await;
    for by_server in [true, false] {
        for _ in 0..10 {
            let path = path(Behaviour::Waits, by_server, SERVER_CODE);
            let client = Client::open_tls(envoy.address(), &path).await.expect("a WebSocket");
            let ending = client.run(&plan(by_server)).await;
            assert!(ending.is_clean(), "{ending:?}");
            assert!(ending.is_immediate(), "{ending:?}");
        }
    }
}

/// What a server says behind its Close frame is nobody's business, and passes.
#[tokio::test(flavor = "multi_thread")]
async fn data_behind_the_close_frame() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    let said: usize = TALK.iter().map(|word| wire::message(word, false).len()).sum();
    for address in [server.address, envoy.entry(1), envoy.entry(2)] {
        let ending = close(address, Behaviour::DataAfterClose, true).await;
        assert_eq!(
            (ending.code(), ending.extra, ending.end),
            (SERVER_CODE, said, End::Fin),
            "{ending:?}"
        );
        assert!(ending.is_immediate(), "{ending:?}");
    }
}

/// Both begin at once: each gets the other's code, and nobody waits.
#[tokio::test(flavor = "multi_thread")]
async fn both_at_once() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    let path = format!("{}&after=20", path(Behaviour::Waits, true, 4321));
    for i in 0..60 {
        // Around the moment in which the server does, so that the frames cross at every place.
        let after = Duration::from_micros(18_000 + i * 100);
        let plan = Plan { close: Some((4000, "mine".to_owned(), after)), ..Plan::default() };
        let ending = run(envoy.address(), &path, &plan).await;
        assert!(matches!(ending.code(), 4321 | 4000), "{ending:?}");
        assert!(ending.is_clean() && ending.is_immediate(), "{ending:?}");
    }
    assert_eq!(envoy.metric("websocket.closed.clean"), 120);
    assert_eq!(envoy.metric("websocket.timeout.tcp"), 0);
}
