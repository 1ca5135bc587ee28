//! WebSockets that open, talk and close while something else happens.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use testbed::closing::until;
use testbed::server::{path, Behaviour};
use testbed::{wire, Client, Ending, Envoy, Plan};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

/// WebSockets that open and close all the time, by either side, and some that stay open and talk.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    closes: Arc<Mutex<Vec<Result<Ending, String>>>>,
    talks: Vec<JoinHandle<Talk>>,
}

/// What became of a WebSocket that stays open.
#[derive(Debug)]
pub struct Talk {
    pub echoes: usize,
    /// An echo was missing, or not what had been sent.
    pub broken: Option<String>,
    pub ending: Option<Ending>,
}

impl Crowd {
    const CLOSING: usize = 12;
    const TALKING: usize = 6;

    pub fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let closes = Arc::new(Mutex::new(Vec::new()));
        let tasks = (0..Self::CLOSING)
            .map(|n| {
                let (stop, closes) = (Arc::clone(&stop), Arc::clone(&closes));
                tokio::spawn(async move {
                    let mut rng = Rng::with_seed(n as u64);
                    while !stop.load(Relaxed) {
                        let close = close_after(address, rng.bool(), rng.u64(..80)).await;
                        closes.lock().expect("no panic while locked").push(close);
                    }
                })
            })
            .collect();
        let talks =
            (0..Self::TALKING).map(|_| tokio::spawn(talk(address, Arc::clone(&stop)))).collect();
        Self { stop, tasks, closes, talks }
    }

    /// Waits until so many more have closed.
    pub async fn closes(&self, more: usize) {
        let count = || self.closes.lock().expect("no panic while locked").len();
        let wanted = count() + more;
        until("closes go on", || count() >= wanted).await;
    }

    /// All must have been clean and immediate, and every echo the right one.
    pub async fn stop(self) -> usize {
        let closes = self.stop_on_a_busy_machine().await;
        for ending in &closes {
            assert!(ending.is_immediate(), "{ending:?}");
        }
        closes.len()
    }

    /// All must have been clean, and every echo the right one. Whether a close had to wait for a timer is for
    /// [`Envoy::timers_expired`] to say, where the test itself keeps the machine busy.
    pub async fn stop_on_a_busy_machine(self) -> Vec<Ending> {
        let (closes, talks) = self.end().await;
        let closes: Vec<_> = closes
            .into_iter()
            .map(|close| close.unwrap_or_else(|e| panic!("not opened: {e}")))
            .collect();
        for ending in &closes {
            assert!(ending.is_clean() && [4000, 4321].contains(&ending.code()), "{ending:?}");
        }
        for talk in talks {
            assert!(talk.broken.is_none() && talk.echoes > 0, "{talk:?}");
            assert!(talk.ending.as_ref().is_some_and(Ending::is_clean), "{talk:?}");
        }
        closes
    }

    async fn end(self) -> (Vec<Result<Ending, String>>, Vec<Talk>) {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.expect("a close does not panic");
        }
        let mut talks = Vec::new();
        for talk in self.talks {
            talks.push(talk.await.expect("a talk does not panic"));
        }
        let closes = std::mem::take(&mut *self.closes.lock().expect("no panic while locked"));
        (closes, talks)
    }
}

/// Opens a WebSocket and closes it after some milliseconds.
pub async fn close_after(
    address: SocketAddr,
    by_server: bool,
    after: u64,
) -> Result<Ending, String> {
    let path = format!("{}&after={after}", path(Behaviour::Waits, by_server, 4321));
    let client = Client::open(address, &path).await.map_err(|e| e.to_string())?;
    let after = Duration::from_millis(after);
    let close = (!by_server).then(|| (4000, String::new(), after));
    let plan = Plan { close, distance: Duration::from_millis(1), ..Plan::default() };
    Ok(client.run(&plan).await)
}

/// Talks to the echo until it is told to stop, and closes then.
pub async fn talk(address: SocketAddr, stop: Arc<AtomicBool>) -> Talk {
    let mut talk = Talk { echoes: 0, broken: None, ending: None };
    let mut client = match Client::open(address, "/echo?by=client").await {
        Ok(client) => client,
        Err(e) => return Talk { broken: Some(format!("not opened: {e}")), ..talk },
    };
    while !stop.load(Relaxed) {
        let said = format!("message {}", talk.echoes).into_bytes();
        let sent = client.stream.write_all(&wire::message(&said, true)).await;
        match client.frames.next(&mut client.stream).await {
            Ok(Some(frame)) if frame.payload == said => talk.echoes += 1,
            other => {
                talk.broken = Some(format!("{sent:?}, {other:?}"));
                return talk;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    talk.ending = Some(client.run(&Plan::close(4000)).await);
    talk
}

/// Nothing is left, nothing was counted twice, nothing has gone wrong inside.
pub async fn is_in_order(envoy: &Envoy) {
    until("no WebSocket is left", || envoy.metric("websocket.active") == 0).await;
    let closed: u64 = ["clean", "server_only", "client_only", "abnormal"]
        .iter()
        .map(|outcome| envoy.metric(&format!("websocket.closed.{outcome}")))
        .sum();
    assert_eq!(envoy.metric("websocket.upgrades"), closed);
    assert_eq!(envoy.metric("websocket.unpaired"), 0);
    let log = envoy.log();
    assert!(!log.contains("panicked") && !log.contains("Uncaught"), "{log}");
}
