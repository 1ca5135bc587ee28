//! Envoys that carry TCP inside of a CONNECT, and what their configurations are made of.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::{json, Map, Value};

use crate::{fetch, Envoy};

/// What the types of Envoy's extensions begin with.
pub const TYPE: &str = "type.googleapis.com/envoy.extensions.";

/// Envoy 1.38 makes an RST of the end of a tunnel that the other side has closed after its last byte, and what has not
/// been sent by then is lost (https://github.com/envoyproxy/envoy/issues/45190, fixed in 1.39).
pub const RESET_TO_RST: &str = "envoy.reloadable_features.map_http_stream_reset_to_tcp_rst";
/// With Envoy 1.40, an RST between internal listeners drops what the other side has not read yet.
pub const RST_BETWEEN_LISTENERS: &str =
    "envoy.reloadable_features.enable_send_rst_on_user_space_socket";

/// An Envoy with these listeners and clusters, that is entered at `entry`. `more` is merged into its configuration, and
/// the features of Envoy's that `off` names are turned off; so is the fault of 1.38.
///
/// # Panics
/// Where it does not start, with its log.
pub fn start(
    listeners: &[Value],
    clusters: &[Value],
    more: Value,
    off: &[&str],
    entry: SocketAddr,
) -> Envoy {
    let faults =
        if fetch::envoy_version().starts_with("1.38.") { &[RESET_TO_RST][..] } else { &[] };
    let runtime: Map<_, _> =
        off.iter().chain(faults).map(|feature| ((*feature).to_owned(), json!(false))).collect();
    let mut config = more;
    config["layered_runtime"] =
        json!({ "layers": [{ "name": "static", "static_layer": runtime }] });
    config["static_resources"] = json!({ "listeners": listeners, "clusters": clusters });
    config["admin"] = json!({ "address": socket(SocketAddr::from(([127, 0, 0, 1], 0))) });
    let mut command = Command::new(fetch::envoy());
    // One worker: all tunnels are streams of one connection.
    command.args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]);
    Envoy::run(command, &config.to_string(), vec![entry]).unwrap_or_else(|log| panic!("{log}"))
}

pub fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// A listener; an internal one without an address.
pub fn listener(name: &str, address: Option<SocketAddr>, filters: &[Value]) -> Value {
    let mut listener = json!({ "name": name, "filter_chains": [{ "filters": filters }] });
    match address {
        Some(address) => listener["address"] = socket(address),
        None => listener["internal_listener"] = json!({}),
    }
    listener
}

pub fn cluster(name: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": address },
        }]}]},
        "outlier_detection": { "consecutive_5xx": 5, "max_ejection_percent": 100 },
    })
}

/// The cluster of a tunnel over HTTP/2.
pub fn http2(name: &str, address: SocketAddr) -> Value {
    let mut cluster = cluster(name, &socket(address));
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPE}upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { "http2_protocol_options": { "allow_connect": true } },
        },
    });
    cluster
}

/// The network filter that opens a tunnel through `cluster`.
pub fn originates(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": format!("{TYPE}filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": cluster,
            "cluster": cluster,
            "tunneling_config": { "hostname": "10.0.0.9:80" },
        },
    })
}

/// The network filter that ends tunnels, over HTTP/1.1 and HTTP/2, and goes on to `cluster`.
pub fn terminates(name: &str, cluster: &str) -> Value {
    let mut manager = manager(name);
    let config = &mut manager["typed_config"];
    config["http2_protocol_options"] =
        json!({ "allow_connect": true, "max_concurrent_streams": 100 });
    config["stream_idle_timeout"] = json!("0s");
    config["upgrade_configs"] = json!([{ "upgrade_type": "CONNECT" }]);
    config["route_config"]["virtual_hosts"][0]["routes"] = json!([{
        "match": { "connect_matcher": {} },
        "route": {
            "cluster": cluster, "timeout": "0s",
            "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
        },
    }]);
    manager
}

/// A connection manager without routes.
pub fn manager(name: &str) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": format!("{TYPE}filters.http.router.v3.Router") },
            }],
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [] }] },
        },
    })
}
