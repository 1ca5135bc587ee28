//! Much data in front of a Close frame, slow readers and small buffers.

use std::time::Duration;

use testbed::closing::{close, plan, run, CLIENT_CODE, SERVER_CODE};
use testbed::server::{path, Behaviour, LARGE_LEN};
use testbed::{Mode, Plan, Server, Setup};

/// 20 MB to a client that reads slowly: the server is long gone when the last byte arrives.
#[tokio::test(flavor = "multi_thread")]
async fn slow_reader() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    for by_server in [true, false] {
        let path = path(Behaviour::Large, by_server, SERVER_CODE);
        let plan = Plan {
            slowly: Some((50_000, Duration::from_millis(10))),
            patience: Duration::from_secs(60),
            ..plan(by_server)
        };
        let ending = run(envoy.address(), &path, &plan).await;
        assert!(ending.payload == LARGE_LEN && ending.intact && ending.is_clean(), "{ending:?}");
    }
}

/// Small buffers: nothing overflows them.
#[tokio::test(flavor = "multi_thread")]
async fn small_buffers() {
    let server = Server::start().await;
    let setup = Setup { buffer_limit: Some(1024), ..Setup::new(Mode::Filter).hops(2) };
    let envoy = setup.start(server.address).await;
    for behaviour in [Behaviour::Waits, Behaviour::FinWithoutWaiting, Behaviour::Large] {
        for by_server in [true, false] {
            let ending = close(envoy.address(), behaviour, by_server).await;
            let code = if by_server { SERVER_CODE } else { CLIENT_CODE };
            let payload = if behaviour == Behaviour::Large { LARGE_LEN } else { 0 };
            assert_eq!(
                (ending.code(), ending.payload),
                (code, payload),
                "{behaviour:?}: {ending:?}"
            );
        }
    }
}
