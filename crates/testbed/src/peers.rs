//! WebSocket peers in their own languages. A server says `listening on PORT`, and `opened` for each
//! WebSocket; it closes it with 4321 "bye" on `/server`, so too on `/fin-without-waiting` but without waiting for
//! the answer, and leaves the closing to the client on `/client`. Its last
//! arguments are the port and, for TLS, a certificate and its key. A client is driven as a browser is:
//! a JSON job a line, `{url, close, count}`, and for each an answer `{closes: [...]}`.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use serde_json::{json, Value};

use crate::browser::Closed;
use crate::fetch::{self, on_path, once, run};
use crate::{node, tls};

/// A library, in its own language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Node.
    Ws,
    /// Python.
    Websockets,
    /// Python.
    Aiohttp,
    /// Python; a server only.
    Uvicorn,
    /// Go.
    Gorilla,
    /// Go.
    Coder,
}

impl Library {
    pub const ALL: [Self; 6] =
        [Self::Ws, Self::Websockets, Self::Aiohttp, Self::Uvicorn, Self::Gorilla, Self::Coder];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Websockets => "websockets",
            Self::Aiohttp => "aiohttp",
            Self::Uvicorn => "uvicorn",
            Self::Gorilla => "gorilla/websocket",
            Self::Coder => "coder/websocket",
        }
    }

    /// Whether it can be had here; Go is not on every machine.
    pub fn is_here(self) -> bool {
        !matches!(self, Self::Gorilla | Self::Coder) || on_path("go").is_some()
    }

    fn command(self, role: &str) -> Command {
        let name = self.name().split('/').next().unwrap_or_default();
        match self {
            Self::Ws => {
                let mut command = node::node("peers.mjs");
                command.arg(role);
                command
            }
            Self::Websockets | Self::Aiohttp | Self::Uvicorn => {
                let mut command = Command::new(fetch::python());
                command
                    .env("PYTHONPATH", python_packages())
                    .arg(fetch::root().join("crates/testbed/peers/peers.py"))
                    .args([role, name]);
                command
            }
            Self::Gorilla | Self::Coder => {
                let mut command = Command::new(go_peer());
                command.args([role, name]);
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
    PEER.get_or_init(|| {
        let source = fetch::root().join("crates/testbed/peers/go");
        let files = ["main.go", "go.sum"].map(|name| source.join(name));
        let folder = fetch::folder_for("go", &[&files[0], &files[1]]);
        let peer = folder.join("peer");
        once(&folder, &peer, "Go modules", || {
            let go = on_path("go").expect("no go: install Go 1.23 or later from https://go.dev");
            run(Command::new(go).current_dir(source).args(["build", "-o"]).arg(&peer).arg("."));
        });
        peer
    })
    .clone()
}

/// A server of some library. Ends when dropped.
pub struct Serving {
    process: Child,
    pub address: SocketAddr,
    opened: Arc<AtomicUsize>,
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
        let count = Arc::clone(&opened);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line == "opened" {
                    count.fetch_add(1, Relaxed);
                }
            }
        });
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)), opened }
    }

    /// How many WebSockets have been opened to it.
    pub fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }

    /// Tells it to stop (SIGTERM).
    pub fn stop(&self) {
        // The shell's own `kill`: not every system has a program of that name.
        run(Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.process.id())));
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
        let job = json!({ "url": url, "close": close, "count": count });
        writeln!(self.input, "{job}").expect("the client lives");
        let line = self.answers.next().expect("the client lives").expect("text");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        serde_json::from_value(answer["closes"].clone())
            .unwrap_or_else(|e| panic!("{} answered {line} for {url}: {e}", self.library.name()))
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
