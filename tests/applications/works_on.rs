//! Applications with work left: they look at the other side's Close frame only after they have sent what they still had, for
//! 12 s, which is longer than `closeHandshakeTimeout`. Through the filter every message arrives, and each side reports
//! what it reports without a proxy.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use testbed::closing::until_within;
use testbed::fetch;
use testbed::peers::{Connecting, Library, Serving, MESSAGES};

use super::{setup, Cell, Report, COLUMNS, MAX_AGE, MAX_AGE_COLUMN};

const START: &str = "<!-- works on -->\n";
const STOP: &str = "<!-- /works on -->";

const WORK: Duration = Duration::from_secs(12);

/// Who works on. The other side is always ws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worker {
    Server(Library),
    Client(Library),
}

impl Worker {
    const ALL: [Self; 6] = [
        Self::Server(Library::Aiohttp),
        Self::Server(Library::Gorilla),
        Self::Server(Library::Jetty),
        Self::Client(Library::Aiohttp),
        Self::Client(Library::Gorilla),
        Self::Client(Library::JavaNetHttp),
    ];

    fn library(self) -> Library {
        let (Self::Server(library) | Self::Client(library)) = self;
        library
    }
}

/// Who works on, whether only `maxAge` closes, and whether this is what the one that works on reports, or ws.
type Key = (Worker, bool, bool);
type Cells = BTreeMap<Key, BTreeMap<&'static str, Cell>>;

fn cell(codes: impl Iterator<Item = (u16, Option<usize>, f64)>, due: Duration) -> Cell {
    let report = |(code, messages, ms): (u16, Option<usize>, f64)| -> Report {
        (messages.map_or(code.to_string(), |n| format!("{code}, {n} messages")), ms)
    };
    Cell::new(codes.map(report).collect(), due)
}

/// What ws and the one that works on report.
async fn run(worker: Worker, closes: bool, column: &'static str, count: usize) -> (Cell, Cell) {
    let (server, client, path) = match worker {
        Worker::Server(library) => (library, Library::Ws, "/works"),
        Worker::Client(library) => {
            (Library::Ws, library, if closes { "/server" } else { "/client" })
        }
    };
    let server = Serving::start(server);
    let envoy = match setup(column) {
        Some(setup) => Some(setup.start(server.address).await),
        None => None,
    };
    let entry = envoy.as_ref().map_or(server.address, |envoy| envoy.address());
    let url = format!("ws://{entry}{path}");
    let client = tokio::task::spawn_blocking(move || {
        let mut client = Connecting::start(client);
        let seen = match worker {
            Worker::Server(_) => client.closes(&url, closes.then_some(4000), count),
            Worker::Client(_) => client.works(&url, count),
        };
        (seen, client)
    });
    // It lives on: java.net.http reports a Close frame before it has answered it.
    let (seen, _client) = client.await.expect("a client does its job");
    let all = || server.statuses() >= count;
    until_within(Duration::from_secs(30), || format!("{count} of {worker:?} end"), all).await;
    let reported = server.take_statuses();
    if let Some(envoy) = envoy.filter(|_| column.starts_with("filter")) {
        assert_eq!(envoy.metric("websocket.timeout.handshake"), 0, "{worker:?}: somebody was cut");
    }
    let by_server = matches!(worker, Worker::Server(_));
    // How many messages have come when `maxAge` is over is chance.
    let seen = seen
        .iter()
        .map(|close| (close.code, (by_server && closes).then_some(close.messages), close.ms));
    let reported =
        reported.iter().map(|status| (status.code, status.messages.filter(|_| closes), 0.0));
    let due = if by_server && !closes { MAX_AGE } else { WORK };
    let (client, server) = (cell(seen, due), cell(reported, Duration::ZERO));
    if by_server {
        (client, server)
    } else {
        (server, client)
    }
}

/// All at the same time.
async fn measure(workers: &[Worker], columns: &[&'static str], count: usize) -> Cells {
    let mut runs = Vec::new();
    for &worker in workers.iter().filter(|worker| worker.library().ecosystem().is_here()) {
        for &column in columns {
            for closes in [true, false] {
                if closes || column == MAX_AGE_COLUMN {
                    let run = tokio::spawn(run(worker, closes, column, count));
                    runs.push(async move { (worker, closes, column, run.await) });
                }
            }
        }
    }
    let mut cells = Cells::new();
    for (worker, closes, column, seen) in join_all(runs).await {
        let (ws, library) = seen.expect("everybody ends");
        println!("{worker:?}, ws closes: {closes}, {column}: ws {ws}; {library}");
        cells.entry((worker, !closes, false)).or_default().insert(column, ws);
        cells.entry((worker, !closes, true)).or_default().insert(column, library);
    }
    cells
}

fn wrong(cells: &Cells) -> Vec<String> {
    let mut wrong = Vec::new();
    for (key, row) in cells {
        let (worker, by_age, own) = *key;
        for (column, cell) in row.iter().filter(|(column, _)| column.starts_with("filter")) {
            let fine = match row.get("direct") {
                Some(direct) => cell.reports == direct.reports,
                // The filter closes both. A server that works on finds its client gone.
                None => own || cell.reports.keys().all(|report| report == "1001"),
            };
            if !fine {
                wrong.push(format!("{key:?}, {column}: {cell}; {:?}", row.get("direct")));
            }
        }
        // What is compared with has all of it.
        let complete = format!(", {MESSAGES} messages");
        let has_all = |cell: &Cell| cell.reports.keys().all(|report| report.ends_with(&complete));
        if !by_age && !own && !row.get("direct").is_some_and(has_all) {
            wrong.push(format!("{worker:?}, direct: {:?}", row.get("direct")));
        }
    }
    wrong
}

fn table(cells: &Cells) -> String {
    let mut table = format!("| works on | then | reports | {} |\n", COLUMNS.join(" | "));
    table += &"| --- ".repeat(COLUMNS.len() + 3);
    table += "|\n";
    for ((worker, by_age, own), row) in cells {
        let (role, code) = match worker {
            Worker::Server(_) => ("server", 4000),
            Worker::Client(_) => ("client", 4321),
        };
        let name = worker.library().name();
        let what =
            if *by_age { "older than `maxAge`".to_owned() } else { format!("ws closes, {code}") };
        let reports = if *own { name } else { "ws" };
        let row = COLUMNS.map(|column| row.get(column).map_or("-".to_owned(), Cell::to_string));
        table += &format!("| {name}, a {role} | {what} | {reports} | {} |\n", row.join(" | "));
    }
    table
}

/// All of it, one column after the other, and the table.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make interop"]
async fn all_that_works_on() {
    let mut cells = Cells::new();
    for column in COLUMNS {
        for (key, row) in measure(&Worker::ALL, &[column], 20).await {
            cells.entry(key).or_default().extend(row);
        }
    }
    let table = table(&cells);
    println!("{table}");
    fetch::write_between(&fetch::root().join("docs/interop.md"), START, STOP, &table);
    let wrong = wrong(&cells);
    assert!(wrong.is_empty(), "not as without a proxy:\n{}", wrong.join("\n"));
}

/// A server and a client that work on, without a proxy and through the filter: what is wrong.
pub(super) async fn part() -> Vec<String> {
    let workers = [Worker::Server(Library::Aiohttp), Worker::Client(Library::Aiohttp)];
    wrong(&measure(&workers, &["direct", MAX_AGE_COLUMN], 5).await)
}
