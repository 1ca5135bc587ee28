//! A real Envoy: its configuration from small pieces, its process, its numbers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{mpsc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use socket2::{Domain, Socket, Type};

use crate::fetch;

/// How the proxy closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As Envoy comes.
    Default,
    /// `delayed_close_timeout: 0s`.
    Baseline,
    /// With the module.
    Filter,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Default, Self::Baseline, Self::Filter];

    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Baseline => "baseline",
            Self::Filter => "filter",
        }
    }
}

/// Which streams the HTTP filter is created for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// All of the listener's.
    All,
    /// Those that the composite filter finds to be upgrades.
    CompositeUpgrades,
    /// Upgrades, as it stands in the `filters` of `upgrade_configs` alone.
    UpgradeChain,
}

/// What to start: a chain of listeners in one process. Hop 1 stands in front of the server, each
/// further one in front of the one before; or, for those of `beside`, in front of the server too.
#[derive(Clone, Debug)]
pub struct Setup {
    pub mode: Mode,
    /// `delayed_close_timeout`; `None`: Envoy's default, 1 s.
    pub delayed_close_timeout: Option<&'static str>,
    pub hops: usize,
    /// Listeners in the same process that lead to the server too, each as its setup says: what is
    /// compared in one process differs by nothing else. Their numbers follow those of the hops.
    pub beside: Vec<Setup>,
    /// TLS between the client and the last hop, and between the hops.
    pub tls: bool,
    pub workers: usize,
    /// Configuration of the HTTP filter; `None`: it is not attached.
    pub http_filter: Option<Value>,
    /// Configuration of the network filter; `None`: it is not attached.
    pub network_filter: Option<Value>,
    /// Attaches each filter this often.
    pub copies: usize,
    /// For which streams there is an HTTP filter.
    pub streams: Streams,
    /// `tcp_proxy` instead of the HTTP connection manager and the HTTP filter in it.
    pub tcp: bool,
    /// The filters come by ECDS, from files, and [`Envoy::update`] changes them.
    pub dynamic: bool,
    /// The `vm_id` of the network filter, `ws` being that of the HTTP filter.
    pub network_vm: &'static str,
    /// HTTP/2 between the hops.
    pub http2_between: bool,
    /// HTTP/2 to the server.
    pub http2_upstream: bool,
    /// HTTP filters in front of the module's.
    pub filters_in_front: Vec<Value>,
    /// HTTP filters between the module's and the router.
    pub filters_behind: Vec<Value>,
    /// Runtime keys, such as Envoy's feature flags.
    pub runtime: Value,
    /// A QUIC listener beside the one of the last hop, with the same filters, at the UDP port of the same
    /// number.
    pub quic: bool,
    /// `allow_connect`: clients may open WebSockets over HTTP/2. Istio's gateways have it off.
    pub allow_connect: bool,
    /// Writes the `sec-websocket-key` that RFC 8441 has done away with and HTTP/1.1 servers want.
    pub adds_key: bool,
    /// `per_connection_buffer_limit_bytes` of the listeners and clusters.
    pub buffer_limit: Option<u32>,
    /// The listeners come by LDS, from a file, and [`Envoy::replace_listeners`] changes them.
    pub listeners_from_file: bool,
    /// How long Envoy drains, and an old process lives on after a hot restart, in seconds.
    pub drain_seconds: u32,
    /// Connections to each upstream; Envoy's own limit is 1,024, which a test of 2,000 closes meets.
    pub max_connections: u32,
    /// Ejects a host after five failures in a row, as Istio's outlierDetection would.
    pub outlier_detection: bool,
    /// What Envoy does with a module that has trapped.
    pub failure_policy: &'static str,
    /// Where the listeners are bound, and the address at which they are reached.
    pub bind: Ipv4Addr,
    pub reach: Ipv4Addr,
    /// Envoy's log level for wasm.
    pub log: &'static str,
    /// The module, where it is not the one that the project builds.
    pub module: Option<PathBuf>,
}

impl Setup {
    pub fn new(mode: Mode) -> Self {
        let filter = mode == Mode::Filter;
        Self {
            mode,
            delayed_close_timeout: (mode == Mode::Baseline).then_some("0s"),
            hops: 1,
            beside: Vec::new(),
            tls: false,
            workers: 2,
            http_filter: filter.then(|| json!({"attach": "http"})),
            network_filter: filter.then(|| json!({"attach": "network"})),
            copies: 1,
            streams: Streams::All,
            tcp: false,
            dynamic: false,
            network_vm: "ws",
            http2_between: false,
            http2_upstream: false,
            filters_in_front: Vec::new(),
            filters_behind: Vec::new(),
            runtime: json!({}),
            quic: false,
            allow_connect: true,
            adds_key: false,
            buffer_limit: None,
            listeners_from_file: false,
            drain_seconds: 600,
            max_connections: 100_000,
            outlier_detection: true,
            failure_policy: "FAIL_OPEN",
            bind: Ipv4Addr::LOCALHOST,
            reach: Ipv4Addr::LOCALHOST,
            log: "info",
            module: None,
        }
    }

    pub fn hops(self, hops: usize) -> Self {
        Self { hops, ..self }
    }

    /// Sets a key of the HTTP filter's configuration.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        if let Some(Value::Object(map)) = &mut self.http_filter {
            map.insert(key.to_owned(), value.into());
        }
        self
    }

    /// With limits that no busy machine meets: where one expires ([`Envoy::timers_expired`]), something has hung.
    pub fn patient(self) -> Self {
        self.with("closeHandshakeTimeout", "60s").with("tcpCloseTimeout", "30s")
    }

    /// Starts it in front of `server`.
    ///
    /// # Panics
    /// With Envoy's log, where it does not start.
    pub async fn start(self, server: SocketAddr) -> Envoy {
        self.try_start(server).await.unwrap_or_else(|log| panic!("Envoy did not start:\n{log}"))
    }

    /// # Errors
    /// Envoy's log, where it does not start.
    pub async fn try_start(self, server: SocketAddr) -> Result<Envoy, String> {
        tokio::task::spawn_blocking(move || Envoy::start(&self, server))
            .await
            .expect("starting Envoy does not panic")
    }

    fn config(&self, ports: &[u16], server: SocketAddr, folder: &Path) -> Value {
        let listeners = if self.listeners_from_file {
            self.publish_listeners(ports, folder, 0);
            Vec::new()
        } else {
            self.listeners(ports, folder)
        };
        let lds = json!({ "lds_config": {
            "path_config_source": { "path": folder.join("listeners.json") },
            "resource_api_version": "V3",
        }});
        json!({
            "dynamic_resources": self.listeners_from_file.then_some(lds),
            "static_resources": {
                "listeners": listeners,
                "clusters": self.clusters(ports, server),
            },
            "stats_flush_interval": "1s",
            "layered_runtime": { "layers": [{ "name": "static", "static_layer": self.runtime }] },
            "admin": { "address": socket_address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) },
            // Without this Envoy warns that a hostile peer could take every descriptor.
            "overload_manager": { "resource_monitors": [{
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": 100_000,
                },
            }]},
        })
    }

    fn listeners(&self, ports: &[u16], folder: &Path) -> Vec<Value> {
        let hops = (1..=self.hops).map(|hop| self.listener(hop, ports, folder));
        let beside = (self.hops + 1..).zip(&self.beside);
        let quic = self.quic.then(|| self.quic_listener(ports, folder));
        hops.chain(beside.map(|(i, setup)| setup.listener(i, ports, folder))).chain(quic).collect()
    }

    fn clusters(&self, ports: &[u16], server: SocketAddr) -> Vec<Value> {
        let upstream = |hop: usize| match hop {
            1 => server,
            _ => (self.reach, ports[hop - 2]).into(),
        };
        let hops = (1..=self.hops).map(|hop| self.cluster(hop, upstream(hop)));
        let beside = (self.hops + 1..).zip(&self.beside);
        hops.chain(beside.map(|(i, setup)| setup.cluster(i, server))).collect()
    }

    fn publish_listeners(&self, ports: &[u16], folder: &Path, version: u32) {
        let mut resources = self.listeners(ports, folder);
        for listener in &mut resources {
            listener["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
        }
        let response = json!({ "version_info": version.to_string(), "resources": resources });
        put(folder, "listeners", &response);
    }

    fn listener(&self, hop: usize, ports: &[u16], folder: &Path) -> Value {
        let mut filters = Vec::new();
        if let Some(config) = &self.network_filter {
            let filter = self.attachment("network", config, folder);
            filters.extend(std::iter::repeat_n(filter, self.copies));
        }
        filters.push(if self.tcp { tcp_proxy(hop) } else { self.connection_manager(hop, folder) });
        let mut chain = json!({ "filters": filters });
        if self.tls {
            chain["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {
                        "alpn_protocols": ["h2", "http/1.1"],
                        "tls_certificates": [tls_certificate()],
                    },
                },
            });
        }
        json!({
            "name": format!("hop{hop}"),
            "address": socket_address((self.bind, ports[hop - 1]).into()),
            "filter_chains": [chain],
            "per_connection_buffer_limit_bytes": self.buffer_limit,
        })
    }

    /// The listener of the last hop, for HTTP/3.
    fn quic_listener(&self, ports: &[u16], folder: &Path) -> Value {
        let mut listener = self.listener(self.hops, ports, folder);
        listener["name"] = json!("quic");
        listener["address"]["socket_address"]["protocol"] = json!("UDP");
        listener["udp_listener_config"] = json!({ "quic_options": {} });
        let chain = &mut listener["filter_chains"][0];
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.quic",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicDownstreamTransport",
                "downstream_tls_context": { "common_tls_context": {
                    "tls_certificates": [tls_certificate()],
                }},
            },
        });
        if let Some(manager) =
            chain["filters"].as_array_mut().and_then(|filters| filters.last_mut())
        {
            let config = &mut manager["typed_config"];
            config["codec_type"] = json!("HTTP3");
            config["http3_protocol_options"] = json!({ "allow_extended_connect": true });
        }
        listener
    }

    fn connection_manager(&self, hop: usize, folder: &Path) -> Value {
        let router = json!({
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        });
        let filter =
            self.http_filter.as_ref().map(|config| self.attachment("http", config, folder));
        let filter = match self.streams {
            Streams::CompositeUpgrades => filter.as_ref().map(for_upgrades_only),
            Streams::All | Streams::UpgradeChain => filter,
        };
        let ours = filter.into_iter().flat_map(|filter| std::iter::repeat_n(filter, self.copies));
        let filters: Vec<Value> = self
            .filters_in_front
            .iter()
            .cloned()
            .chain(ours)
            .chain(self.filters_behind.clone())
            .chain([router.clone()])
            .collect();
        let key = json!({
            "header": { "key": "sec-websocket-key", "value": "dGhlIHNhbXBsZSBub25jZQ==" },
            "append_action": "ADD_IF_ABSENT",
        });
        let mut upgrade = json!({ "upgrade_type": "websocket" });
        let http_filters = if self.streams == Streams::UpgradeChain {
            upgrade["filters"] = json!(filters);
            vec![router]
        } else {
            filters
        };
        let mut manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": format!("hop{hop}"),
            "upgrade_configs": [upgrade],
            "http2_protocol_options": { "allow_connect": self.allow_connect },
            "http_filters": http_filters,
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "request_headers_to_add": if self.adds_key { vec![key] } else { Vec::new() },
                "routes": [
                    // An early reply to an upload: nobody reads the body.
                    { "match": { "prefix": "/upload" },
                      "direct_response": { "status": 403, "body": { "inline_string": "too early" } },
                      // A page of another origin may read it too.
                      "response_headers_to_add": [{ "header": { "key": "access-control-allow-origin", "value": "*" } }] },
                    { "match": { "prefix": "/" },
                      "route": { "cluster": format!("hop{hop}"), "timeout": "0s" } },
                ],
            }]},
            "access_log": [{
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": folder.join(format!("access{hop}.log")),
                    "log_format": { "json_format": access_log_format() },
                },
            }],
        });
        if let Some(time) = self.delayed_close_timeout {
            manager["delayed_close_timeout"] = json!(time);
        }
        json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager })
    }

    /// The filter, or where Envoy finds it.
    fn attachment(&self, layer: &str, config: &Value, folder: &Path) -> Value {
        if !self.dynamic {
            return self.wasm(layer, config);
        }
        self.publish(layer, config, folder, 0);
        json!({
            "name": format!("ws_clean_close_{layer}"),
            "config_discovery": {
                "config_source": {
                    "path_config_source": { "path": folder.join(format!("{layer}.json")) },
                    "resource_api_version": "V3",
                },
                "type_urls": [wasm_type(layer)],
            },
        })
    }

    /// Writes the filter where Envoy looks for it.
    fn publish(&self, layer: &str, config: &Value, folder: &Path, version: u32) {
        let filter = self.wasm(layer, config);
        let response = json!({
            "version_info": version.to_string(),
            "resources": [{
                "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
                "name": filter["name"],
                "typed_config": filter["typed_config"],
            }],
        });
        put(folder, layer, &response);
    }

    fn wasm(&self, layer: &str, config: &Value) -> Value {
        let vm = if layer == "network" { self.network_vm } else { "ws" };
        let module = self.module.clone().unwrap_or_else(fetch::module);
        // A string is taken as it stands: a configuration need not be JSON.
        let text = config.as_str().map_or_else(|| config.to_string(), str::to_owned);
        json!({
            "name": format!("ws_clean_close_{layer}"),
            "typed_config": {
                "@type": wasm_type(layer),
                "config": {
                    "name": format!("ws_clean_close_{layer}"),
                    "vm_config": {
                        "vm_id": vm,
                        "runtime": "envoy.wasm.runtime.v8",
                        "code": { "local": { "filename": module } },
                    },
                    "configuration": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": text,
                    },
                    "failure_policy": self.failure_policy,
                },
            },
        })
    }

    fn cluster(&self, hop: usize, upstream: SocketAddr) -> Value {
        let mut cluster = json!({
            "name": format!("hop{hop}"),
            "load_assignment": {
                "cluster_name": format!("hop{hop}"),
                "endpoints": [{ "lb_endpoints": [{
                    "endpoint": { "address": socket_address(upstream) },
                }]}],
            },
            "per_connection_buffer_limit_bytes": self.buffer_limit,
            "circuit_breakers": { "thresholds": [{
                "max_connections": self.max_connections, "max_pending_requests": self.max_connections,
                "max_requests": 100_000,
            }]},
            "outlier_detection": self.outlier_detection.then(|| json!({ "consecutive_5xx": 5, "max_ejection_percent": 100 })),
        });
        if if hop > 1 { self.http2_between } else { self.http2_upstream } {
            cluster["typed_extension_protocol_options"] = json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": { "allow_connect": true } },
                },
            });
        }
        if self.tls && hop > 1 {
            cluster["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": "localhost",
                },
            });
        }
        cluster
    }
}

#[cfg(not(feature = "tls"))]
fn tls_certificate() -> Value {
    panic!("TLS and QUIC need the feature `tls` of testbed")
}

#[cfg(feature = "tls")]
fn tls_certificate() -> Value {
    let (certificate, key) = crate::tls::certificate();
    json!({
        "certificate_chain": { "filename": certificate },
        "private_key": { "filename": key },
    })
}

fn tcp_proxy(hop: usize) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": format!("hop{hop}"),
            "cluster": format!("hop{hop}"),
        },
    })
}

/// The filter inside `envoy.filters.http.composite`: a plain request never meets it.
fn for_upgrades_only(filter: &Value) -> Value {
    let predicate = json!({ "single_predicate": {
        "input": {
            "name": "upgrade",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                "header_name": "upgrade",
            },
        },
        "value_match": { "exact": "websocket", "ignore_case": true },
    }});
    let action = json!({
        "name": "execute",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.composite.v3.ExecuteFilterAction",
            "typed_config": filter,
        },
    });
    json!({
        "name": "ws_clean_close_composite",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": {
                "name": "envoy.filters.http.composite",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.composite.v3.Composite",
                },
            },
            "xds_matcher": { "matcher_list": { "matchers": [
                { "predicate": predicate, "on_match": { "action": action } },
            ]}},
        },
    })
}

/// Gives Envoy a file that it watches: one that is moved there is taken at once.
fn put(folder: &Path, name: &str, content: &Value) {
    let new = folder.join(format!("{name}.new"));
    fs::write(&new, content.to_string())
        .and_then(|()| fs::rename(&new, folder.join(format!("{name}.json"))))
        .expect("the testbed's folder is writable");
}

/// The one that operators are shown.
fn access_log_format() -> Value {
    let text = fs::read_to_string(fetch::root().join("examples/access-log.json"));
    serde_json::from_str(&text.expect("the example is there")).expect("JSON")
}

fn wasm_type(layer: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.filters.{layer}.wasm.v3.Wasm")
}

#[cfg(feature = "peers")]
pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// A folder for one Envoy.
fn run_folder(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Relaxed);
    fetch::folder(&format!("run/{name}-{}-{n}", std::process::id()))
}

/// Holds a port for an Envoy that binds it with SO_REUSEPORT, as listeners do by default: nobody
/// else is given the port, and this socket, which never listens, is given no connection.
pub fn hold_port() -> (Socket, u16) {
    hold_port_at(Ipv4Addr::LOCALHOST)
}

fn hold_port_at(bind: Ipv4Addr) -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket.bind(&SocketAddr::from((bind, 0)).into()).expect("a free port");
    let port = socket.local_addr().ok().and_then(|a| a.as_socket()).expect("a bound socket").port();
    (socket, port)
}

/// Starts a process from a thread that lives as long as this one does. Envoy asks to be ended with
/// the *thread* that started it (PR_SET_PDEATHSIG), and tokio's blocking threads end when idle.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in queue {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (reply, child) = mpsc::channel();
    let jobs = starter.lock().expect("no panic while locked").clone();
    jobs.send((command, reply)).expect("the starter lives on");
    child.recv().expect("the starter replies")
}

/// A running Envoy. Ends when dropped.
pub struct Envoy {
    process: Child,
    admin: SocketAddr,
    hops: Vec<SocketAddr>,
    folder: PathBuf,
    setup: Setup,
    updates: u32,
    /// Processes that a hot restart has put in the second place.
    older: Vec<Child>,
    _held: Vec<Socket>,
}

impl Envoy {
    fn start(setup: &Setup, server: SocketAddr) -> Result<Self, String> {
        let folder = run_folder(setup.mode.name());
        let (held, ports): (Vec<_>, Vec<_>) =
            (0..setup.hops + setup.beside.len()).map(|_| hold_port_at(setup.bind)).unzip();
        let config = setup.config(&ports, server, &folder);
        fs::write(folder.join(CONFIG), format!("{config:#}"))
            .expect("the testbed's folder is writable");
        let hops = ports.into_iter().map(|port| (setup.reach, port).into()).collect();
        let (process, admin) = launch(command(setup, &folder, 0), &folder, 0)?;
        Ok(Self::of(process, admin, hops, folder, setup.clone(), held))
    }

    /// Starts an Envoy with a configuration of somebody else, JSON or YAML, whose listeners are
    /// `hops`. `command` is how: Envoy itself, or what runs it.
    ///
    /// # Errors
    /// Envoy's log, where it does not start.
    pub fn run(command: Command, config: &str, hops: Vec<SocketAddr>) -> Result<Self, String> {
        let folder = run_folder("other");
        fs::write(folder.join(CONFIG), config).expect("the testbed's folder is writable");
        let (process, admin) = launch(command, &folder, 0)?;
        Ok(Self::of(process, admin, hops, folder, Setup::new(Mode::Filter), Vec::new()))
    }

    fn of(
        process: Child,
        admin: SocketAddr,
        hops: Vec<SocketAddr>,
        folder: PathBuf,
        setup: Setup,
        held: Vec<Socket>,
    ) -> Self {
        let older = Vec::new();
        Self { process, admin, hops, folder, setup, updates: 0, older, _held: held }
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits for an end that Envoy comes to by itself: how it ended.
    ///
    /// # Panics
    /// Where it runs on for a minute.
    pub fn end(&mut self) -> ExitStatus {
        let patience = Instant::now() + Duration::from_secs(60);
        while !self.has_ended() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process.try_wait().expect("a child can be waited for").expect("Envoy has ended")
    }

    /// Hot restart: a new process takes over the listeners, the old one drains and ends.
    pub fn hot_restart(&mut self) {
        let epoch = self.older.len() + 1;
        let (process, admin) =
            launch(command(&self.setup, &self.folder, epoch), &self.folder, epoch)
                .unwrap_or_else(|log| panic!("no restart:\n{log}"));
        self.older.push(std::mem::replace(&mut self.process, process));
        self.admin = admin;
    }

    /// Whether a process from before the last hot restart still runs.
    pub fn has_older(&mut self) -> bool {
        self.older.iter_mut().any(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// Gives Envoy changed listeners; waits until it has them.
    pub fn replace_listeners(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        self.updates += 1;
        let ports: Vec<_> = self.hops.iter().map(SocketAddr::port).collect();
        self.setup.publish_listeners(&ports, &self.folder, self.updates);
        let updates = u64::from(self.updates) + 1;
        let patience = Instant::now() + Duration::from_secs(20);
        while self.stat("listener_manager.lds.update_success") < updates
            || self.stat("listener_manager.total_listeners_warming") > 0
        {
            assert!(Instant::now() < patience, "the listeners did not arrive:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where a client enters to pass `hops` hops, or the listener of that number.
    pub fn entry(&self, hops: usize) -> SocketAddr {
        self.hops[hops - 1]
    }

    /// Where a client enters to pass all of them.
    pub fn address(&self) -> SocketAddr {
        self.entry(self.hops.len())
    }

    /// Gives a filter of a dynamic setup a new configuration, and a new module where `change` sets one;
    /// waits until it has arrived.
    pub fn update(&mut self, layer: &str, change: impl FnOnce(&mut Setup)) {
        self.update_until(layer, "config_reload", change);
    }

    /// The same with a configuration that is no good; waits until it has been refused.
    pub fn update_badly(&mut self, layer: &str, change: impl FnOnce(&mut Setup)) {
        self.update_until(layer, "config_fail", change);
    }

    fn update_until(&mut self, layer: &str, counter: &str, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        self.updates += 1;
        let config = match layer {
            "http" => &self.setup.http_filter,
            _ => &self.setup.network_filter,
        };
        let config = config.clone().expect("the filter is attached");
        let arrived = |envoy: &Self| -> u64 {
            envoy
                .admin("/stats?filter=extension_config_discovery")
                .lines()
                .filter(|line| line.contains(&format!("ws_clean_close_{layer}.{counter}:")))
                .filter_map(|line| line.rsplit(": ").next()?.parse::<u64>().ok())
                .sum()
        };
        let before = arrived(self);
        self.setup.publish(layer, &config, &self.folder, self.updates);
        let patience = Instant::now() + Duration::from_secs(20);
        while arrived(self) == before {
            assert!(Instant::now() < patience, "the update did not arrive:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process, for measurements.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What the process holds in memory, in bytes (VmRSS).
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the process runs");
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("VmRSS in kB") * 1024
    }

    /// What Envoy itself has allocated, in bytes. The memory of the VMs is not in it.
    pub fn allocated_bytes(&self) -> u64 {
        let page: Value = serde_json::from_str(&self.admin("/memory")).expect("JSON");
        page["allocated"].as_str().and_then(|n| n.parse().ok()).expect("a number of bytes")
    }

    /// CPU time that the process has used so far, in seconds; from `schedstat`, in nanoseconds, of
    /// its threads.
    pub fn cpu_seconds(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process runs");
        let nanos = threads.flatten().filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<f64>().ok()
        });
        nanos.sum::<f64>() / 1e9
    }

    /// Where the admin interface is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// A page of the admin interface.
    pub fn admin(&self, path: &str) -> String {
        get(self.admin, path).unwrap_or_else(|| panic!("Envoy's {path} cannot be had"))
    }

    /// Asks the admin interface to do something, such as `/logging?level=trace`.
    pub fn post(&self, path: &str) {
        let _ = ureq::post(format!("http://{}{path}", self.admin)).send_empty();
    }

    /// Every counter and gauge.
    pub fn stats(&self) -> BTreeMap<String, u64> {
        let page = self.admin("/stats");
        let stat = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        page.lines().filter_map(stat).collect()
    }

    /// The value of a counter or gauge; 0 where there is none.
    pub fn stat(&self, name: &str) -> u64 {
        self.stats().get(name).copied().unwrap_or(0)
    }

    /// The sum of a cluster's counter over the hops.
    pub fn over_hops(&self, name: &str) -> u64 {
        (1..=self.hops.len()).map(|hop| self.stat(&format!("cluster.hop{hop}.{name}"))).sum()
    }

    /// A metric of the filter, by its name without `wasmcustom.`.
    pub fn metric(&self, name: &str) -> u64 {
        self.stat(&format!("wasmcustom.{name}"))
    }

    /// How many closes have waited for a timer so far: for Envoy's `delayed_close_timeout`, or for one of the filter's
    /// limits. What a busy machine makes late is not among them.
    pub fn timers_expired(&self) -> u64 {
        let stats = self.stats();
        let timers = stats.iter().filter(|(name, _)| {
            name.ends_with(".downstream_cx_delayed_close_timeout")
                || name.starts_with("wasmcustom.websocket.timeout.")
        });
        timers.map(|(_, count)| count).sum()
    }

    /// What Envoy has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("envoy.log")).unwrap_or_default()
    }

    /// The access log of a hop.
    pub fn access_log(&self, hop: usize) -> Vec<Value> {
        self.flush_access_log();
        std::thread::sleep(Duration::from_millis(300));
        self.written_access_log(hop)
    }

    /// Has the access logs written, which Envoy does late, after up to 10 s.
    pub fn flush_access_log(&self) {
        self.post("/reopen_logs");
    }

    /// What has been written of a hop's access log.
    pub fn written_access_log(&self, hop: usize) -> Vec<Value> {
        fs::read_to_string(self.folder.join(format!("access{hop}.log")))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// Where Envoy finds its configuration, in its folder.
const CONFIG: &str = "envoy.yaml";

/// How the testbed's own Envoys are started, for the first time or to take over from the one before.
fn command(setup: &Setup, folder: &Path, epoch: usize) -> Command {
    let base_id = folder.join("base-id");
    let mut command = Command::new(fetch::envoy());
    if epoch == 0 {
        command.arg("--use-dynamic-base-id").arg("--base-id-path").arg(base_id);
    } else {
        let base = fs::read_to_string(base_id).expect("the first process wrote it");
        command.args(["--base-id", base.trim(), "--restart-epoch", &epoch.to_string()]);
    }
    command
        .args(["--concurrency", &setup.workers.to_string()])
        .args(["--drain-time-s", &setup.drain_seconds.to_string()])
        .args(["--parent-shutdown-time-s", &(setup.drain_seconds + 1).to_string()])
        // xDS, from files too, wants names.
        .args(["--service-node", "testbed", "--service-cluster", "testbed"])
        .args(["--log-level", "warning", "--component-log-level"])
        .arg(format!("wasm:{}", setup.log));
    command
}

/// Starts an Envoy with the configuration in its folder, and waits until it is live: the process, and
/// its admin address; or its log.
fn launch(
    mut command: Command,
    folder: &Path,
    epoch: usize,
) -> Result<(Child, SocketAddr), String> {
    let admin_file = folder.join(format!("admin{epoch}"));
    let log_file = folder.join("envoy.log");
    let log = fs::File::options().create(true).append(true).open(&log_file).expect("writable");
    command
        .arg("--config-path")
        .arg(folder.join(CONFIG))
        .arg("--admin-address-path")
        .arg(&admin_file)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log);
    let program = command.get_program().to_owned();
    let mut process =
        spawn(command).map_err(|e| format!("cannot run {}: {e}", Path::new(&program).display()))?;
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let admin = fs::read_to_string(&admin_file).ok().and_then(|a| a.trim().parse().ok());
        if let Some(admin) = admin {
            if get(admin, "/ready").is_some_and(|text| text.trim() == "LIVE") {
                return Ok((process, admin));
            }
        }
        let ended = process.try_wait().expect("a child can be waited for");
        if ended.is_some() || Instant::now() > patience {
            let _ = process.kill();
            let _ = process.wait();
            return Err(fs::read_to_string(log_file).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn get(admin: SocketAddr, path: &str) -> Option<String> {
    ureq::get(format!("http://{admin}{path}")).call().ok()?.body_mut().read_to_string().ok()
}

impl Drop for Envoy {
    fn drop(&mut self) {
        for process in self.older.iter_mut().chain([&mut self.process]) {
            let _ = process.kill();
            let _ = process.wait();
        }
        // What a failed test wrote is kept for whoever looks into it.
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
