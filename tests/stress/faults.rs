//! Servers that are killed, resets at any moment, and a trap in the module.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use testbed::closing::{open, until, IMMEDIATE};
use testbed::peers::{Library, Serving};
use testbed::server::{path, Behaviour};
use testbed::{fetch, wire, Client, End, Mode, Plan, Server, Setup};
use tokio::io::AsyncWriteExt;

use crate::crowd::{close_after, is_in_order, talk};

/// SIGKILL of the server: its clients learn of it at once and with the code they should get; once it is back,
/// all is as before.
#[tokio::test(flavor = "multi_thread")]
async fn server_is_killed() {
    let mut server = Serving::start(Library::Ws);
    let abnormal = json!({ "code": 1012, "reason": "restart" });
    let setup = Setup::new(Mode::Filter).hops(2).with("abnormalClose", abnormal);
    let envoy = setup.start(server.address).await;
    for round in 0..3 {
        let mut opened = Vec::new();
        for _ in 0..20 {
            opened.push(open(envoy.address(), "/client").await);
        }
        let port = server.address.port();
        let clients: Vec<_> = opened
            .into_iter()
            .enumerate()
            .map(|(n, client)| {
                // Some close in the moment of the kill.
                let close = (n % 2 == 0).then(|| (4000, String::new(), Duration::ZERO));
                let plan = Plan { close, ..Plan::default() };
                tokio::spawn(async move { client.run(&plan).await })
            })
            .collect();
        let killed = Instant::now();
        drop(server);
        for client in clients {
            let ending = client.await.expect("a client does not panic");
            assert!([1012, 4000].contains(&ending.code()), "round {round}: {ending:?}");
            assert_eq!(ending.extra, 0, "{ending:?}");
        }
        // The kill itself takes a while, and there are two hops.
        let took = killed.elapsed();
        assert!(took < 2 * IMMEDIATE, "round {round}: {took:?}");
        server = Serving::start_at(Library::Ws, port, false);
    }
    let client = open(envoy.address(), "/server").await;
    let ending = client.run(&Plan::default()).await;
    assert!(ending.is_clean() && ending.code() == 4321, "{ending:?}");
    is_in_order(&envoy).await;
}

/// RST from the one side or the other at any moment, while both close: everybody learns of it at once,
/// and nobody sees anything behind a Close frame.
#[tokio::test(flavor = "multi_thread")]
async fn resets_at_random() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    let mut rng = Rng::with_seed(1);
    let mut clients = Vec::new();
    for _ in 0..300 {
        let (resets, at, closes_at) = (rng.bool(), rng.u64(..30_000), rng.u64(..30_000));
        let server_at = if rng.bool() { at / 1000 } else { rng.u64(..30) };
        let path = match rng.u8(..3) {
            0 => format!("/waits?by=server&code=4321&after={server_at}"),
            1 => format!("/breaks?by=client&after={server_at}"),
            _ => "/echo?by=client".to_owned(),
        };
        let address = envoy.address();
        clients.push(tokio::spawn(async move {
            let mut client = Client::open(address, &path).await.map_err(|e| e.to_string())?;
            let closes_at = Duration::from_micros(closes_at);
            let plan = Plan { close: Some((4000, String::new(), closes_at)), ..Plan::default() };
            if !resets {
                return Ok(Some((path, client.run(&plan).await)));
            }
            let frame = wire::message(&[b'x'; 1000], true);
            let _ = client.stream.write_all(&frame[..500]).await;
            tokio::time::sleep(Duration::from_micros(at)).await;
            client.reset();
            Result::<_, String>::Ok(None)
        }));
    }
    let mut seen = 0;
    for client in clients {
        let Some((path, ending)) = client.await.expect("no panic").expect("a WebSocket") else {
            continue;
        };
        seen += 1;
        assert!(ending.end != End::Never && ending.is_immediate(), "{path}: {ending:?}");
        assert_eq!(ending.extra, 0, "{path}: {ending:?}");
    }
    assert!(seen > 100);
    is_in_order(&envoy).await;
    until("the server's connections end as well", || server.open() == 0).await;
}

/// A trap in the module, in the middle of a close, takes its VM with it, which is one worker's. Envoy
/// cuts what was open on that worker through the filter, whatever the policy. All else goes on: what is
/// open on the other worker, and what is new on either. With FAIL_OPEN the new is delayed on the first,
/// as without the filter; with FAIL_RELOAD Envoy makes a new VM, and closes are immediate again.
#[tokio::test(flavor = "multi_thread")]
async fn trap() {
    let server = Server::start().await;
    for policy in ["FAIL_OPEN", "FAIL_RELOAD"] {
        let module = Some(fetch::module_that_traps());
        let setup =
            Setup { module, failure_policy: policy, dynamic: true, ..Setup::new(Mode::Filter) };
        let mut envoy = setup.start(server.address).await;
        let stop = Arc::new(AtomicBool::new(false));
        let talks: Vec<_> =
            (0..20).map(|_| tokio::spawn(talk(envoy.address(), Arc::clone(&stop)))).collect();
        until("they talk", || envoy.metric("websocket.active") == 20).await;
        let before = close_after(envoy.address(), true, 0).await.expect("a WebSocket");
        assert!(before.is_clean() && before.is_immediate(), "{before:?}");

        let path = path(Behaviour::Waits, true, 4999);
        let client = open(envoy.address(), &path).await;
        let trapped = client.run(&Plan::default()).await;
        assert_ne!(trapped.end, End::Never, "{trapped:?}");
        until("the trap is logged", || envoy.log().contains("unreachable")).await;
        let mut refused = 0;
        for _ in 0..20 {
            refused +=
                usize::from(!matches!(wire::status(envoy.address(), "/plain").await, Ok(200)));
        }
        // With FAIL_RELOAD Envoy waits a second before it makes a new VM, and refuses until then.
        assert_eq!(refused > 0, policy == "FAIL_RELOAD", "{policy}: {refused}");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let mut late = 0;
        for n in 0..20 {
            let after = close_after(envoy.address(), n % 2 == 0, 0).await.expect("traffic goes on");
            assert!(after.is_clean(), "{policy}: {after:?}");
            late += usize::from(after.ms() > 800.0);
        }
        assert_eq!(wire::status(envoy.address(), "/plain").await.expect("a response"), 200);
        stop.store(true, Relaxed);
        let mut cut = 0;
        for talk in talks {
            let talk = talk.await.expect("no panic");
            cut += usize::from(talk.broken.is_some());
            let closed = talk.ending.as_ref().is_some_and(|ending| ending.code() == 4000);
            assert!(talk.broken.is_some() || closed, "{talk:?}");
        }
        println!(
            "{policy}: of 20 that were open {cut} were cut; of 20 requests right after {refused} were \
             refused; of 20 new WebSockets {late} closed late"
        );
        assert!((1..20).contains(&cut), "{policy}: {cut}");
        assert_eq!(late > 0, policy == "FAIL_OPEN", "{policy}: {late}");
        // A new configuration brings a new VM.
        envoy.update("http", |setup| *setup = setup.clone().with("closeHandshakeTimeout", "9s"));
        envoy.update("network", |setup| setup.network_vm = "new");
        for n in 0..20 {
            let after = close_after(envoy.address(), n % 2 == 0, 0).await.expect("a WebSocket");
            assert!(after.is_clean() && after.is_immediate(), "{policy}: {after:?}");
        }
    }
}
