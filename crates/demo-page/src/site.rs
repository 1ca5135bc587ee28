//! The demo page's server: three Envoys in front of one WebSocket server, the page, and their numbers.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{json, Value};
use testbed::node::{self, Replies};
use testbed::server::{path, Behaviour};
use testbed::{Envoy, Mode, Server, Setup};
use tokio::net::TcpListener;
use tokio::task::{spawn_blocking, JoinHandle};

/// The longest way to the server that the page offers.
const HOPS: usize = 3;
/// The page may reach its own server and the Envoys, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      img-src data:; connect-src 'self' http://127.0.0.1:* ws://127.0.0.1:*";

/// A running site. Ends when dropped.
pub struct Site {
    pub address: SocketAddr,
    task: JoinHandle<()>,
    _server: Server,
}

impl Site {
    /// Starts the server, the Envoys and the site itself; port 0 is any that is free.
    ///
    /// # Errors
    /// Where the port is taken.
    pub async fn start(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let server = Server::start().await;
        let mut envoys = Vec::new();
        for mode in Mode::ALL {
            envoys.push(Setup::new(mode).hops(HOPS).start(server.address).await);
        }
        let app = Router::new()
            .route("/", get(page))
            .route("/setup", get(setup))
            .route("/counters", get(counters))
            .route("/uploads", get(uploads))
            .with_state(Arc::new(envoys));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { address, task, _server: server })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Envoys = State<Arc<Vec<Envoy>>>;

async fn page() -> impl IntoResponse {
    let headers = [("content-security-policy", POLICY), ("cache-control", "no-store")];
    (headers, Html(include_str!("page.html")))
}

/// Where the lanes are entered, and which buttons there are.
async fn setup(State(envoys): Envoys) -> Json<Value> {
    let lane = |envoy: &Envoy| (1..=HOPS).map(|hops| envoy.entry(hops)).collect::<Vec<_>>();
    Json(json!({
        "lanes": envoys.iter().map(lane).collect::<Vec<_>>(),
        "server": buttons(true),
        "client": buttons(false),
    }))
}

fn buttons(by_server: bool) -> Vec<Value> {
    let button = |behaviour| {
        let words = if by_server { server_closes(behaviour) } else { client_closes(behaviour) };
        Some(json!({ "words": words?, "path": path(behaviour, by_server, 4321) }))
    };
    Behaviour::all().filter_map(button).collect()
}

/// What the server does where it closes, in words.
fn server_closes(behaviour: Behaviour) -> Option<&'static str> {
    Some(match behaviour {
        Behaviour::Waits => "waits for the answer",
        Behaviour::FinWithoutWaiting => "does not wait for the answer",
        Behaviour::ClosesUnread => "does not wait: close(2)",
        Behaviour::Resets => "is answered, resets TCP",
        Behaviour::NeverCloses => "is answered, never ends TCP",
        Behaviour::DiesInFrame => "dies inside a frame",
        Behaviour::ByteByByte => "its frame in single bytes",
        Behaviour::Large => "20 MB before its frame",
        Behaviour::FinWithoutClose => "no Close frame at all",
        Behaviour::DataAfterClose => "sends data behind its frame",
        Behaviour::Ignores
        | Behaviour::Raw
        | Behaviour::Mirror
        | Behaviour::Flood
        | Behaviour::Sink
        | Behaviour::Breaks
        | Behaviour::Echo
        | Behaviour::Talks => return None,
    })
}

/// What the server does where the client closes, in words; those that do the same are named once.
fn client_closes(behaviour: Behaviour) -> Option<&'static str> {
    Some(match behaviour {
        Behaviour::Waits => "is answered",
        Behaviour::FinWithoutWaiting => "TCP ends, no answer",
        Behaviour::Resets => "TCP is reset, no answer",
        Behaviour::NeverCloses => "is answered, TCP never ends",
        Behaviour::DiesInFrame => "the server dies inside a frame",
        Behaviour::ByteByByte => "is answered in single bytes",
        Behaviour::Large => "20 MB come before the answer",
        Behaviour::Ignores => "is never answered (10 s)",
        Behaviour::ClosesUnread
        | Behaviour::FinWithoutClose
        | Behaviour::DataAfterClose
        | Behaviour::Raw
        | Behaviour::Mirror
        | Behaviour::Flood
        | Behaviour::Sink
        | Behaviour::Breaks
        | Behaviour::Echo
        | Behaviour::Talks => return None,
    })
}

#[derive(Deserialize)]
struct Uploads {
    lane: usize,
    hops: usize,
    count: u32,
}

/// Uploads with Node's clients; tells how many early replies they had.
async fn uploads(State(envoys): Envoys, Query(wanted): Query<Uploads>) -> Response {
    let Uploads { lane, hops, count } = wanted;
    let Some(envoy) = envoys.get(lane).filter(|_| (1..=HOPS).contains(&hops)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let entry = envoy.entry(hops);
    match spawn_blocking(move || node::upload(entry, count.min(100))).await {
        Ok(Replies { http, fetch }) => {
            Json(json!({ "http": http, "fetch": fetch })).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What each Envoy has counted, over its hops.
async fn counters(State(envoys): Envoys) -> Json<Vec<Value>> {
    // The admin interface is asked by a client that blocks.
    let count = move || {
        // Envoy keeps lines of the access log for a while, but not those that were written by now.
        envoys.iter().for_each(Envoy::flush_access_log);
        sleep(Duration::from_millis(50));
        envoys.iter().map(of_lane).collect()
    };
    Json(spawn_blocking(count).await.unwrap_or_default())
}

fn of_lane(envoy: &Envoy) -> Value {
    let stats = envoy.stats();
    let ejections: u64 = (1..=HOPS)
        .filter_map(|hop| {
            stats.get(&format!("cluster.hop{hop}.outlier_detection.ejections_enforced_total"))
        })
        .sum();
    let websocket: BTreeMap<_, _> = stats
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("wasmcustom.")?, value)))
        .collect();
    let log = (1..=HOPS).flat_map(|hop| envoy.written_access_log(hop));
    json!({
        // No counter of Envoy's tells: an upgraded stream that ends is not charged to its cluster.
        "failures": log.filter(|line| line["flags"] == "UC").count(),
        "ejections": ejections,
        "websocket": websocket,
    })
}
