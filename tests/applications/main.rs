//! Applications on top of WebSockets, with their own idea of a close and of when to come back. What each reports through
//! the filter is what it reports without a proxy. `make interop` writes the table in docs/interop.md; `make test` runs a
//! part of it.

mod works_on;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{json, Value};
use testbed::{fetch, node, Envoy, Mode, Setup};

const START: &str = "<!-- applications -->\n";
const STOP: &str = "<!-- /applications -->";

const APPLICATIONS: [&str; 4] = ["socket.io", "graphql-ws", "mqtt", MOSQUITTO];
/// Its client is MQTT.js too.
const MOSQUITTO: &str = "mosquitto";
const OLD: &str = "grows old";
const MAX_AGE: Duration = Duration::from_secs(2);

/// What happens to an application.
fn events(application: &str) -> impl Iterator<Item = &'static str> + '_ {
    const GRAPHQL: [&str; 2] = ["server refuses", "server is stopped, shouldRetry"];
    const EVENTS: [&str; 7] = [
        "server closes",
        "server refuses",
        "client closes",
        "server is stopped",
        "server is stopped, shouldRetry",
        "server is killed",
        OLD,
    ];
    EVENTS.into_iter().filter(move |event| match application {
        "graphql-ws" => true,
        // It closes only when it ends.
        MOSQUITTO => !GRAPHQL.contains(event) && *event != "server closes",
        _ => !GRAPHQL.contains(event),
    })
}

/// Those that can be had here.
fn applications() -> Vec<&'static str> {
    let mut all = APPLICATIONS.to_vec();
    all.retain(|application| *application != MOSQUITTO || mosquitto().is_some());
    all
}

/// Debian's, which brings its own libwebsockets. A notice, once, if it cannot be had.
fn mosquitto() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let fetch = || {
        let program = fetch::debian_with_libraries(MOSQUITTO, "usr/sbin/mosquitto");
        if program.is_none() {
            fetch::notice("SKIPPED mosquitto: install Debian's package, or apt-get to fetch it");
        }
        program
    };
    PROGRAM.get_or_init(fetch).as_deref()
}

fn in_words(application: &str, event: &str) -> String {
    let application = match application {
        "mqtt" => "MQTT.js to aedes",
        MOSQUITTO => "MQTT.js to mosquitto",
        _ => application,
    };
    let what = match (application, event) {
        ("graphql-ws", "server closes") => "server closes with 1012",
        ("graphql-ws", "server refuses") => "server closes with 4400, which is fatal",
        (_, "server is stopped, shouldRetry") => "the same, with `shouldRetry: () => true`",
        (_, "server is stopped") => "server is stopped (SIGTERM), and comes back",
        (_, "server is killed") => "server is killed (SIGKILL), and comes back",
        (_, OLD) => "older than `maxAge`",
        _ => event,
    };
    format!("{application}: {what}")
}

/// The application's server. Ends when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
    /// To be removed at the end.
    files: Vec<PathBuf>,
}

impl Server {
    fn start(application: &str, port: u16) -> Self {
        if application == MOSQUITTO {
            return Self::mosquitto(port);
        }
        let mut process = node::peer("applications.mjs")
            .args(["serve", application, &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let line = lines.next().expect("a line").expect("text");
        let port = line.strip_prefix("listening on ").and_then(|port| port.parse::<u16>().ok());
        let port = port.unwrap_or_else(|| panic!("{application} said {line:?}"));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { process, address, files: Vec::new() }
    }

    /// It does not say which port it has taken: one that was free a moment before.
    fn mosquitto(port: u16) -> Self {
        let free = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let address = free.local_addr().expect("a bound socket");
        drop(free);
        let name = format!("mosquitto-{}", address.port());
        let file = fetch::folder("run").join(&name);
        // A path of a socket may not be long.
        let socket = std::env::temp_dir().join(&name);
        // One listener that is no WebSocket's, or 2.0 does not start.
        let config = format!(
            "listener {} 127.0.0.1\nprotocol websockets\nlistener 0 {}\nallow_anonymous true\nuser root\nlog_dest none\n",
            address.port(),
            socket.display(),
        );
        fs::write(&file, config).expect("the testbed's folder is writable");
        let process = Command::new(mosquitto().expect("asked for only if it is here"))
            .env("LD_LIBRARY_PATH", fetch::debian_libraries(MOSQUITTO))
            .arg("-c")
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto starts");
        let server = Self { process, address, files: vec![file, socket] };
        for _ in 0..500 {
            if TcpStream::connect(address).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("mosquitto does not listen on {address}");
    }

    /// SIGTERM, or SIGKILL; waits for its end, at most 10 s.
    fn end(&mut self, gently: bool) {
        if gently {
            let pid = self.process.id();
            fetch::run(Command::new("sh").arg("-c").arg(format!("kill -TERM {pid}")));
            for _ in 0..500 {
                if self.process.try_wait().expect("a child can be waited for").is_some() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(false);
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// The application's client. Ends when dropped.
struct Client {
    process: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What was reported, and the milliseconds from the opening to the first that was reported of the end.
type Report = (String, f64);

impl Client {
    fn start(application: &str) -> Self {
        let application = if application == MOSQUITTO { "mqtt" } else { application };
        let mut process = node::peer("applications.mjs")
            .args(["connect", application])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let input = process.stdin.take().expect("piped");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, input, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the client lives").expect("text")
    }

    fn reports(&mut self, job: &Value, meanwhile: impl FnOnce()) -> Vec<Report> {
        writeln!(self.input, "{job}").expect("the client lives");
        let line = self.line();
        assert_eq!(line, "opened", "{job}");
        meanwhile();
        let line = self.line();
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        serde_json::from_value(answer["reports"].clone()).unwrap_or_else(|e| panic!("{line}: {e}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the clients reported, and the median of how late, rounded to seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    reports: BTreeMap<String, usize>,
    seconds_late: u64,
}

impl Cell {
    /// `due`: when the end could be expected.
    fn new(mut seen: Vec<Report>, due: Duration) -> Self {
        seen.sort_by(|a, b| a.1.total_cmp(&b.1));
        let late = seen[seen.len() / 2].1 / 1000.0 - due.as_secs_f64();
        let seconds_late = late.max(0.0).round() as u64;
        let mut reports = BTreeMap::new();
        for (report, _) in seen {
            *reports.entry(report).or_default() += 1;
        }
        Self { reports, seconds_late }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: usize = self.reports.values().sum();
        for (n, (report, &count)) in self.reports.iter().enumerate() {
            f.write_str(if n > 0 { " / " } else { "" })?;
            f.write_str(report)?;
            if count < all {
                write!(f, " in {count} of {all}")?;
            }
        }
        match self.seconds_late {
            0 => Ok(()),
            seconds => write!(f, ", {seconds} s late"),
        }
    }
}

const MAX_AGE_COLUMN: &str = "filter with `maxAge`";
/// The columns.
const COLUMNS: [&str; 5] = ["direct", "default", "baseline", "filter", MAX_AGE_COLUMN];

fn setup(column: &str) -> Option<Setup> {
    let mode = match column {
        "direct" => return None,
        "default" => Mode::Default,
        "baseline" => Mode::Baseline,
        _ => Mode::Filter,
    };
    // A host that nobody can reach for a moment is ejected by five failures, and stays away for half a minute.
    let setup = Setup { outlier_detection: false, ..Setup::new(mode).hops(2) };
    let after = format!("{}s", MAX_AGE.as_secs());
    let max_age = json!({ "after": after, "jitter": 0, "reason": "too old" });
    Some(if column == MAX_AGE_COLUMN { setup.with("maxAge", max_age) } else { setup })
}

type Cells = BTreeMap<(&'static str, &'static str), BTreeMap<&'static str, Cell>>;

async fn measure(
    applications: &[&'static str],
    columns: &[&'static str],
    count: usize,
) -> (Cells, Vec<String>) {
    let mut cells = Cells::new();
    let mut wrong = Vec::new();
    for &application in applications {
        let mut client = Client::start(application);
        for &column in columns {
            let mut server = Server::start(application, 0);
            let address = server.address;
            let envoy: Option<Envoy> = match setup(column) {
                Some(setup) => Some(setup.patient().start(address).await),
                None => None,
            };
            let entry = envoy.as_ref().map_or(address, Envoy::address);
            let scheme = if application == "socket.io" { "http" } else { "ws" };
            for event in
                events(application).filter(|event| *event != OLD || column == MAX_AGE_COLUMN)
            {
                let job =
                    json!({ "url": format!("{scheme}://{entry}"), "event": event, "count": count });
                let reports = client.reports(&job, || {
                    let stops = event.starts_with("server is stopped");
                    if stops || event == "server is killed" {
                        server.end(stops);
                        // The first time that an application tries again, nobody is there.
                        std::thread::sleep(Duration::from_millis(800));
                        server = Server::start(application, address.port());
                    }
                });
                let due = if event == OLD { MAX_AGE } else { Duration::ZERO };
                let cell = Cell::new(reports, due);
                println!("{application}, {event}, {column}: {cell}");
                cells.entry((application, event)).or_default().insert(column, cell);
            }
            if let (Some(envoy), true) = (&envoy, column.starts_with("filter")) {
                let timers = envoy.timers_expired();
                if timers > 0 {
                    wrong.push(format!(
                        "{application}, {column}: {timers} closes waited for a timer"
                    ));
                }
                if column == MAX_AGE_COLUMN && envoy.metric("websocket.sent.max_age") == 0 {
                    wrong.push(format!("{application}, {column}: none has grown old"));
                }
            }
        }
    }
    for ((application, event), row) in &cells {
        for column in columns.iter().filter(|column| column.starts_with("filter")) {
            let Some(cell) = row.get(column) else { continue };
            let fine = match row.get("direct") {
                Some(direct) => cell.reports == direct.reports,
                // As after any other end of the connection, the application comes back.
                None => cell.reports.keys().all(|report| report.ends_with("; reconnects")),
            };
            if !fine {
                wrong.push(format!(
                    "{application}, {event}, {column}: {cell}; {:?}",
                    row.get("direct")
                ));
            }
        }
    }
    (cells, wrong)
}

fn table(cells: &Cells) -> String {
    let mut table = format!("| application | {} |\n", COLUMNS.join(" | "));
    table += &"| --- ".repeat(COLUMNS.len() + 1);
    table += "|\n";
    for application in APPLICATIONS {
        for event in events(application) {
            let row = COLUMNS.map(|column| {
                let cell = cells.get(&(application, event)).and_then(|row| row.get(column));
                cell.map_or("-".to_owned(), Cell::to_string)
            });
            table += &format!("| {} | {} |\n", in_words(application, event), row.join(" | "));
        }
    }
    table
}

/// All of it, fifty at once, and the table.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make interop"]
async fn everything() {
    let (cells, wrong) = measure(&applications(), &COLUMNS, 50).await;
    let table = table(&cells);
    println!("{table}");
    fetch::write_between(&fetch::root().join("docs/interop.md"), START, STOP, &table);
    assert!(wrong.is_empty(), "not as without a proxy:\n{}", wrong.join("\n"));
}

/// Without a proxy, and through the filter; the applications at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filter_equals_direct() {
    let columns = ["direct", MAX_AGE_COLUMN];
    let measure = |application| async move { measure(&[application], &columns, 5).await.1 };
    let mut all: Vec<_> =
        applications().into_iter().map(|application| tokio::spawn(measure(application))).collect();
    all.push(tokio::spawn(works_on::part()));
    for wrong in futures_util::future::join_all(all).await {
        let wrong = wrong.expect("a measurement does not panic");
        assert!(wrong.is_empty(), "not as without a proxy:\n{}", wrong.join("\n"));
    }
}
