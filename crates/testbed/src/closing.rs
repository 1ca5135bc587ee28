//! Closes as most tests want them, and waiting for what follows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::server::{path, Behaviour};
use crate::{Client, Ending, Plan};

/// A close that takes less is immediate, even on a busy machine. Half of Envoy's
/// `delayed_close_timeout`, from which it is told apart; the probe draws the same line.
pub const IMMEDIATE: Duration = Duration::from_millis(500);

/// The code with which the server closes in [`close`], and that of the client.
pub const SERVER_CODE: u16 = 4321;
pub const CLIENT_CODE: u16 = 4000;

/// Opens a WebSocket.
///
/// # Panics
/// If the connection or the opening handshake fails.
pub async fn open(address: SocketAddr, path: &str) -> Client {
    Client::open(address, path).await.unwrap_or_else(|e| panic!("no WebSocket at {path}: {e}"))
}

/// Opens a WebSocket and follows the plan.
///
/// # Panics
/// If the connection or the opening handshake fails.
pub async fn run(address: SocketAddr, path: &str, plan: &Plan) -> Ending {
    open(address, path).await.run(plan).await
}

/// The same plan for all of them at once; endings in the order of the clients.
///
/// # Panics
/// If a client does.
pub async fn run_all(clients: Vec<Client>, plan: &Plan) -> Vec<Ending> {
    let run = |client: Client| {
        let plan = plan.clone();
        tokio::spawn(async move { client.run(&plan).await })
    };
    let tasks: Vec<_> = clients.into_iter().map(run).collect();
    let mut endings = Vec::new();
    for task in tasks {
        endings.push(task.await.expect("a close does not panic"));
    }
    endings
}

/// The client's part in a close by either side.
pub fn plan(by_server: bool) -> Plan {
    if by_server {
        Plan::default()
    } else {
        Plan::close(CLIENT_CODE)
    }
}

/// Opens a WebSocket that is closed at once, with [`SERVER_CODE`] or [`CLIENT_CODE`]. Gives up after
/// 5 s.
///
/// # Panics
/// If the connection or the opening handshake fails.
pub async fn close(address: SocketAddr, behaviour: Behaviour, by_server: bool) -> Ending {
    let plan = Plan { patience: Duration::from_secs(5), ..plan(by_server) };
    run(address, &path(behaviour, by_server, SERVER_CODE), &plan).await
}

/// Waits until something is so, at most 20 s.
///
/// # Panics
/// If it is not so by then.
pub async fn until(what: &str, done: impl FnMut() -> bool) {
    until_within(Duration::from_secs(20), || what.to_owned(), done).await;
}

/// Waits until something is so, at most so long. What is asked may take its time.
///
/// # Panics
/// If it is not so by then.
pub async fn until_within(
    patience: Duration,
    what: impl FnOnce() -> String,
    mut done: impl FnMut() -> bool,
) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patience, "not so after {patience:?}: {}", what());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether one count is no larger than another but by chance, over rounds that each had a proxy of its own: four standard
/// errors of the mean difference. Which core a connection's threads are on decides many a race for as long as a
/// process lives, so that counts within a round are not independent.
pub fn no_more_than(rounds: &[(usize, usize)]) -> bool {
    let count = rounds.len() as f64;
    let differences: Vec<f64> =
        rounds.iter().map(|&(one, other)| one as f64 - other as f64).collect();
    let mean = differences.iter().sum::<f64>() / count;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (count - 1.0);
    mean <= 4.0 * (variance / count).sqrt()
}
