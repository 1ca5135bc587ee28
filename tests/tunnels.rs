//! A WebSocket inside a CONNECT: an Envoy whose `tcp_proxy` opens the tunnel, one that ends it, and behind that one the
//! Envoy that knows of the WebSocket. Which of them adds a second to a close, and what takes it away.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use testbed::closing::{close, IMMEDIATE};
use testbed::envoy::hold_port;
use testbed::server::Behaviour;
use testbed::tunnel::{self, cluster, http2, listener, originates, socket, terminates};
use testbed::{End, Envoy, Mode, Server, Setup};

/// Both ends of a tunnel to `inner`.
fn both_ends(inner: SocketAddr, over_http2: bool, delayed_close_timeout: &str) -> Envoy {
    let (_held, ports): (Vec<_>, Vec<_>) = (0..2).map(|_| hold_port()).unzip();
    let [open, end] = [ports[0], ports[1]].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut ends = terminates("ends", "inner");
    ends["typed_config"]["delayed_close_timeout"] = json!(delayed_close_timeout);
    let to_end = if over_http2 { http2("end", end) } else { cluster("end", &socket(end)) };
    tunnel::start(
        &[
            listener("opens", Some(open), &[originates("end")]),
            listener("ends", Some(end), &[ends]),
        ],
        &[to_end, cluster("inner", &socket(inner))],
        json!({}),
        &[],
        open,
    )
}

/// `delayed_close_timeout` as Envoy has it, and the one that takes the tunnel's second away.
const DEFAULT: &str = "1s";
const NONE: &str = "0s";

#[tokio::test(flavor = "multi_thread")]
async fn whose_second_it_is() {
    let server = Server::start().await;
    for (mode, over_http2, at_the_end, seconds) in [
        (Mode::Default, false, DEFAULT, 2),
        (Mode::Default, false, NONE, 1),
        (Mode::Filter, false, DEFAULT, 1),
        (Mode::Filter, false, NONE, 0),
        (Mode::Default, true, DEFAULT, 1),
        (Mode::Filter, true, DEFAULT, 0),
    ] {
        let inner = Setup::new(mode).start(server.address).await;
        let tunnel = both_ends(inner.address(), over_http2, at_the_end);
        for by_server in [true, false] {
            let ending = close(tunnel.address(), Behaviour::Waits, by_server).await;
            let what =
                format!("{mode:?}, HTTP/2: {over_http2}, {at_the_end}, {by_server}: {ending}");
            println!("{what}");
            assert!(ending.is_clean() && ending.end == End::Fin, "{what}");
            let least = Duration::from_secs(seconds);
            // A timer of Envoy's may be a few milliseconds early.
            let early = Duration::from_millis(20);
            assert!(ending.after + early >= least && ending.after < least + IMMEDIATE, "{what}");
        }
    }
}
