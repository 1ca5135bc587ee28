//! nginx and HAProxy, for comparison: a chain of hops as [`crate::Setup`] starts them in Envoy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socket2::Socket;

use crate::envoy::{hold_port, local, spawn};
use crate::fetch;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    HaProxy,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Nginx, Self::HaProxy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
        }
    }

    /// Whether it can be had here. A notice if not.
    pub fn is_here(self) -> bool {
        let here = self.program().is_some();
        if !here {
            let name = self.name();
            fetch::notice(&format!(
                "SKIPPED {name}: install Debian's package, or apt-get to fetch it"
            ));
        }
        here
    }

    /// Debian's.
    fn package(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "haproxy",
        }
    }

    fn program(self) -> Option<PathBuf> {
        let package = self.package();
        fetch::debian_with_libraries(package, &format!("usr/sbin/{package}"))
    }
}

/// A running proxy. Ends when dropped.
pub struct Proxy {
    process: Child,
    hops: Vec<SocketAddr>,
    folder: PathBuf,
    _held: Vec<Socket>,
}

impl Proxy {
    /// Starts `hops` hops in front of `server`.
    ///
    /// # Errors
    /// Where the proxy cannot be had or does not start, why.
    pub fn start(kind: Kind, hops: usize, server: SocketAddr) -> Result<Self, String> {
        let program = kind.program().ok_or_else(|| {
            format!("no {}: install Debian's package, or apt-get to fetch it", kind.name())
        })?;
        let folder = fetch::folder(&format!("run/{}-{}", kind.name(), std::process::id()));
        let (held, ports): (Vec<_>, Vec<_>) = (0..hops).map(|_| hold_port()).unzip();
        let hops: Vec<SocketAddr> = ports.into_iter().map(local).collect();
        let upstreams = std::iter::once(server).chain(hops.iter().copied());
        let pairs: Vec<_> = hops.iter().copied().zip(upstreams).collect();
        let file = folder.join("config");
        let config = match kind {
            Kind::Nginx => nginx(&pairs, &folder),
            Kind::HaProxy => haproxy(&pairs),
        };
        fs::write(&file, config).expect("the testbed's folder is writable");
        let log = fs::File::create(folder.join("log")).expect("the testbed's folder is writable");
        let mut command = Command::new(program);
        match kind {
            Kind::Nginx => command.arg("-p").arg(&folder).args(["-e", "stderr", "-c"]).arg(&file),
            Kind::HaProxy => command.args(["-db", "-f"]).arg(&file),
        };
        command.env("LD_LIBRARY_PATH", fetch::debian_libraries(kind.package()));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let process = spawn(command).map_err(|e| format!("cannot run {}: {e}", kind.name()))?;
        let mut proxy = Self { process, hops, folder, _held: held };
        for _ in 0..500 {
            if proxy.hops.iter().all(|hop| std::net::TcpStream::connect(hop).is_ok()) {
                return Ok(proxy);
            }
            if !matches!(proxy.process.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(proxy.folder.join("log")).unwrap_or_default();
        Err(format!("{} does not start: {}", kind.name(), log.lines().last().unwrap_or_default()))
    }

    /// Where a client enters to pass `hops` hops.
    pub fn entry(&self, hops: usize) -> SocketAddr {
        self.hops[hops - 1]
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// One process, the settings of nginx's page on WebSocket proxying.
fn nginx(pairs: &[(SocketAddr, SocketAddr)], folder: &Path) -> String {
    let folder = folder.display();
    let servers: String = pairs
        .iter()
        .map(|(listen, upstream)| {
            format!(
                "server {{ listen {listen} reuseport; location / {{ proxy_pass http://{upstream}; \
                 proxy_http_version 1.1; proxy_set_header upgrade $http_upgrade; \
                 proxy_set_header connection upgrade; }} }}\n"
            )
        })
        .collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .collect();
    format!(
        "daemon off; master_process off; error_log stderr; pid {folder}/pid;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off;\n{temporary}{servers}}}\n"
    )
}

fn haproxy(pairs: &[(SocketAddr, SocketAddr)]) -> String {
    let hops: String = pairs
        .iter()
        .enumerate()
        .map(|(i, (listen, upstream))| {
            format!("listen hop{i}\n  bind {listen}\n  server upstream {upstream}\n")
        })
        .collect();
    format!(
        "global\n  maxconn 8192\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
         timeout server 60s\n  timeout tunnel 60s\n{hops}"
    )
}
