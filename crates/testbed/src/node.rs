//! Node peers: the sample server on `ws`, uploads with Node's own clients.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use serde::Deserialize;

use crate::fetch::{self, on_path, once, run};

/// The folder into which `crates/testbed/node/package.json` has been installed.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = fetch::root().join("crates/testbed/node");
        let folder = fetch::folder_for("node", &[&source.join("package-lock.json")]);
        npm_ci(&source, &folder);
        for file in ["browser.mjs", "peer.mjs", "peers.mjs", "upload.mjs"] {
            install(&source.join(file), &folder.join(file));
        }
        install(&fetch::root().join("examples/sample-app/ws.js"), &folder.join("ws.cjs"));
        folder
    })
}

/// Installs what the lock file of `source` names into `folder`.
fn npm_ci(source: &Path, folder: &Path) {
    once(folder, &folder.join("node_modules/.package-lock.json"), "npm packages", || {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(source.join(file), folder.join(file))
                .expect("the testbed's folder is writable");
        }
        let npm = on_path("npm").expect("no npm: install Node.js 20 or later with npm");
        // Without scripts: no package fetches a browser of its own.
        run(Command::new(npm)
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(folder));
    });
}

/// Copies a script to where Node finds the packages. Other processes may be reading it.
fn install(from: &Path, to: &Path) {
    let new = to.with_extension(format!("new{}", std::process::id()));
    fs::copy(from, &new)
        .and_then(|_| fs::rename(&new, to))
        .expect("the testbed's folder is writable");
}

/// `node` with a script of the folder.
pub fn node(script: &str) -> Command {
    script_in(folder(), script)
}

fn script_in(folder: &Path, script: &str) -> Command {
    let node = on_path("node").expect("no node: install Node.js 20 or later");
    let mut command = Command::new(node);
    command.arg(script).current_dir(folder);
    command
}

/// The folder into which `crates/testbed/peers/node/package.json` has been installed.
fn peers() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = fetch::root().join("crates/testbed/peers/node");
        let folder = fetch::folder_for("node-peers", &[&source.join("package-lock.json")]);
        npm_ci(&source, &folder);
        for file in ["applications.mjs", "peers.mjs"] {
            install(&source.join(file), &folder.join(file));
        }
        let shared = fetch::root().join("crates/testbed/node/peer.mjs");
        install(&shared, &folder.join("peer.mjs"));
        folder
    })
}

/// `node` with a script of `crates/testbed/peers/node`.
pub fn peer(script: &str) -> Command {
    script_in(peers(), script)
}

/// The sample application's server, Node `ws`. Ends when dropped.
pub struct Sample {
    process: Child,
    pub address: SocketAddr,
    said: Arc<Mutex<Vec<String>>>,
}

impl Sample {
    /// Starts it; `by_server` with code 4321, `after` so many milliseconds, or leaves the closing to
    /// the client.
    pub fn start(by_server: bool, after: u32) -> Self {
        Self::start_with(by_server, after, &[])
    }

    /// The same, with further arguments.
    pub fn start_with(by_server: bool, after: u32, arguments: &[&str]) -> Self {
        let mut process = node("ws.cjs")
            .args(arguments)
            .args(["--port", "0", "--close", if by_server { "server" } else { "client" }])
            .args(["--after", &after.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let line = lines.next().expect("a line").expect("text");
        let port = line.strip_prefix("listening on ").and_then(|port| port.parse().ok());
        let port: u16 = port.unwrap_or_else(|| panic!("the sample server said {line:?}"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        // Read as it comes, so that it never waits for a reader.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().expect("no panic while locked").push(line);
            }
        });
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)), said }
    }

    /// How often it has printed this line.
    pub fn said(&self, line: &str) -> usize {
        let said = self.said.lock().expect("no panic while locked");
        said.iter().filter(|said| *said == line).count()
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How many replies to an early answered upload arrived.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Replies {
    /// With Node's `http`.
    pub http: u32,
    /// With Node's `fetch`.
    pub fetch: u32,
}

/// Uploads 3 MB, `count` times with each client.
pub fn upload(address: SocketAddr, count: u32) -> Replies {
    let url = format!("http://{address}/upload");
    let text = run(node("upload.mjs").arg(url).arg(count.to_string()));
    serde_json::from_str(&text).expect("upload.mjs prints JSON")
}
