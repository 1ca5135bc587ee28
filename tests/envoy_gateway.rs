//! The manifests of examples/envoy-gateway through the real Envoy Gateway. `make test-envoy-gateway`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use testbed::entry::Entry;
use testbed::envoy_gateway::{isolated, EnvoyGateway};
use testbed::server::{path, Behaviour};
use testbed::{fetch, wire, Client, End, Plan, Server, Transport};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const IMAGE: &str = "registry.example.com/ws-clean-close:0.1.0";
const MANAGER: &str = "envoy.filters.network.http_connection_manager";
const NETWORK: &str = "envoy.extensions.filters.network.wasm.v3.Wasm";
const HTTP: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";

/// HTTP, and two HTTPS hosts on one port.
const ENTRIES: [Entry; 3] = [
    entry(80, Transport::Tcp, "localhost"),
    entry(443, Transport::Tls, "a.example.com"),
    entry(443, Transport::Tls, "localhost"),
];

const fn entry(port: u16, transport: Transport, host: &'static str) -> Entry {
    let ip = std::net::Ipv4Addr::LOCALHOST;
    let address = std::net::SocketAddr::V4(std::net::SocketAddrV4::new(ip, port));
    Entry { address, transport, host }
}

fn manifest(name: &str) -> String {
    let file = fetch::root().join("examples/envoy-gateway").join(name);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// A Gateway with the listeners of [`ENTRIES`], and `first` in front of them; a route to the server.
fn gateway(server: &Server, first: &[Value]) -> String {
    let https = |name: &str, host: &str| {
        json!({
            "name": name, "protocol": "HTTPS", "port": 443, "hostname": host,
            "tls": { "mode": "Terminate", "certificateRefs": [{ "name": "tls" }] },
        })
    };
    let mut listeners = first.to_vec();
    listeners.push(json!({ "name": "http", "protocol": "HTTP", "port": 80 }));
    listeners.push(https("https-a", "a.example.com"));
    listeners.push(https("https-b", "localhost"));
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "ws", "namespace": "default" },
        "spec": { "gatewayClassName": "eg", "listeners": listeners },
    });
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "ws", "namespace": "default" },
        "spec": {
            "parentRefs": [{ "name": "ws" }],
            "rules": [{
                "backendRefs": [{ "group": "gateway.envoyproxy.io", "kind": "Backend", "name": "ws" }],
                "timeouts": { "request": "0s" },
            }],
        },
    });
    let backend = json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "Backend",
        "metadata": { "name": "ws", "namespace": "default" },
        "spec": { "endpoints": [{ "ip": {
            "address": server.address.ip().to_string(), "port": server.address.port(),
        }}]},
    });
    format!("{gateway}\n---\n{route}\n---\n{backend}\n---\n")
}

/// What `make image` writes.
fn image_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = fetch::folder("envoy-gateway-image");
        fetch::run(Command::new(fetch::program("image")).arg("--to").arg(&folder));
        folder
    })
}

/// A registry with the image, and an HTTP server with the module where image.yaml has it.
struct Registry {
    port: u16,
}

impl Registry {
    async fn start() -> Self {
        let images = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let modules = TcpListener::bind("127.0.0.1:8000").await.expect("a network of its own");
        let port = images.local_addr().expect("a bound socket").port();
        for listener in [images, modules] {
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream));
                }
            });
        }
        Self { port }
    }

    /// image.yaml, as somebody fills it in.
    fn manifest(&self) -> String {
        let module = fs::read(image_folder().join("plugin.wasm")).expect("it was written");
        let digest: String = Sha256::digest(&module).iter().map(|b| format!("{b:02x}")).collect();
        let text = manifest("image.yaml");
        assert!(text.contains(IMAGE) && text.contains(&"0".repeat(64)), "{text}");
        text.replace(IMAGE, &format!("127.0.0.1:{}/ws-clean-close:0.1.0", self.port))
            .replace(&"0".repeat(64), &digest)
    }
}

/// One request for a file of the image, by the OCI distribution specification.
async fn answer(mut stream: TcpStream) {
    let folder = image_folder();
    let Ok((head, _)) = wire::read_head(&mut stream).await else { return };
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let blob = |digest: &str| fs::read(folder.join("layout/blobs").join(digest.replace(':', "/")));
    let index = fs::read_to_string(folder.join("layout/index.json")).expect("it was written");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    let image = index["manifests"][0]["digest"].as_str().expect("a digest");
    let body = match target.rsplit_once('/') {
        Some(("/v2", "")) => Ok(Vec::new()),
        Some(("", "plugin.wasm")) => fs::read(folder.join("plugin.wasm")),
        Some(("/v2/ws-clean-close/manifests", "0.1.0")) => blob(image),
        Some((_, digest)) => blob(digest),
        None => Ok(Vec::new()),
    };
    let (status, body) = body.map_or((404, Vec::new()), |body| (200, body));
    let kind = if target.contains("/manifests/") {
        "application/vnd.oci.image.manifest.v1+json"
    } else {
        "application/octet-stream"
    };
    let head = format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    if method != "HEAD" {
        let _ = stream.write_all(&body).await;
    }
    let _ = stream.shutdown().await;
}

/// The filter chains with a connection manager, as they are in Envoy: how many there are, and how many of
/// them have the network filter in front of it, and the HTTP filter.
fn chains(gateway: &EnvoyGateway) -> (usize, usize, usize) {
    let mut counts = (0, 0, 0);
    let own = |l: &Value| l["name"].as_str().is_some_and(|n| n.starts_with("envoy-gateway-"));
    for listener in gateway.listeners().iter().filter(|l| !own(l)) {
        let mut chains = listener["filter_chains"].as_array().cloned().unwrap_or_default();
        chains.extend(listener.get("default_filter_chain").cloned());
        for chain in chains {
            let filters = chain["filters"].as_array().cloned().unwrap_or_default();
            let Some(manager) = filters.iter().position(|f| f["name"] == MANAGER) else { continue };
            let is = |kind: &'static str| {
                move |f: &Value| {
                    f["typed_config"]["@type"].as_str().is_some_and(|t| t.ends_with(kind))
                }
            };
            let network = filters.iter().take(manager).any(is(NETWORK));
            let http = &filters[manager]["typed_config"]["http_filters"];
            let http = http.as_array().is_some_and(|filters| filters.iter().any(is(HTTP)));
            counts = (counts.0 + 1, counts.1 + usize::from(network), counts.2 + usize::from(http));
        }
    }
    counts
}

fn wait_for_chains(gateway: &EnvoyGateway, expected: (usize, usize, usize)) {
    gateway.wait(&format!("chains {expected:?}"), |g| (chains(g) == expected).then_some(()));
    // Listeners that have come are taken by every worker a moment later.
    gateway.wait("listeners", |g| {
        let warming = g.admin("/stats?filter=total_listeners_warming");
        warming.trim().ends_with(": 0").then_some(())
    });
}

/// The status line of a plain request.
async fn status() -> String {
    let mut stream = TcpStream::connect(ENTRIES[0].address).await.expect("a connection");
    let request = b"GET /plain HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("it is open");
    let (head, _) = wire::read_head(&mut stream).await.expect("a response");
    head.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn image() {
    // It is built where there is a network.
    image_folder();
    isolated("image", async {
        let (server, registry) = (Server::start().await, Registry::start().await);
        let routes = gateway(&server, &[]);
        let gateway = EnvoyGateway::start(&routes, true, 5);
        wait_for_chains(&gateway, (3, 0, 0));
        for entry in ENTRIES {
            println!("no policy, {}: {:?} ms", entry.host, entry.delayed().await);
        }

        // The HTTP filter alone cannot close a connection, and says so.
        let manifest = registry.manifest();
        let (http, _) = manifest.split_once("---\n").expect("two policies");
        gateway.apply(&format!("{routes}{http}"));
        wait_for_chains(&gateway, (3, 0, 3));
        for (i, entry) in (1..).zip(ENTRIES) {
            println!("HTTP filter alone, {}: {:?} ms", entry.host, entry.delayed().await);
            assert_eq!(gateway.metric("websocket.unpaired"), 10 * i);
        }

        gateway.apply(&format!("{routes}{manifest}"));
        wait_for_chains(&gateway, (3, 3, 3));
        for entry in ENTRIES {
            println!("both filters, {}: {:?} ms", entry.host, entry.immediate().await);
            entry.core_closes().await;
        }
        assert_eq!(gateway.metric("websocket.unpaired"), 30);
        assert_eq!(gateway.metric("websocket.active"), 0);

        // A policy on the route takes the place of the Gateway's, unless it merges.
        for (merge, delayed) in [(Value::Null, true), (json!("StrategicMerge"), false)] {
            let mut other = json!({
                "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "EnvoyExtensionPolicy",
                "metadata": { "name": "other", "namespace": "default" },
                "spec": {
                    "targetRefs": [{
                        "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "ws",
                    }],
                    "lua": [{ "type": "Inline", "inline": "function envoy_on_request(handle) end" }],
                },
            });
            if !merge.is_null() {
                other["spec"]["mergeType"] = merge;
            }
            gateway.apply(&format!("{routes}{manifest}\n---\n{other}"));
            let patience = Instant::now() + Duration::from_secs(20);
            while ENTRIES[0].close(Behaviour::Waits, true).await.is_immediate() == delayed {
                assert!(Instant::now() < patience, "{other:#}\n{}", gateway.log());
            }
        }
    });
}

/// local-file.yaml with this name of the file; the EnvoyProxy with the mount is for Kubernetes.
fn from_file(module: &Path) -> String {
    let text = manifest("local-file.yaml");
    let (proxy, policy) = text.split_once("---\n").expect("two documents");
    assert!(proxy.contains("kind: EnvoyProxy"), "{proxy}");
    let there = "/etc/ws-clean-close/plugin.wasm";
    assert!(policy.contains(there), "{policy}");
    policy.replace(there, &module.display().to_string())
}

#[test]
fn local_file() {
    isolated("local_file", async {
        let server = Server::start().await;
        let routes = gateway(&server, &[]);
        let filters = from_file(&fetch::module());
        let gateway = EnvoyGateway::start(&format!("{routes}{filters}"), true, 5);
        wait_for_chains(&gateway, (3, 3, 3));
        for entry in ENTRIES {
            entry.core_closes().await;
        }
        assert_eq!(gateway.metric("websocket.unpaired"), 0);
        assert_eq!(gateway.metric("websocket.active"), 0);

        // The workaround instead.
        gateway.apply(&format!("{routes}{}", manifest("delayed-close-timeout.yaml")));
        wait_for_chains(&gateway, (3, 0, 0));
        for entry in ENTRIES {
            println!("baseline, {}: {:?} ms", entry.host, entry.immediate().await);
        }
    });
}

/// A listener's name is that of the first listener on its port, unless XDSNameSchemeV2 is on: with one more in
/// front, the patches find nothing.
async fn name_trap(names_by_port: bool) {
    let server = Server::start().await;
    let mut filters = from_file(&fetch::module());
    if !names_by_port {
        filters = filters
            .replace("name: tcp-80,", "name: default/ws/http,")
            .replace("name: tcp-80\n", "name: default/ws/http\n")
            .replace("name: tcp-443,", "name: default/ws/https-a,");
    }
    let before = format!("{}{filters}", gateway(&server, &[]));
    let first = json!({
        "name": "https-0", "protocol": "HTTPS", "port": 443, "hostname": "0.example.com",
        "tls": { "mode": "Terminate", "certificateRefs": [{ "name": "tls" }] },
    });
    let after = format!("{}{filters}", gateway(&server, &[first]));
    let gateway = EnvoyGateway::start(&before, names_by_port, 5);
    wait_for_chains(&gateway, (3, 3, 3));
    ENTRIES[2].immediate().await;

    gateway.apply(&after);
    if names_by_port {
        wait_for_chains(&gateway, (4, 4, 4));
        ENTRIES[2].immediate().await;
    } else {
        wait_for_chains(&gateway, (4, 1, 1));
        ENTRIES[2].delayed().await;
        assert!(gateway.log().contains("reason: ResourceNotFound"), "{}", gateway.log());
    }
    ENTRIES[0].immediate().await;
}

#[test]
fn name_trap_sprung() {
    isolated("name_trap_sprung", name_trap(false));
}

#[test]
fn name_trap_avoided() {
    isolated("name_trap_avoided", name_trap(true));
}

/// Neither source can be reached: all traffic passes, as without the filter. With the default of `failOpen`
/// none does.
#[test]
fn fails_open() {
    isolated("fails_open", async {
        let server = Server::start().await;
        let routes = gateway(&server, &[]);
        let manifest = manifest("image.yaml").replace(IMAGE, "127.0.0.1:1/ws-clean-close:0.1.0");
        let gateway = EnvoyGateway::start(&format!("{routes}{manifest}"), true, 5);
        // The HTTP filter is not in the configuration, and the network filter has no module.
        wait_for_chains(&gateway, (3, 3, 0));
        assert_eq!(status().await, "HTTP/1.1 200 OK");
        for entry in ENTRIES {
            println!("no module, {}: {:?} ms", entry.host, entry.delayed().await);
        }
        assert_eq!(gateway.metric("websocket.upgrades"), 0);

        let closed = manifest.replace("      failOpen: true\n", "");
        assert_ne!(closed, manifest);
        gateway.apply(&format!("{routes}{closed}"));
        let patience = Instant::now() + Duration::from_secs(30);
        while status().await != "HTTP/1.1 500 Internal Server Error" {
            assert!(Instant::now() < patience, "{}", gateway.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

/// A change of the policy while WebSockets are open, and a drain.
#[test]
fn policy_update() {
    const DRAIN_SECONDS: u32 = 6;
    isolated("policy_update", async {
        let server = Server::start().await;
        let routes = gateway(&server, &[]);
        let filters = from_file(&fetch::module());
        let with = |keys: &str| {
            let http = r#"{"attach": "http"}"#;
            assert!(filters.contains(http), "{filters}");
            format!(
                "{routes}{}",
                filters.replace(http, &format!(r#"{{"attach": "http", {keys}}}"#))
            )
        };
        let gateway = EnvoyGateway::start(&format!("{routes}{filters}"), true, DRAIN_SECONDS);
        wait_for_chains(&gateway, (3, 3, 3));

        // New WebSockets have the new configuration; those that are open are cut when the drain time is over.
        let open = open_talkers(5).await;
        let start = Instant::now();
        gateway.apply(&with(r#""abnormalClose": {"code": 1012}"#));
        while ENTRIES[0].close(Behaviour::FinWithoutClose, true).await.code() != 1012 {
            assert!(start.elapsed() < Duration::from_secs(5), "{}", gateway.log());
        }
        println!("the change has arrived after {:?}", start.elapsed());
        for client in open {
            let ending =
                client.run(&Plan { patience: Duration::from_secs(20), ..Plan::default() }).await;
            let after = start.elapsed().as_secs_f64();
            println!("open before the change: {ending}, {after:.1} s after it");
            assert_eq!(ending.close, None, "{ending:?}");
            assert_ne!(ending.end, End::Never, "{ending:?}");
            let drained = f64::from(DRAIN_SECONDS);
            assert!((drained - 0.5..drained + 2.0).contains(&after), "{after} s");
        }
        ENTRIES[0].immediate().await;

        // A drain in the change reaches them first.
        let open = open_talkers(5).await;
        let silent = Client::open(ENTRIES[0].address, "/echo?by=client").await;
        let start = Instant::now();
        gateway.apply(&with(
            r#""drain": {"within": "1s", "endSilentAfter": "1s", "reason": "update"}"#,
        ));
        for client in open {
            let ending = client.run(&Plan::default()).await;
            println!("drained: {ending}, {:.1} s after the change", start.elapsed().as_secs_f64());
            assert_eq!(ending.close, Some((1001, "update".to_owned())), "{ending:?}");
            assert!(ending.is_clean(), "{ending:?}");
        }
        let ending = silent.expect("a WebSocket").run(&Plan::default()).await;
        println!("silent: {ending}, {:.1} s after the change", start.elapsed().as_secs_f64());
        assert_eq!((ending.close, ending.end), (None, End::Fin));
        assert!(
            start.elapsed() < Duration::from_secs(u64::from(DRAIN_SECONDS) - 1),
            "before Envoy cuts"
        );
    });
}

/// WebSockets whose server sends a message every 100 ms.
async fn open_talkers(n: usize) -> Vec<Client> {
    let mut open = Vec::new();
    for _ in 0..n {
        let path = format!("{}&every=100", path(Behaviour::Talks, true, 4321));
        open.push(Client::open(ENTRIES[0].address, &path).await.expect("a WebSocket"));
    }
    open
}
