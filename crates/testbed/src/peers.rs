//! WebSocket peers in their own languages. A server says `listening on PORT`, and `opened` for each WebSocket; it
//! closes it with 4321 "bye" on `/server`, so too on `/fin-without-waiting` but without waiting for the answer, and
//! leaves the closing to the client on `/client`. Those that report a status of their own say `closed PATH CODE`, and
//! ws how many messages it had. Its last arguments are the port and, for TLS, a certificate and its key. One that
//! reloads its source says `started` each time. A client is driven as a browser is: a JSON job a line, `{url, close,
//! count}`, and for each an answer `{closes: [...]}`.
//!
//! On `/works` aiohttp, gorilla/websocket and Jetty send [`MESSAGES`] messages in 12 s before they read anything, a Close
//! frame of the client's too. So do the clients aiohttp and gorilla/websocket in a job with `works`; java.net.http reads
//! the server's Close frame and does not answer before.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{json, Value};

use crate::browser::Closed;
use crate::fetch::{self, on_path, once, run};
use crate::{node, tls};

/// How many messages an application still has to send that is not at its end when the other side closes, in 12 s.
pub const MESSAGES: usize = 48;

/// A library, in its own language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    /// Node.
    Ws,
    /// Node.
    WebsocketNode,
    /// Node; a client only.
    Undici,
    /// Python.
    Websockets,
    /// Python.
    Aiohttp,
    /// Python; a server only.
    Uvicorn,
    /// On uvicorn with `--reload`.
    Fastapi,
    /// Python; a server only.
    Hypercorn,
    /// The same, with HTTP/2 between the proxy and it.
    HypercornHttp2,
    /// Python; a server only.
    Daphne,
    /// Python.
    Tornado,
    /// Go.
    Gorilla,
    /// Go.
    Coder,
    /// Go; a server only.
    Gobwas,
    /// Go; a server only.
    X,
    /// Java; a server only.
    Jetty,
    /// Java; a server only.
    Undertow,
    /// Java; a server only.
    Tomcat,
    /// Java; a server only.
    Netty,
    /// Rust; a server only.
    Axum,
    /// Rust; a server only.
    Actix,
    /// Java; a client only.
    JavaNetHttp,
    /// Java; a client only.
    Okhttp,
}

/// What a library is written in, and needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecosystem {
    Node,
    Python,
    Go,
    Java,
    Rust,
}

impl Ecosystem {
    /// Whether it can be had here: Go and Java are not on every machine. A notice, once, if not.
    pub fn is_here(self) -> bool {
        static JAVA: OnceLock<bool> = OnceLock::new();
        match self {
            Self::Node | Self::Python | Self::Rust => true,
            Self::Go => fetch::go().is_some(),
            Self::Java => *JAVA.get_or_init(|| {
                let here = ["java", "javac", "mvn"].into_iter().all(|name| on_path(name).is_some());
                if !here {
                    fetch::notice(
                        "SKIPPED what needs Java: install a JDK 17 or later and Maven \
                         (Debian: apt-get install default-jdk-headless maven)",
                    );
                }
                here
            }),
        }
    }
}

impl Library {
    pub const SERVERS: [Self; 19] = [
        Self::Ws,
        Self::WebsocketNode,
        Self::Websockets,
        Self::Aiohttp,
        Self::Uvicorn,
        Self::Hypercorn,
        Self::HypercornHttp2,
        Self::Daphne,
        Self::Tornado,
        Self::Gorilla,
        Self::Coder,
        Self::Gobwas,
        Self::X,
        Self::Jetty,
        Self::Undertow,
        Self::Tomcat,
        Self::Netty,
        Self::Axum,
        Self::Actix,
    ];
    pub const CLIENTS: [Self; 10] = [
        Self::Ws,
        Self::WebsocketNode,
        Self::Undici,
        Self::Websockets,
        Self::Aiohttp,
        Self::Tornado,
        Self::Gorilla,
        Self::Coder,
        Self::JavaNetHttp,
        Self::Okhttp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::WebsocketNode => "websocket-node",
            Self::Undici => "undici",
            Self::Websockets => "websockets",
            Self::Aiohttp => "aiohttp",
            Self::Uvicorn => "uvicorn",
            Self::Fastapi => "FastAPI",
            Self::Hypercorn => "Hypercorn",
            Self::HypercornHttp2 => "Hypercorn over HTTP/2",
            Self::Daphne => "Daphne",
            Self::Tornado => "Tornado",
            Self::Gorilla => "gorilla/websocket",
            Self::Coder => "coder/websocket",
            Self::Gobwas => "gobwas/ws",
            Self::X => "x/net",
            Self::Jetty => "Jetty",
            Self::Undertow => "Undertow",
            Self::Tomcat => "Tomcat",
            Self::Netty => "Netty",
            Self::Axum => "axum",
            Self::Actix => "actix-ws",
            Self::JavaNetHttp => "java.net.http",
            Self::Okhttp => "OkHttp",
        }
    }

    pub fn ecosystem(self) -> Ecosystem {
        match self {
            Self::Ws | Self::WebsocketNode | Self::Undici => Ecosystem::Node,
            Self::Websockets | Self::Aiohttp | Self::Uvicorn | Self::Fastapi => Ecosystem::Python,
            Self::Hypercorn | Self::HypercornHttp2 | Self::Daphne | Self::Tornado => {
                Ecosystem::Python
            }
            Self::Gorilla | Self::Coder | Self::Gobwas | Self::X => Ecosystem::Go,
            Self::Axum | Self::Actix => Ecosystem::Rust,
            Self::Jetty | Self::Undertow | Self::Tomcat | Self::Netty => Ecosystem::Java,
            Self::JavaNetHttp | Self::Okhttp => Ecosystem::Java,
        }
    }

    /// Whether the proxy speaks HTTP/2 to this server.
    pub fn takes_http2(self) -> bool {
        self == Self::HypercornHttp2
    }

    /// Whether the peer of this library serves over TLS.
    pub fn serves_tls(self) -> bool {
        !matches!(self, Self::HypercornHttp2 | Self::Daphne | Self::Fastapi)
            && !matches!(self.ecosystem(), Ecosystem::Java | Ecosystem::Rust)
    }

    /// Whether the server's peer reports the status that its library gives it.
    pub fn reports_status(self) -> bool {
        matches!(
            self,
            Self::WebsocketNode
                | Self::Tornado
                | Self::Jetty
                | Self::Undertow
                | Self::Tomcat
                | Self::Axum
        )
    }

    fn command(self, role: &str) -> Command {
        // As the peers call it.
        let name = match self {
            Self::WebsocketNode => "websocket",
            Self::HypercornHttp2 => "hypercorn",
            Self::Actix => "actix",
            _ => self.name().split('/').next().unwrap_or_default(),
        };
        let arguments = [role, &name.to_lowercase()];
        match self.ecosystem() {
            Ecosystem::Node if self == Self::Ws => {
                let mut command = node::node("peers.mjs");
                command.arg(role);
                command
            }
            Ecosystem::Node => {
                let mut command = node::peer("peers.mjs");
                command.args(arguments);
                command
            }
            Ecosystem::Python => {
                let mut command = Command::new(fetch::python());
                command
                    .env("PYTHONPATH", python_packages())
                    .arg(fetch::root().join("crates/testbed/peers/peers.py"))
                    .args(arguments);
                command
            }
            Ecosystem::Go => {
                let mut command = Command::new(go_peer());
                command.args(arguments);
                command
            }
            Ecosystem::Rust => {
                let mut command = Command::new(rust_peer());
                command.args(arguments);
                command
            }
            Ecosystem::Java => {
                let folder = java_peer();
                let classes = format!("{0}/classes:{0}/jars/*", folder.display());
                let mut command = Command::new("java");
                // Quick to start, and small: what is measured is not Java.
                command
                    .args([
                        "-XX:TieredStopAtLevel=1",
                        "-XX:+UseSerialGC",
                        "-Xmx256m",
                        "-cp",
                        &classes,
                    ])
                    .arg("Peer")
                    .args(arguments);
                command
            }
        }
    }
}

/// A folder with what `requirements.txt` names.
pub(crate) fn python_packages() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let wanted = fetch::root().join("crates/testbed/peers/requirements.txt");
            let folder = fetch::folder_for("python", &[&wanted]);
            once(&folder, &folder.join("installed"), "Python packages", || {
                run(fetch::pip_into(&folder).arg("--requirement").arg(&wanted));
                fs::write(folder.join("installed"), "").expect("the testbed's folder is writable");
            });
            folder
        })
        .clone()
}

/// The Go peer, built from its source.
fn go_peer() -> PathBuf {
    static PEER: OnceLock<PathBuf> = OnceLock::new();
    let build = |source: &Path, folder: &Path| {
        let mut go = Command::new(fetch::go().expect("asked for only where Go is"));
        run(go.current_dir(source).args(["build", "-o"]).arg(folder.join("peer")).arg("."));
    };
    let peer = || built("go", ["main.go", "go.sum"], "peer", "Go modules", build);
    PEER.get_or_init(peer).clone()
}

/// The Rust peer, built from its source.
fn rust_peer() -> PathBuf {
    static PEER: OnceLock<PathBuf> = OnceLock::new();
    let build = |source: &Path, folder: &Path| {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--quiet", "--locked", "--manifest-path"]);
        run(cargo.arg(source.join("Cargo.toml")).arg("--target-dir").arg(folder));
    };
    let what = "crates, and building the Rust peer";
    let peer = || built("rust", ["src/main.rs", "Cargo.lock"], "debug/peer", what, build);
    PEER.get_or_init(peer).clone()
}

/// A peer that `build` makes of its source in a folder for as long as these files stay what they are.
fn built(
    language: &str,
    files: [&str; 2],
    peer: &str,
    what: &str,
    build: impl FnOnce(&Path, &Path),
) -> PathBuf {
    let source = fetch::root().join("crates/testbed/peers").join(language);
    let [one, other] = files.map(|name| source.join(name));
    let folder = fetch::folder_for(language, &[&one, &other]);
    let peer = folder.join(peer);
    once(&folder, &peer, what, || build(&source, &folder));
    peer
}

/// The Java peer, compiled from its source, in `classes`, and what it needs in `jars`.
fn java_peer() -> PathBuf {
    static PEER: OnceLock<PathBuf> = OnceLock::new();
    PEER.get_or_init(|| {
        let source = fetch::root().join("crates/testbed/peers/java");
        let [pom, peer] = ["pom.xml", "Peer.java"].map(|name| source.join(name));
        let folder = fetch::folder_for("java", &[&pom, &peer]);
        once(&folder, &folder.join("classes/Peer.class"), "Java archives", || {
            let jars = folder.join("jars");
            run(Command::new("mvn")
                .args(["--quiet", "--batch-mode", "dependency:copy-dependencies", "--file"])
                .arg(pom)
                .arg(format!("-DoutputDirectory={}", jars.display())));
            run(Command::new("javac")
                .args(["-nowarn", "-cp", &format!("{}/*", jars.display()), "-d"])
                .arg(folder.join("classes"))
                .arg(peer));
        });
        folder
    })
    .clone()
}

/// What a server's library reported of a WebSocket that has ended.
#[derive(Clone, Debug)]
pub struct Status {
    /// The request's.
    pub path: String,
    pub code: u16,
    /// How many messages it had, if it counts them.
    pub messages: Option<usize>,
}

impl Status {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("closed ")?.split(' ');
        let path = words.next()?.to_owned();
        let code = words.next().and_then(|code| code.parse().ok()).unwrap_or(1006);
        Some(Self { path, code, messages: words.next().and_then(|n| n.parse().ok()) })
    }
}

/// A server of some library. Ends when dropped.
pub struct Serving {
    process: Child,
    pub address: SocketAddr,
    opened: Arc<AtomicUsize>,
    starts: Arc<AtomicUsize>,
    statuses: Arc<Mutex<Vec<Status>>>,
}

impl Serving {
    /// # Panics
    /// Where it does not start.
    pub fn start(library: Library) -> Self {
        Self::start_at(library, 0, false)
    }

    /// The same, at a port that was another's before, or any; with TLS or without.
    pub fn start_at(library: Library, port: u16, tls: bool) -> Self {
        let mut command = library.command("serve");
        command.arg(port.to_string());
        if tls {
            let (certificate, key) = tls::certificate();
            command.args([certificate, key]);
        }
        let mut process = command
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", library.name()));
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let line = lines.next().expect("a line").expect("text");
        let port = line.strip_prefix("listening on ").and_then(|port| port.parse().ok());
        let port: u16 = port.unwrap_or_else(|| panic!("{} said {line:?}", library.name()));
        let opened = Arc::new(AtomicUsize::new(0));
        let starts = Arc::new(AtomicUsize::new(0));
        let counts = [("opened", Arc::clone(&opened)), ("started", Arc::clone(&starts))];
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let reported = Arc::clone(&statuses);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, count)) = counts.iter().find(|(what, _)| *what == line) {
                    count.fetch_add(1, Relaxed);
                }
                if let Some(status) = Status::read(&line) {
                    reported.lock().expect("no panic while locked").push(status);
                }
            }
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { process, address, opened, starts, statuses }
    }

    /// How many WebSockets have been opened to it.
    pub fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }

    /// How often its source was loaded, if it reloads it.
    pub fn starts(&self) -> usize {
        self.starts.load(Relaxed)
    }

    /// What its library reported of each WebSocket that has ended since the last call.
    pub fn take_statuses(&self) -> Vec<Status> {
        std::mem::take(&mut self.statuses.lock().expect("no panic while locked"))
    }

    /// How many statuses there are to be taken.
    pub fn statuses(&self) -> usize {
        self.statuses.lock().expect("no panic while locked").len()
    }

    /// Tells it to stop (SIGTERM).
    pub fn stop(&self) {
        self.signal("TERM");
    }

    /// Changes the source that it watches (SIGHUP).
    pub fn reload(&self) {
        self.signal("HUP");
    }

    fn signal(&self, name: &str) {
        // The shell's own `kill`: not every system has a program of that name.
        run(Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.process.id())));
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client of some library. Ends when dropped.
pub struct Connecting {
    process: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    library: Library,
}

impl Connecting {
    /// # Panics
    /// Where it does not start.
    pub fn start(library: Library) -> Self {
        let mut process = library
            .command("connect")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", library.name()));
        let input = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, input, answers, library }
    }

    /// Opens `count` WebSockets to `url` at once, and closes them with `close`, or waits for that.
    ///
    /// # Panics
    /// Where one cannot be opened.
    pub fn closes(&mut self, url: &str, close: Option<u16>, count: usize) -> Vec<Closed> {
        self.does(&json!({ "url": url, "close": close, "count": count }))
    }

    /// Opens `count` WebSockets to `url` at once, and has [`MESSAGES`] messages to send on each before it looks whether the
    /// server has closed it.
    ///
    /// # Panics
    /// Where one cannot be opened.
    pub fn works(&mut self, url: &str, count: usize) -> Vec<Closed> {
        self.does(&json!({ "url": url, "works": true, "count": count }))
    }

    fn does(&mut self, job: &Value) -> Vec<Closed> {
        writeln!(self.input, "{job}").expect("the client lives");
        let line = self.answers.next().expect("the client lives").expect("text");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        serde_json::from_value(answer["closes"].clone())
            .unwrap_or_else(|e| panic!("{} answered {line} for {job}: {e}", self.library.name()))
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
