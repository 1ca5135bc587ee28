//! An HTTP/3 client (PyPI's aioquic) that opens WebSockets by extended CONNECT (RFC 9220), next to plain
//! requests on the same connection.

use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::wire::{Frames, Received};
use crate::{fetch, peers};

/// One HTTP/3 connection.
pub struct Connection {
    _process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// What has come on a stream.
#[derive(Debug)]
pub struct Read {
    pub frames: Vec<Received>,
    /// `fin`, `reset 0x…`, or `closed` with the connection; `None`: it goes on.
    pub end: Option<String>,
}

impl Connection {
    /// # Panics
    /// If the connection cannot be made.
    pub async fn open(address: SocketAddr) -> Self {
        let packages = tokio::task::spawn_blocking(peers::python_packages).await.expect("packages");
        let mut process = Command::new(fetch::python())
            .env("PYTHONPATH", packages)
            .arg(fetch::root().join("crates/testbed/peers/http3.py"))
            .arg(address.port().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python runs");
        let commands = process.stdin.take().expect("a pipe");
        let answers = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let mut connection = Self { _process: process, commands, answers };
        assert_eq!(connection.answer().await, json!({ "connected": true }));
        connection
    }

    async fn answer(&mut self) -> Value {
        let line = self.answers.next_line().await.expect("a pipe").expect("the client goes on");
        serde_json::from_str(&line).expect("JSON")
    }

    async fn ask(&mut self, command: Value) -> Value {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.expect("a pipe");
        self.answer().await
    }

    /// The status of a plain request.
    pub async fn get(&mut self, path: &str) -> u64 {
        let answer = self.ask(json!({ "do": "get", "path": path })).await;
        answer["status"].as_u64().unwrap_or_else(|| panic!("no status: {answer}"))
    }

    /// Opens a WebSocket; the stream's number.
    pub async fn websocket(&mut self, path: &str) -> u64 {
        let answer = self.ask(json!({ "do": "open", "path": path })).await;
        assert_eq!(answer["status"], 200, "no upgrade: {answer}");
        answer["id"].as_u64().expect("a number")
    }

    /// Sends bytes on a stream.
    pub async fn send(&mut self, stream: u64, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(json!({ "do": "send", "id": stream, "hex": hex })).await;
    }

    /// Reads up to the stream's end, at most for so many seconds.
    pub async fn read(&mut self, stream: u64, seconds: f64) -> Read {
        let answer = self.ask(json!({ "do": "read", "id": stream, "seconds": seconds })).await;
        let hex = answer["hex"].as_str().expect("bytes");
        let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let mut left = Frames::new(&bytes);
        let frames = std::iter::from_fn(|| left.pop()).collect();
        Read { frames, end: answer["end"].as_str().map(str::to_owned) }
    }

    /// Whether the connection is still there.
    pub async fn is_alive(&mut self) -> bool {
        self.ask(json!({ "do": "alive" })).await["alive"] == true
    }
}
