//! A WebSocket inside a CONNECT: an Envoy whose `tcp_proxy` opens the tunnel, one that ends it, and behind that one the
//! Envoy that knows of the WebSocket. Which of them adds a second to a close, and what takes it away.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::{json, Value};
use testbed::closing::{close, IMMEDIATE};
use testbed::envoy::hold_port;
use testbed::server::Behaviour;
use testbed::{fetch, End, Envoy, Mode, Server, Setup};

fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{name}"));
    json!({ "name": name, "typed_config": config })
}

fn listener(port: u16, filter: &Value) -> Value {
    json!({
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{ "filters": [filter] }],
    })
}

fn cluster(name: &str, port: u16) -> Value {
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    json!({
        "name": name,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
    })
}

/// Both ends of a tunnel to `inner`.
fn tunnel(inner: SocketAddr, http2: bool, delayed_close_timeout: &str) -> Envoy {
    let (held, [open, end]) = {
        let (one, open) = hold_port();
        let (other, end) = hold_port();
        ([one, other], [open, end])
    };
    let opens = json!({
        "stat_prefix": "opens", "cluster": "end", "tunneling_config": { "hostname": "inner:80" },
    });
    let ends = json!({
        "stat_prefix": "ends",
        "delayed_close_timeout": delayed_close_timeout,
        "http2_protocol_options": { "allow_connect": true },
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "http_filters": [typed("filters.http.router.v3.Router", json!({}))],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{
            "match": { "connect_matcher": {} },
            "route": {
                "cluster": "inner",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
            },
        }] }] },
    });
    let mut to_end = cluster("end", end);
    if http2 {
        let options = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
        let options = typed("upstreams.http.v3.HttpProtocolOptions", options);
        to_end["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options["typed_config"],
        });
    }
    let manager = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    let config = json!({
        "static_resources": {
            "listeners": [
                listener(open, &typed("filters.network.tcp_proxy.v3.TcpProxy", opens)),
                listener(end, &typed(manager, ends)),
            ],
            "clusters": [to_end, cluster("inner", inner.port())],
        },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
    });
    let mut command = Command::new(fetch::envoy());
    command.args(["--use-dynamic-base-id", "--log-level", "warning"]);
    let envoy = Envoy::run(command, &config.to_string(), vec![([127, 0, 0, 1], open).into()]);
    drop(held);
    envoy.unwrap_or_else(|log| panic!("{log}"))
}

/// `delayed_close_timeout` as Envoy has it, and the one that takes the tunnel's second away.
const DEFAULT: &str = "1s";
const NONE: &str = "0s";

#[tokio::test(flavor = "multi_thread")]
async fn whose_second_it_is() {
    let server = Server::start().await;
    for (mode, http2, at_the_end, seconds) in [
        (Mode::Default, false, DEFAULT, 2),
        (Mode::Default, false, NONE, 1),
        (Mode::Filter, false, DEFAULT, 1),
        (Mode::Filter, false, NONE, 0),
        (Mode::Default, true, DEFAULT, 1),
        (Mode::Filter, true, DEFAULT, 0),
    ] {
        let inner = Setup::new(mode).start(server.address).await;
        let tunnel = tunnel(inner.address(), http2, at_the_end);
        for by_server in [true, false] {
            let ending = close(tunnel.address(), Behaviour::Waits, by_server).await;
            let what = format!("{mode:?}, HTTP/2: {http2}, {at_the_end}, {by_server}: {ending}");
            println!("{what}");
            assert!(ending.is_clean() && ending.end == End::Fin, "{what}");
            let least = Duration::from_secs(seconds);
            // A timer of Envoy's may be a few milliseconds early.
            let early = Duration::from_millis(20);
            assert!(ending.after + early >= least && ending.after < least + IMMEDIATE, "{what}");
        }
    }
}
