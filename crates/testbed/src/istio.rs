//! A mesh without a cluster: a real pilot-discovery that reads its configuration from files, and
//! Envoys that are told by it over xDS what to be.
//!
//! Between the two stands `tests/istio/agent.go`, with Istio's own code for images.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::envoy::Envoy;
use crate::fetch;

/// A release of Istio, as Go modules give it.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    pub version: &'static str,
    /// In `tests/istio`.
    modules: &'static str,
    /// Does not start without a Kubernetes cluster.
    wants_cluster: bool,
}

/// The newest whose control plane takes WasmPlugins from files.
pub const ISTIO_1_28: Release =
    Release { version: "1.28.2", modules: "go.mod", wants_cluster: false };
/// With TrafficExtensions. Turns WasmPlugins into these only where it reads them from a cluster.
pub const ISTIO_1_31: Release =
    Release { version: "1.31.0", modules: "istio-1.31.mod", wants_cluster: true };

impl Release {
    /// The folder with `pilot-discovery`, `istioctl` and the agent; `None`, with a notice, where Go is
    /// missing.
    pub fn programs(self) -> Option<PathBuf> {
        let mut go = Command::new(fetch::go()?);
        let folder = fetch::folder(&format!("istio-{}", self.version));
        let built = folder.join("istioctl").exists();
        if !built {
            fetch::notice(&format!("testbed: building Istio {}: some minutes", self.version));
        }
        // Go knows what is up to date.
        fetch::run(
            go.current_dir(fetch::root().join("tests/istio"))
                .args(["build", "-buildvcs=false", "-modfile", self.modules, "-o"])
                .arg(&folder)
                .args([".", "istio.io/istio/pilot/cmd/pilot-discovery"])
                .arg("istio.io/istio/istioctl/cmd/istioctl"),
        );
        Some(folder)
    }
}

/// Which proxy of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// `istio: ingressgateway` in the namespace `istio-system`.
    Gateway,
    /// A pod of the sample application: `app: wssample` in `default`.
    Sidecar,
    /// The waypoint `waypoint` in the namespace `default`.
    Waypoint,
}

/// A control plane with its files. Ends when dropped.
pub struct Mesh {
    release: Release,
    processes: Vec<Child>,
    folder: PathBuf,
    xds: SocketAddr,
    /// Where `make image`'s images are served, as `host:port/name`.
    pub images: String,
    fetch: String,
}

impl Mesh {
    /// Starts it, with a registry that serves the images of a layout; `None` where Go is missing.
    pub fn start(release: Release, layout: &Path) -> Option<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let programs = release.programs()?;
        let n = COUNT.fetch_add(1, Relaxed);
        let folder = fetch::folder(&format!("run/mesh-{}-{n}", std::process::id()));
        for inner in ["config", "modules"] {
            fs::create_dir_all(folder.join(inner)).expect("the testbed's folder is writable");
        }
        fs::write(folder.join("mesh.yaml"), "{}").expect("the testbed's folder is writable");
        let mut mesh = Self {
            release,
            processes: Vec::new(),
            folder,
            xds: SocketAddr::from(([127, 0, 0, 1], 0)),
            images: String::new(),
            fetch: String::new(),
        };
        let agent = programs.join("agent");
        let mut pilot = Command::new(programs.join("pilot-discovery"));
        pilot
            .current_dir(&mesh.folder)
            .args(["discovery", "--configDir", "config"])
            .args(["--meshConfig", "mesh.yaml", "--ctrlz_port", "0"])
            .args(["--httpAddr", "127.0.0.1:0", "--httpsAddr", "", "--secureGRPCAddr", ""])
            .args(["--grpcAddr", "127.0.0.1:0", "--monitoringAddr", "127.0.0.1:0"]);
        if release.wants_cluster {
            let said = mesh.spawn(Command::new(&agent).arg("-cluster"));
            let kubeconfig = json!({
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{ "name": "empty", "cluster": { "server": said["cluster"] } }],
                "users": [{ "name": "nobody", "user": {} }],
                "contexts": [{ "name": "it", "context": { "cluster": "empty", "user": "nobody" } }],
                "current-context": "it",
            });
            let file = mesh.folder.join("kubeconfig");
            fs::write(file, kubeconfig.to_string()).expect("the testbed's folder is writable");
            pilot.args(["--kubeconfig", "kubeconfig"]).env("ENABLE_CA_SERVER", "false");
        } else {
            pilot.args(["--registries", ""]);
        }
        let log = mesh.file("pilot.log");
        pilot.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        mesh.processes.push(pilot.spawn().expect("pilot-discovery starts"));
        let says = "starting gRPC discovery service at ";
        let pilot = mesh.wait_for("pilot-discovery", || {
            let log = fs::read_to_string(mesh.folder.join("pilot.log")).ok()?;
            Some(log.split_once(says)?.1.split_once('\n')?.0.to_owned())
        });
        let cache = mesh.folder.join("modules");
        let said = mesh.spawn(
            Command::new(&agent)
                .args(["-pilot", &pilot, "-image"])
                .arg(layout)
                .arg("-cache")
                .arg(cache),
        );
        let text = |key: &str| said[key].as_str().expect("text").to_owned();
        mesh.xds = text("xds").parse().expect("an address");
        mesh.images = format!("{}/ws-clean-close", text("registry"));
        mesh.fetch = text("fetch");
        Some(mesh)
    }

    /// A file to write a log into.
    fn file(&self, name: &str) -> fs::File {
        let file = fs::File::options().create(true).append(true).open(self.folder.join(name));
        file.expect("the testbed's folder is writable")
    }

    /// Starts the agent; gives what it says of itself.
    fn spawn(&mut self, command: &mut Command) -> Value {
        let mut log = self.file("agent.log");
        let errors = log.try_clone().expect("a file");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut agent = command.spawn().expect("the agent starts");
        let mut line = String::new();
        let mut lines = BufReader::new(agent.stdout.take().expect("piped"));
        lines.read_line(&mut line).expect("a line");
        self.processes.push(agent);
        // Istio's own log follows.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut log));
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {}", self.log()))
    }

    fn wait_for<T>(&self, what: &str, ready: impl Fn() -> Option<T>) -> T {
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(it) = ready() {
                return it;
            }
            assert!(Instant::now() < patience, "{what} is not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the control plane and the agent have written to their logs.
    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        format!("{}\n{}", read("pilot.log"), read("agent.log"))
    }

    /// Applies manifests, under a name: what stood under it before is gone.
    pub fn apply(&self, name: &str, manifests: &str) {
        let new = self.folder.join(name);
        fs::write(&new, manifests).expect("the testbed's folder is writable");
        fs::rename(new, self.folder.join("config").join(name).with_extension("yaml"))
            .expect("the testbed's folder is writable");
    }

    /// Takes back what was applied under a name.
    pub fn delete(&self, name: &str) {
        let file = self.folder.join("config").join(name).with_extension("yaml");
        fs::remove_file(file).expect("it was applied");
    }

    /// Fetches a module as a proxy's agent would.
    ///
    /// # Errors
    /// What Istio's fetcher says.
    pub fn fetch(&self, url: &str, sha256: &str) -> Result<Vec<u8>, String> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let request = agent.get(&self.fetch).query("url", url).query("sha256", sha256);
        let mut response = request.call().map_err(|e| e.to_string())?;
        let fetched = response.status() == 200;
        let body = response.body_mut();
        if fetched {
            body.read_to_vec().map_err(|e| e.to_string())
        } else {
            Err(body.read_to_string().unwrap_or_default())
        }
    }

    /// Starts an Envoy as this proxy, whose listeners are `hops`.
    ///
    /// # Errors
    /// Envoy's log and the mesh's, where it does not get a configuration that it can run.
    pub fn proxy(&self, proxy: Proxy, hops: &[SocketAddr]) -> Result<Envoy, String> {
        let mut command = Command::new(fetch::envoy());
        command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"]);
        let config = self.bootstrap(proxy).to_string();
        let envoy = Envoy::run(command, &config, hops.to_vec())
            .map_err(|log| format!("{log}\n{}", self.log()))?;
        // Live is an Envoy that has what it asked for. Its listeners may be none yet.
        let patience = Instant::now() + Duration::from_secs(30);
        while !hops
            .iter()
            .all(|hop| envoy.admin("/listeners").contains(&format!(":{}", hop.port())))
        {
            if Instant::now() > patience {
                return Err(format!("no listeners\n{}\n{}", envoy.log(), self.log()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(envoy)
    }

    fn bootstrap(&self, proxy: Proxy) -> Value {
        let (id, cluster, namespace, labels) = match proxy {
            Proxy::Gateway => (
                "router~127.0.0.1~gateway.istio-system~istio-system.svc.cluster.local",
                "istio-ingressgateway",
                "istio-system",
                json!({ "istio": "ingressgateway" }),
            ),
            Proxy::Sidecar => (
                "sidecar~127.0.0.1~wssample.default~default.svc.cluster.local",
                "wssample.default",
                "default",
                json!({ "app": "wssample" }),
            ),
            Proxy::Waypoint => (
                "waypoint~127.0.0.1~waypoint.default~default.svc.cluster.local",
                "waypoint.default",
                "default",
                json!({
                    "gateway.networking.k8s.io/gateway-name": "waypoint",
                    "gateway.networking.k8s.io/gateway-class-name": "istio-waypoint",
                }),
            ),
        };
        let internal_listener = json!([{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            },
        }]);
        let grpc = |name: &str| {
            json!({
                "name": name,
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                },
                "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{
                    "endpoint": { "address": { "socket_address": {
                        "address": "127.0.0.1", "port_value": self.xds.port(),
                    }}},
                }]}]},
            })
        };
        json!({
            "node": {
                "id": id,
                "cluster": cluster,
                "metadata": {
                    "ISTIO_VERSION": self.release.version,
                    "NAMESPACE": namespace,
                    "LABELS": labels,
                    "CLUSTER_ID": "Kubernetes",
                    "INTERCEPTION_MODE": "NONE",
                },
            },
            "bootstrap_extensions": internal_listener,
            "dynamic_resources": {
                "lds_config": { "ads": {}, "resource_api_version": "V3" },
                "cds_config": { "ads": {}, "resource_api_version": "V3" },
                "ads_config": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
                },
            },
            // Istio's configuration names the second of them for certificates.
            "static_resources": { "clusters": [grpc("xds-grpc"), grpc("sds-grpc")] },
            "stats_flush_interval": "1s",
            "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        })
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
