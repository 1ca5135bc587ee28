//! Real browsers: the Chromium of today, and Chrome 88, which reports 1006 where it had to wait.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{mpsc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{json, Value};

use crate::fetch::{self, on_path, once, run};
use crate::node;

/// Which browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `CHROMIUM_PATH`, one on the PATH, or npm's `@sparticuz/chromium`.
    Chromium,
    /// npm's `chrome-aws-lambda@5.5.0`.
    Chrome88,
}

/// How a WebSocket closed, as `onclose` told it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Closed {
    pub code: u16,
    pub reason: String,
    pub was_clean: bool,
    /// Milliseconds from `onopen` to `onclose`.
    pub ms: f64,
    /// What was negotiated, such as `permessage-deflate`.
    #[serde(default)]
    pub extensions: String,
    /// How many messages came, if they were counted.
    #[serde(default)]
    pub messages: usize,
}

/// What the page does with each WebSocket.
#[derive(Clone, Debug)]
pub enum Closing {
    /// Waits for the server's close.
    ByServer,
    /// Waits for the server's close, sending so many bytes every so many milliseconds.
    Sending(usize, u32),
    /// Sends one message and waits for the server's close.
    Asking,
    /// `close()`.
    Plain,
    /// `close(code)`.
    Code(u16),
}

/// A running browser. Ends when dropped.
pub struct Browser {
    process: Child,
    input: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
    profile: PathBuf,
    pub version: String,
}

impl Browser {
    /// # Panics
    /// Where the browser does not start.
    pub fn start(kind: Kind) -> Self {
        Self::try_start(kind).unwrap_or_else(|e| panic!("{kind:?} does not start: {e}"))
    }

    /// # Errors
    /// Where the browser does not start, why.
    pub fn try_start(kind: Kind) -> Result<Self, String> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // One starts at a time: on a slow machine with a cold disk, each of two at once may be too late.
        static TURN: Mutex<()> = Mutex::new(());
        let n = COUNT.fetch_add(1, Relaxed);
        let profile = fetch::folder(&format!("run/browser-{}-{n}", std::process::id()));
        let (name, (executable, libraries)) = match kind {
            Kind::Chromium => ("chromium", chromium()),
            Kind::Chrome88 => ("chrome88", unpacked("chrome-aws-lambda", "aws.tar.br")),
        };
        let mut command = node::node("browser.mjs");
        command.arg(name).arg(executable).arg(&profile);
        if let Some(libraries) = libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("node starts");
        let input = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut browser = Self { process, input, answers, profile, version: String::new() };
        let hello = browser.answer().ok_or("its driver ended, or says nothing")?;
        drop(turn);
        match hello["version"].as_str() {
            Some(version) => version.clone_into(&mut browser.version),
            None => return Err(hello["error"].as_str().unwrap_or("no version").to_owned()),
        }
        Ok(browser)
    }

    /// Opens `count` WebSockets to `url`, one after the other, in the sample's client page.
    pub fn closes(&mut self, url: &str, closing: &Closing, count: usize) -> Vec<Closed> {
        self.watch(url, closing, count, false)
    }

    /// The same, all at once.
    pub fn closes_at_once(&mut self, url: &str, closing: &Closing, count: usize) -> Vec<Closed> {
        self.watch(url, closing, count, true)
    }

    fn watch(&mut self, url: &str, closing: &Closing, count: usize, at_once: bool) -> Vec<Closed> {
        let page = fetch::root().join("examples/sample-app/client.html");
        let page = format!("file://{}", page.display());
        let mut job = json!({
            "do": "closes", "page": page, "url": url, "count": count, "atOnce": at_once,
        });
        match closing {
            Closing::ByServer => {}
            Closing::Sending(bytes, every) => job["send"] = json!([bytes, every]),
            Closing::Asking => job["ask"] = json!(true),
            Closing::Plain => job["close"] = json!("plain"),
            Closing::Code(code) => job["close"] = json!(code),
        }
        let closes = self.ask(&job);
        serde_json::from_value(closes).expect("an array of closes")
    }

    /// Opens any other page.
    pub fn open(&mut self, url: &str, view: View) -> Page<'_> {
        let View { width, height, scale, dark } = view;
        let scheme = if dark { "dark" } else { "light" };
        self.ask(&json!({
            "do": "open", "url": url,
            "width": width, "height": height, "scale": scale, "scheme": scheme,
        }));
        Page { browser: self }
    }

    /// # Panics
    /// With what the browser said, where the job failed.
    fn ask(&mut self, job: &Value) -> Value {
        let input = self.input.as_mut().expect("open until dropped");
        writeln!(input, "{job}").expect("the browser's driver lives");
        let mut answer = self.answer().expect("the browser's driver lives");
        assert!(answer["error"].is_null(), "the browser answered {answer} to {job}");
        answer["result"].take()
    }

    /// The driver gives a job a minute, and the browser two of them to start.
    fn answer(&mut self) -> Option<Value> {
        let line = self.answers.recv_timeout(Duration::from_secs(150)).ok()?;
        serde_json::from_str(&line).ok()
    }
}

/// A window.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub width: u32,
    pub height: u32,
    /// Device pixels for each of them.
    pub scale: u32,
    pub dark: bool,
}

/// A page in a browser, whatever it shows.
pub struct Page<'a> {
    browser: &'a mut Browser,
}

/// What a page has done since it was opened.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    /// The addresses it has asked for, less those of WebSockets.
    pub requests: Vec<String>,
    /// Errors and warnings in its console.
    pub complaints: Vec<String>,
}

impl Page<'_> {
    /// The value of an expression.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        self.browser.ask(&json!({ "do": "evaluate", "expression": expression }))
    }

    /// Waits until an expression is true, at most a minute.
    pub fn wait(&mut self, expression: &str) {
        self.browser.ask(&json!({ "do": "wait", "expression": expression }));
    }

    /// Presses keys, such as `Tab`, one after the other.
    pub fn press(&mut self, keys: &[&str]) {
        self.browser.ask(&json!({ "do": "press", "keys": keys }));
    }

    /// Writes what can be seen as PNG.
    pub fn screenshot(&mut self, path: &Path) {
        self.browser.ask(&json!({ "do": "screenshot", "path": path }));
    }

    pub fn seen(&mut self) -> Seen {
        let seen = self.browser.ask(&json!({ "do": "seen" }));
        serde_json::from_value(seen).expect("requests and complaints")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser when it is asked nothing more.
        self.input = None;
        let mut patience = 100;
        while patience > 0 && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
            patience -= 1;
        }
        if patience == 0 {
            // Upon this signal a driver that hangs kills its browser, and ends.
            let pid = self.process.id().to_string();
            let _ = Command::new("kill").args(["-INT", &pid]).status();
            std::thread::sleep(Duration::from_millis(500));
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

/// The executable, and libraries that it may need.
type Executable = (PathBuf, Option<PathBuf>);

fn chromium() -> Executable {
    if let Some(path) = std::env::var_os("CHROMIUM_PATH") {
        return (path.into(), None);
    }
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(on_path);
    found.map_or_else(|| unpacked("@sparticuz/chromium", "al2023.tar.br"), |path| (path, None))
}

/// Unpacks a browser that an npm package carries, with the libraries for a machine without them.
fn unpacked(package: &str, libraries: &str) -> Executable {
    let source = node::folder().join("node_modules").join(package).join("bin");
    let folder = fetch::folder(&format!("browser-{}", package.replace(['@', '/'], "-")));
    let executable = folder.join("chrome");
    once(&folder, &executable, package, || {
        decompress(&source.join(libraries), &folder.join("libraries.tar"));
        run(Command::new("tar").current_dir(&folder).args(["xf", "libraries.tar"]));
        decompress(&source.join("chromium.br"), &folder.join("unpacking"));
        fs::rename(folder.join("unpacking"), &executable)
            .expect("the testbed's folder is writable");
    });
    // Only where the system's own are missing: they are newer.
    let missing = run(Command::new("ldd").arg(&executable)).contains("not found");
    let libraries = missing.then(|| folder.join("lib"));
    (executable, libraries)
}

/// Decompresses a brotli file into an executable one; Node has brotli.
fn decompress(from: &Path, to: &Path) {
    const SCRIPT: &str = "const [, from, to] = process.argv; const fs = require('fs');
        const bytes = require('zlib').brotliDecompressSync(fs.readFileSync(from));
        fs.writeFileSync(to, bytes, { mode: 0o755 });";
    let node = on_path("node").expect("no node: install Node.js 20 or later");
    run(Command::new(node).args(["-e", SCRIPT]).args([from, to]));
}
