//! Envoy Gateway without a cluster: its real binary in standalone mode, which reads resources from a file
//! and runs Envoy on this machine.
//!
//! It wants fixed ports, a file in `/certs` and a name of Kubernetes. So each test runs in namespaces of its
//! own, with a root folder that has these, and tests do not meet each other.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::prelude::{Engine, BASE64_STANDARD as BASE64};
use serde_json::{json, Value};

use crate::{envoy, fetch, tls};

const PACKAGE: &str = "github.com/envoyproxy/gateway/cmd/envoy-gateway@v1.9.1";
/// Under this name Envoy Gateway finds the testbed's Envoy. It is a name only: `ENVOY_VERSION` is what counts.
const ENVOY_VERSION: &str = "1.40.0";
/// Set inside the namespaces: the folder of the test.
const FOLDER: &str = "TESTBED_ENVOY_GATEWAY_FOLDER";

/// Runs in the namespaces, with `$1` for the test's folder, before the test itself.
const ENTER: &str = r#"
set -e
folder=$1; shift
ip link set lo up
# A root of its own, with everything that the old one has, and /certs.
mount -t tmpfs tmpfs /mnt
for entry in /*; do
    if [ -L "$entry" ]; then cp -P "$entry" "/mnt$entry"
    elif [ "$entry" != /mnt ] && [ "$entry" != /certs ] && [ -d "$entry" ]; then
        mkdir "/mnt$entry"; mount --rbind "$entry" "/mnt$entry"
    fi
done
mkdir /mnt/certs
cp "$folder/config/certs/envoy/ca.crt" /mnt/certs
mount --bind "$folder/hosts" /mnt/etc/hosts
exec chroot /mnt "$@"
"#;

/// Runs a test, named as its function is, in namespaces of its own. Skips it, with a notice, without Go or
/// root.
///
/// # Panics
/// If the test does.
pub fn isolated(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(FOLDER).is_some() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        return runtime.block_on(test);
    }
    let Some(gateway) = fetch::go_install(PACKAGE, "envoy-gateway") else { return };
    let namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child"];
    let can = Command::new("unshare").args(namespaces).args(["ip", "link"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        fetch::notice(&format!(
            "SKIPPED {name}: it needs root, for namespaces, and the programs unshare and ip"
        ));
        return;
    }
    let folder = fetch::folder(&format!("run/{name}-{}", std::process::id()));
    prepare(&gateway, &folder);
    let here = std::env::current_dir().expect("a folder");
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", ENTER, "enter"])
        .arg(&folder)
        .args(["env", "-C"])
        .arg(here)
        .arg(std::env::current_exe().expect("a program"))
        .args([name, "--exact", "--nocapture"])
        .env(FOLDER, &folder)
        .env("WS_CLEAN_CLOSE_WASM", fetch::module())
        .env("ENVOY_PATH", fetch::envoy())
        .output()
        .expect("unshare runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    println!("{said}");
    fs::remove_dir_all(folder).expect("it was made");
}

/// Certificates, the configuration, and Envoy where func-e, which is inside, looks for it.
fn prepare(gateway: &Path, folder: &Path) {
    let home = |name: &str| folder.join(name).display().to_string();
    let bin = folder.join(format!("data/envoy-versions/{ENVOY_VERSION}/bin"));
    fs::create_dir_all(&bin).expect("the testbed's folder is writable");
    fs::create_dir_all(folder.join("resources")).expect("the testbed's folder is writable");
    symlink(fetch::envoy(), bin.join("envoy")).expect("the testbed's folder is writable");
    symlink(gateway, folder.join("envoy-gateway")).expect("the testbed's folder is writable");
    fetch::run(Command::new(gateway).args([
        "certgen",
        "--local",
        "--config-home",
        &home("config"),
    ]));
    // The certificate of HTTPS listeners; and the client's, with which Envoy fetches modules from Envoy Gateway.
    let (certificate, key) = tls::certificate();
    let served = secret("tls", "default", &[("tls.crt", certificate), ("tls.key", key)]);
    let certs = folder.join("config/certs/envoy");
    let files = ["tls.crt", "tls.key", "ca.crt"].map(|name| (name, certs.join(name)));
    let files = files.each_ref().map(|(name, file)| (*name, file.as_path()));
    let fetches = secret("envoy", "envoy-gateway-system", &files);
    fs::write(folder.join("secrets"), format!("{served}\n---\n{fetches}"))
        .expect("the testbed's folder is writable");
    let hosts = "127.0.0.1 localhost envoy-gateway.envoy-gateway-system.svc.cluster.local \
                 modules.default.svc.cluster.local\n";
    fs::write(folder.join("hosts"), hosts).expect("the testbed's folder is writable");
    for (name, runtime_flags) in
        [("gateway.yaml", json!(["XDSNameSchemeV2"])), ("v1.yaml", json!([]))]
    {
        let config = json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "EnvoyGateway",
            "gateway": { "controllerName": "gateway.envoyproxy.io/gatewayclass-controller" },
            "provider": { "type": "Custom", "custom": {
                "resource": { "type": "File", "file": { "paths": [home("resources")] } },
                "infrastructure": { "type": "Host", "host": {
                    "configHome": home("config"),
                    "dataHome": home("data"),
                    "stateHome": home("state"),
                    "runtimeDir": home("runtime"),
                }},
            }},
            "logging": { "level": { "default": "info" } },
            "extensionApis": {
                "enableEnvoyPatchPolicy": true, "enableBackend": true, "enableLua": true,
            },
            "runtimeFlags": { "enabled": runtime_flags },
        });
        fs::write(folder.join(name), config.to_string()).expect("the testbed's folder is writable");
    }
}

/// A control plane and the Envoy that it runs. Ends when dropped.
pub struct EnvoyGateway {
    process: Child,
    folder: PathBuf,
    admin: SocketAddr,
}

impl EnvoyGateway {
    /// Starts it, inside [`isolated`], with resources, among them a Gateway of the class `eg`, whose HTTPS
    /// listeners may use the Secret `tls`. `names_by_port` is XDSNameSchemeV2. What is open on a listener that is replaced lives on for `drain_seconds`.
    ///
    /// # Panics
    /// With its log, where no Envoy comes up.
    pub fn start(resources: &str, names_by_port: bool, drain_seconds: u32) -> Self {
        let folder = PathBuf::from(std::env::var_os(FOLDER).expect("inside the namespaces"));
        let admin_file = folder.join("admin");
        let log = fs::File::create(folder.join("log")).expect("the testbed's folder is writable");
        let process = Command::new(folder.join("envoy-gateway"))
            .args(["server", "--config-path"])
            .arg(folder.join(if names_by_port { "gateway.yaml" } else { "v1.yaml" }))
            // Its cache of images is there.
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("envoy-gateway starts");
        let mut gateway = Self { process, folder, admin: ([127, 0, 0, 1], 0).into() };
        let class = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": { "name": "eg" },
            "spec": {
                "controllerName": "gateway.envoyproxy.io/gatewayclass-controller",
                "parametersRef": {
                    "group": "gateway.envoyproxy.io", "kind": "EnvoyProxy",
                    "name": "host", "namespace": "default",
                },
            },
        });
        let proxy = json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "EnvoyProxy",
            "metadata": { "name": "host", "namespace": "default" },
            "spec": {
                "provider": { "type": "Host", "host": { "envoyVersion": ENVOY_VERSION } },
                "concurrency": 2,
                "shutdown": { "drainTimeout": format!("{drain_seconds}s") },
                "extraArgs": ["--disable-hot-restart", "--admin-address-path", admin_file],
            },
        });
        let secrets = fs::read_to_string(gateway.folder.join("secrets")).expect("it was written");
        let base = format!("{class}\n---\n{proxy}\n---\n{secrets}");
        fs::write(gateway.folder.join("base"), base).expect("the testbed's folder is writable");
        gateway.apply(resources);
        gateway.admin = gateway.wait("Envoy", |_| {
            let admin = fs::read_to_string(&admin_file).ok()?.trim().parse().ok()?;
            let ready = envoy::get(admin, "/ready")?;
            (ready.trim() == "LIVE").then_some(admin)
        });
        gateway
    }

    /// Replaces the resources.
    pub fn apply(&self, resources: &str) {
        let base = fs::read_to_string(self.folder.join("base")).expect("it was written");
        // Hidden files are not read.
        let new = self.folder.join("resources/.new");
        fs::write(&new, format!("{base}\n---\n{resources}"))
            .and_then(|()| fs::rename(&new, self.folder.join("resources/resources.yaml")))
            .expect("the testbed's folder is writable");
    }

    /// Waits until `ready` gives something.
    ///
    /// # Panics
    /// After half a minute, with the log.
    pub fn wait<T>(&self, what: &str, ready: impl Fn(&Self) -> Option<T>) -> T {
        let patience = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(it) = ready(self) {
                return it;
            }
            assert!(Instant::now() < patience, "{what}: not within 30 s\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A page of Envoy's admin interface.
    pub fn admin(&self, path: &str) -> String {
        let page = envoy::get(self.admin, path);
        page.unwrap_or_else(|| panic!("Envoy's {path} cannot be had\n{}", self.log()))
    }

    /// A metric of the filter, by its name without `wasmcustom.`; 0 where there is none.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.admin(&format!("/stats?filter=^wasmcustom.{name}$"));
        page.trim().rsplit(": ").next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// The listeners as Envoy has them.
    pub fn listeners(&self) -> Vec<Value> {
        let dump: Value = serde_json::from_str(&self.admin("/config_dump")).expect("JSON");
        let configs = dump["configs"].as_array().cloned().unwrap_or_default();
        let listeners = configs.iter().filter_map(|c| c["dynamic_listeners"].as_array()).flatten();
        listeners.map(|l| l["active_state"]["listener"].clone()).filter(Value::is_object).collect()
    }

    /// What Envoy Gateway and Envoy have written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for EnvoyGateway {
    fn drop(&mut self) {
        // Its Envoy ends with the namespace.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A Secret with these files.
fn secret(name: &str, namespace: &str, files: &[(&str, &Path)]) -> Value {
    let mut data = json!({});
    for (key, file) in files {
        data[key] = json!(BASE64.encode(fs::read(file).expect("it was made")));
    }
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": { "name": name, "namespace": namespace },
        "data": data,
    })
}
