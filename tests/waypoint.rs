//! A waypoint of Istio's ambient mode, rebuilt with three Envoys: a client's tunnel, the waypoint with its internal
//! listeners, and a server's tunnel. Its structure is that of pilot's output for Istio 1.28 and 1.31; ztunnel, which
//! makes the tunnels there, is played by Envoy.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{json, Value};
use testbed::entry::Entry;
use testbed::server::{self, UPGRADE};
use testbed::tunnel::{
    self, cluster, http2, listener, manager, originates, socket, terminates, RST_BETWEEN_LISTENERS,
    TYPE,
};
use testbed::{envoy, fetch, wire, Client, Mode, Plan, Server, Setup, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The three Envoys.
struct Mesh {
    _held: Vec<socket2::Socket>,
    _tunnels: [testbed::Envoy; 2],
    waypoint: testbed::Envoy,
    /// Where a client enters the first tunnel.
    entry: SocketAddr,
}

impl Mesh {
    fn start(mode: Mode, server: SocketAddr) -> Self {
        Self::without(&[], mode, server)
    }

    /// With these features of Envoy's turned off.
    fn without(off: &[&str], mode: Mode, server: SocketAddr) -> Self {
        let (held, ports): (Vec<_>, Vec<_>) = (0..3).map(|_| envoy::hold_port()).unzip();
        let [entry, waypoint, server_tunnel] =
            [ports[0], ports[1], ports[2]].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let start = |listeners: Vec<Value>, clusters: Vec<Value>, address| {
            let internal_listeners = json!({ "bootstrap_extensions": [{
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": { "@type": format!("{TYPE}bootstrap.internal_listener.v3.InternalListener") },
            }]});
            tunnel::start(&listeners, &clusters, internal_listeners, off, address)
        };
        let last = start(
            vec![listener("hbone", Some(server_tunnel), &[terminates("server", "server")])],
            vec![cluster("server", &socket(server))],
            server_tunnel,
        );
        let middle = start(
            vec![
                listener(
                    "connect_terminate",
                    Some(waypoint),
                    &[terminates("connect_terminate", "main_internal")],
                ),
                listener("main_internal", None, &main_internal(mode)),
                listener("connect_originate", None, &[originates("tunnel")]),
            ],
            vec![
                internal("main_internal", "main_internal"),
                internal("vip", "connect_originate"),
                http2("tunnel", server_tunnel),
            ],
            waypoint,
        );
        let first = start(
            vec![listener("client", Some(entry), &[originates("waypoint")])],
            vec![http2("waypoint", waypoint)],
            entry,
        );
        Self { _held: held, _tunnels: [last, first], waypoint: middle, entry }
    }

    fn entry(&self) -> Entry {
        Entry { address: self.entry, transport: Transport::Tcp, host: "localhost" }
    }

    /// WebSockets that the waypoint has logged, and those with Envoy's flag for a failed upstream.
    fn logged(&self) -> (usize, usize) {
        self.waypoint.flush_access_log();
        std::thread::sleep(Duration::from_millis(300));
        let log = self.waypoint.log();
        let lines: Vec<_> = log.lines().filter(|line| line.starts_with("websocket 101 ")).collect();
        (lines.len(), lines.iter().filter(|line| line.ends_with(" UC")).count())
    }

    fn ejections(&self) -> u64 {
        self.waypoint.stat("cluster.vip.outlier_detection.ejections_enforced_total")
    }
}

/// The cluster of an internal listener.
fn internal(name: &str, listener: &str) -> Value {
    let address = json!({
        "envoy_internal_address": { "server_listener_name": listener, "endpoint_id": name },
    });
    let mut cluster = cluster(name, &address);
    cluster["transport_socket"] = json!({
        "name": "internal_upstream",
        "typed_config": {
            "@type": format!("{TYPE}transport_sockets.internal_upstream.v3.InternalUpstreamTransport"),
            "transport_socket": {
                "name": "raw_buffer",
                "typed_config": { "@type": format!("{TYPE}transport_sockets.raw_buffer.v3.RawBuffer") },
            },
        },
    });
    cluster
}

/// The filters of `main_internal`, as examples/waypoint/ has them.
fn main_internal(mode: Mode) -> Vec<Value> {
    let mut manager = manager("main_internal");
    let config = &mut manager["typed_config"];
    config["upgrade_configs"] = json!([{ "upgrade_type": "websocket" }]);
    config["route_config"]["virtual_hosts"][0]["routes"] = json!([
        { "match": { "prefix": "/" }, "route": { "cluster": "vip", "timeout": "0s" } },
    ]);
    config["access_log"] = json!([{
        "name": "stdout",
        "typed_config": {
            "@type": format!("{TYPE}access_loggers.stream.v3.StdoutAccessLog"),
            "log_format": { "text_format_source": {
                "inline_string": "websocket %RESPONSE_CODE% %RESPONSE_FLAGS%\n",
            }},
        },
    }]);
    if mode == Mode::Baseline {
        config["delayed_close_timeout"] = json!("0s");
    }
    if mode != Mode::Filter {
        return vec![manager];
    }
    let filters = config["http_filters"].as_array_mut().expect("the router");
    filters.insert(0, wasm("http"));
    vec![wasm("network"), manager]
}

fn wasm(layer: &str) -> Value {
    json!({
        "name": format!("ws-clean-close-{layer}"),
        "typed_config": {
            "@type": format!("{TYPE}filters.{layer}.wasm.v3.Wasm"),
            "config": {
                "name": format!("ws-clean-close-{layer}"),
                "failure_policy": "FAIL_OPEN",
                "vm_config": {
                    "vm_id": "ws-clean-close",
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": { "local": { "filename": fetch::module() } },
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": json!({ "attach": layer }).to_string(),
                },
            },
        },
    })
}

/// Every close through the waypoint; only the tunnel's stream ends, not the connection with its other streams.
#[tokio::test(flavor = "multi_thread")]
async fn filter() {
    let server = Server::start().await;
    let mesh = Mesh::start(Mode::Filter, server.address);
    let mut neighbours = Vec::new();
    for _ in 0..5 {
        let client = Client::open(mesh.entry, "/echo?by=client").await;
        neighbours.push(client.expect("a WebSocket"));
    }
    println!("filter: {:?} ms", mesh.entry().immediate().await);
    assert_eq!(mesh.logged(), (10, 0));
    mesh.entry().core_closes().await;
    assert_eq!(mesh.waypoint.metric("websocket.unpaired"), 0);
    assert_eq!(mesh.waypoint.stat("http.connect_terminate.downstream_cx_total"), 1);
    for client in neighbours {
        let ending = client.run(&Plan::close(4000)).await;
        assert!(ending.is_clean(), "a neighbour: {ending:?}");
    }
    assert_eq!(mesh.waypoint.metric("websocket.active"), 0);
}

/// Without the filter: delayed by a second, or with the baseline immediate; failures of the upstream in both.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_filter() {
    for mode in [Mode::Default, Mode::Baseline] {
        let server = Server::start().await;
        let mesh = Mesh::start(mode, server.address);
        let range = match mode {
            Mode::Default => mesh.entry().delayed().await,
            _ => mesh.entry().immediate().await,
        };
        println!("{}: {range:?} ms", mode.name());
        assert_eq!(mesh.logged(), (10, 10), "{}", mode.name());
    }
}

/// Clean closes that come together.
#[tokio::test(flavor = "multi_thread")]
async fn ejections() {
    for (mode, failures, ejected) in
        [(Mode::Default, 20, 1), (Mode::Baseline, 20, 1), (Mode::Filter, 0, 0)]
    {
        let server = Server::start().await;
        let mesh = Mesh::start(mode, server.address);
        let mut open = Vec::new();
        for _ in 0..20 {
            let path = "/waits?by=server&code=4321&told=1";
            open.push(Client::open(mesh.entry, path).await.expect("a WebSocket"));
        }
        // The last of them has its 101 a moment before its server waits.
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.close_all();
        let plan = Plan::default();
        for ending in futures_util::future::join_all(open.into_iter().map(|c| c.run(&plan))).await {
            assert!(ending.is_clean(), "{}: {ending:?}", mode.name());
        }
        assert_eq!(mesh.logged(), (20, failures), "{}", mode.name());
        assert_eq!(mesh.ejections(), ejected, "{}", mode.name());
    }
}

/// A gateway in front of the waypoint has a delay of its own.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_gateway() {
    let server = Server::start().await;
    let mesh = Mesh::start(Mode::Filter, server.address);
    for mode in [Mode::Default, Mode::Filter] {
        let gateway = Setup::new(mode).start(mesh.entry).await;
        let entry = Entry { address: gateway.address(), ..mesh.entry() };
        match mode {
            Mode::Default => entry.delayed().await,
            _ => entry.immediate().await,
        };
    }
}

const MUCH: usize = 16_000_000;

/// A server that sends much, and its Close frame and FIN right behind it, without waiting for the answer, or with.
async fn much(waits: bool) -> SocketAddr {
    server::scripted(UPGRADE, move |mut tcp, _| async move {
        let (mut read, mut write) = tcp.split();
        for start in (0..MUCH).step_by(50_000) {
            let message = server::large_bytes(start, 50_000);
            write.write_all(&wire::message(&message, false)).await?;
        }
        write.write_all(&wire::close(4321, "", false)).await?;
        if waits {
            read.read_u8().await?;
        }
        write.shutdown().await?;
        tokio::io::copy(&mut read, &mut tokio::io::sink()).await
    })
    .await
}

/// Bytes that do not reach a client that reads 8 MB/s, and whether the Close frame does.
async fn missing(entry: SocketAddr) -> (usize, bool) {
    let client = Client::open(entry, "/").await.expect("a WebSocket");
    let plan = Plan {
        slowly: Some((64 * 1024, Duration::from_millis(8))),
        patience: Duration::from_secs(20),
        ..Plan::default()
    };
    let ending = client.run(&plan).await;
    (MUCH - ending.payload, ending.close.is_some())
}

/// The limit of docs/limits.md: when the server does not wait, what HTTP/2 may not yet send is dropped with the inner
/// connection, with and without the filter. The filter leaves Envoy's delay in place here, as the default does;
/// the baseline does not. A server that waits loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn much_data_to_a_slow_client() {
    // More of them for docs/where-it-runs.md.
    let thorough = std::env::var_os("THOROUGH").is_some();
    let rounds = if thorough { 10 } else { 1 };
    let waits = if thorough { &Mode::ALL[..] } else { &[Mode::Filter] };
    for mode in waits {
        let mesh = Mesh::start(*mode, much(true).await);
        assert_eq!(missing(mesh.entry).await, (0, true), "{}: the server waits", mode.name());
    }
    let mut lost = [0; 3];
    for (mode, lost) in Mode::ALL.into_iter().zip(&mut lost) {
        let mesh = Mesh::start(mode, much(false).await);
        for _ in 0..rounds {
            let (bytes, closed) = missing(mesh.entry).await;
            let megabytes = bytes as f64 / 1e6;
            println!("{}: {megabytes:.1} of 16 MB missing, Close frame: {closed}", mode.name());
            *lost = bytes.max(*lost);
        }
    }
    let [default, baseline, filter] = lost;
    // On Envoy 1.39 none of them loses anything.
    assert!(filter <= default.midpoint(baseline), "{lost:?}");
}

/// The workaround of docs/limits.md for Envoy 1.40: nothing is lost, with and without the filter.
#[tokio::test(flavor = "multi_thread")]
async fn much_data_without_rst_between_listeners() {
    if !fetch::envoy_version().starts_with("1.40.") {
        println!("skipped: not Envoy 1.40");
        return;
    }
    for mode in Mode::ALL {
        let mesh = Mesh::without(&[RST_BETWEEN_LISTENERS], mode, much(false).await);
        assert_eq!(missing(mesh.entry).await, (0, true), "{}", mode.name());
    }
}
