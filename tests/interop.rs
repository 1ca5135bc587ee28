//! Everybody's WebSocket: real servers and clients in their own languages, each against each. What the
//! client sees through the filter is what it sees without a proxy, or better. `make interop` runs all
//! of it and writes the table in docs/interop.md; `make test` runs what fits into a minute.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use testbed::browser::{Browser, Closed, Closing, Kind};
use testbed::peers::{Connecting, Library, Serving};
use testbed::{fetch, tls, Envoy, Mode, Setup};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::Message;

const START: &str = "<!-- interop -->\n";
const STOP: &str = "<!-- /interop -->";

const TUNGSTENITE: &str = "tokio-tungstenite";
const PAUSE: Duration = Duration::from_millis(20);

/// A client that is told what to do.
enum Client {
    Library(Library, Connecting),
    Tungstenite(Handle),
    Browser(&'static str, Browser),
}

impl Client {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Tungstenite(Handle::current())];
        for library in
            [Library::Ws, Library::Websockets, Library::Aiohttp, Library::Gorilla, Library::Coder]
        {
            if library.is_here() {
                all.push(Self::Library(library, Connecting::start(library)));
            }
        }
        for (name, kind) in [("Chromium", Kind::Chromium), ("Chrome 88", Kind::Chrome88)] {
            all.push(Self::Browser(name, Browser::start(kind)));
        }
        all
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Library(library, _) => library.name(),
            Self::Tungstenite(_) => TUNGSTENITE,
            Self::Browser(name, _) => name,
        }
    }

    fn closes(&mut self, url: &str, close: Option<u16>, count: usize) -> Vec<Closed> {
        match self {
            Self::Library(_, client) => client.closes(url, close, count),
            Self::Tungstenite(runtime) => runtime.block_on(async {
                let one = || tungstenite_client(url, close);
                futures_util::future::join_all((0..count).map(|_| one())).await
            }),
            Self::Browser(_, browser) => {
                browser.closes_at_once(url, &close.map_or(Closing::ByServer, Closing::Code), count)
            }
        }
    }
}

async fn tungstenite_client(url: &str, close: Option<u16>) -> Closed {
    let address = url.split('/').nth(2).expect("a URL");
    let tcp = TcpStream::connect(address).await.expect("a connection");
    let stream: Box<dyn testbed::wire::Stream> = if url.starts_with("wss:") {
        let name = ServerName::try_from("localhost").expect("a DNS name");
        Box::new(tls::connector().connect(name, tcp).await.expect("TLS"))
    } else {
        Box::new(tcp)
    };
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
    let mut begun = Instant::now();
    if let Some(code) = close {
        tokio::time::sleep(PAUSE).await;
        begun = Instant::now();
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        socket.close(Some(frame)).await.expect("open");
    }
    let (mut code, mut reason, mut failed) = (1006, String::new(), false);
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Close(frame)) => {
                (code, reason) = frame.map_or((1005, String::new()), |frame| {
                    (frame.code.into(), frame.reason.to_string())
                });
            }
            Ok(_) => {}
            Err(_) => failed = true,
        }
    }
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    Closed { code, reason, was_clean: code != 1006 && !failed, ms, extensions: String::new() }
}

/// A server, and where it listens.
enum Server {
    Library(Serving),
    Tungstenite(SocketAddr, JoinHandle<()>),
}

impl Server {
    async fn start(name: &str, tls: bool) -> Self {
        let library = Library::ALL.into_iter().find(|library| library.name() == name);
        if let Some(library) = library {
            return Self::Library(Serving::start_at(library, 0, tls));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if !tls {
                        tungstenite_server(tcp).await;
                    } else if let Ok(stream) = tls::acceptor().accept(tcp).await {
                        tungstenite_server(stream).await;
                    }
                });
            }
        });
        Self::Tungstenite(address, task)
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Library(server) => server.address,
            Self::Tungstenite(address, _) => *address,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Tungstenite(_, task) = self {
            task.abort();
        }
    }
}

async fn tungstenite_server(stream: impl testbed::wire::Stream) {
    let mut path = String::new();
    #[allow(clippy::result_large_err)] // tungstenite's own type
    let look = |request: &Request, response: Response| {
        request.uri().path().clone_into(&mut path);
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, look).await else { return };
    if path != "/client" {
        tokio::time::sleep(PAUSE).await;
        let frame = CloseFrame { code: 4321.into(), reason: "bye".into() };
        let _ = socket.close(Some(frame)).await;
        // `close` only sends, and what is dropped here is closed.
        if path == "/fin-without-waiting" {
            return;
        }
    }
    while let Some(Ok(_)) = socket.next().await {}
}

/// Who closes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scenario {
    ServerCloses,
    ServerDoesNotWait,
    ServerIsStopped,
    ClientCloses,
}

impl Scenario {
    fn of(server: &str) -> &'static [Self] {
        match server {
            "gorilla/websocket" | TUNGSTENITE => {
                &[Self::ServerCloses, Self::ServerDoesNotWait, Self::ClientCloses]
            }
            _ => &[Self::ServerCloses, Self::ClientCloses],
        }
    }

    /// The server's path, and the client's code.
    fn job(self) -> (&'static str, Option<u16>) {
        match self {
            Self::ServerCloses => ("/server", None),
            Self::ServerDoesNotWait => ("/fin-without-waiting", None),
            Self::ServerIsStopped => ("/client", None),
            Self::ClientCloses => ("/client", Some(4000)),
        }
    }

    /// What the client should see.
    fn code(self) -> u16 {
        match self {
            Self::ServerCloses | Self::ServerDoesNotWait => 4321,
            Self::ServerIsStopped => 1012,
            Self::ClientCloses => 4000,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::ServerCloses => "closes, 4321",
            Self::ServerDoesNotWait => "closes and does not wait, 4321",
            Self::ServerIsStopped => "is told to stop, 1012",
            Self::ClientCloses => "is closed, 4000",
        }
    }
}

/// A way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// `None`: no proxy.
    mode: Option<ModeName>,
    hops: usize,
    tls: bool,
}

type ModeName = &'static str;

impl Way {
    fn direct(tls: bool) -> Self {
        Self { mode: None, hops: 0, tls }
    }
}

/// What a client saw of some closes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cell {
    /// How many with which code.
    codes: BTreeMap<u16, usize>,
    clean: usize,
    /// The median.
    seconds_late: u64,
}

impl Cell {
    fn new(mut closes: Vec<Closed>) -> Self {
        let mut cell = Self::default();
        for close in &closes {
            *cell.codes.entry(close.code).or_default() += 1;
            cell.clean += usize::from(close.was_clean);
        }
        closes.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        cell.seconds_late = (closes[closes.len() / 2].ms / 1000.0).round() as u64;
        cell
    }

    /// As good as `other`, or better.
    fn equals_or_betters(&self, other: &Self, scenario: Scenario) -> bool {
        let right = |cell: &Self| cell.codes.get(&scenario.code()).copied().unwrap_or(0);
        // Where the server does not wait, as a stopped uvicorn does not, whether a client of the same machine sees FIN or RST, is
        // settled by microseconds, with a proxy and without.
        let clean = |cell: &Self| match scenario {
            Scenario::ServerDoesNotWait | Scenario::ServerIsStopped => 0,
            _ => cell.clean,
        };
        right(self) >= right(other)
            && clean(self) >= clean(other)
            && self.seconds_late <= other.seconds_late
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: usize = self.codes.values().sum();
        let codes: Vec<_> = self
            .codes
            .iter()
            .map(
                |(code, &n)| {
                    if n == all {
                        code.to_string()
                    } else {
                        format!("{code} in {n} of {all}")
                    }
                },
            )
            .collect();
        f.write_str(&codes.join(", "))?;
        let closed = all - self.codes.get(&1006).unwrap_or(&0);
        match closed - self.clean {
            0 => {}
            n if n == all => f.write_str(", not clean")?,
            n => write!(f, ", {n} of {all} not clean")?,
        }
        match self.seconds_late {
            0 => Ok(()),
            seconds => write!(f, ", {seconds} s late"),
        }
    }
}

/// By server, scenario and client.
type Key = (&'static str, Scenario, &'static str);
type Cells = BTreeMap<Key, BTreeMap<Way, Cell>>;

struct Measured {
    clients: Vec<Client>,
    cells: Cells,
    /// The modes to be measured, and how many closes of each kind.
    modes: Vec<Mode>,
    ways: Vec<(usize, bool)>,
    count: usize,
}

impl Measured {
    /// Envoys in front of a server: each way, and where it begins.
    async fn ways(&self, server: SocketAddr) -> (Vec<Envoy>, Vec<(Way, String)>) {
        let mut envoys = Vec::new();
        let mut entries = Vec::new();
        for &mode in &self.modes {
            for tls in [false, true] {
                let ways: Vec<_> = self.ways.iter().filter(|way| way.1 == tls).collect();
                let Some(most) = ways.iter().map(|way| way.0).max() else { continue };
                let setup = Setup { tls, ..Setup::new(mode).hops(most) };
                let envoy = setup.start(server).await;
                for &&(hops, tls) in &ways {
                    let scheme = if tls { "wss" } else { "ws" };
                    let way = Way { mode: Some(mode.name()), hops, tls };
                    entries.push((way, format!("{scheme}://{}", envoy.entry(hops))));
                }
                envoys.push(envoy);
            }
        }
        (envoys, entries)
    }

    async fn measure(&mut self, name: &'static str) {
        let server = Server::start(name, false).await;
        let with_tls = Server::start(name, true).await;
        let (_envoys, mut ways) = self.ways(server.address()).await;
        ways.push((Way::direct(false), format!("ws://{}", server.address())));
        ways.push((Way::direct(true), format!("wss://{}", with_tls.address())));
        let scenarios = Scenario::of(name);
        for (way, url) in ways {
            let jobs: Vec<_> = scenarios.iter().map(|scenario| (*scenario, &url[..])).collect();
            self.run(name, way, &jobs, || {});
        }
    }

    /// A server is told to stop while WebSockets are open to it; one of its own for each way.
    async fn measure_stop(&mut self, library: Library) {
        let mut server = Serving::start(library);
        let address = server.address;
        let (_envoys, mut ways) = self.ways(address).await;
        // The last two, so that the server with TLS takes the other's place.
        ways.push((Way::direct(false), format!("ws://{address}")));
        ways.push((Way::direct(true), format!("wss://{address}")));
        let mut with_tls = ways.iter().skip(1).map(|(way, _)| *way == Way::direct(true));
        for (way, url) in &ways {
            let all = self.clients.len() * self.count;
            self.run(library.name(), *way, &[(Scenario::ServerIsStopped, url)], || {
                let patience = Instant::now() + Duration::from_secs(30);
                while server.opened() < all {
                    assert!(Instant::now() < patience, "{} of {all} opened", server.opened());
                    std::thread::sleep(PAUSE);
                }
                server.stop();
            });
            drop(server);
            let tls = with_tls.next().unwrap_or_default();
            server = Serving::start_at(library, address.port(), tls);
        }
    }

    /// Every client does these jobs, one after the other, all clients at the same time.
    fn run(
        &mut self,
        server: &'static str,
        way: Way,
        jobs: &[(Scenario, &str)],
        meanwhile: impl FnOnce(),
    ) {
        let count = self.count;
        let seen: Vec<_> = std::thread::scope(|scope| {
            let clients: Vec<_> = self
                .clients
                .iter_mut()
                .map(|client| {
                    scope.spawn(|| {
                        let closes = jobs.iter().map(|(scenario, url)| {
                            let (path, close) = scenario.job();
                            let closes = client.closes(&format!("{url}{path}"), close, count);
                            ((server, *scenario, client.name()), Cell::new(closes))
                        });
                        closes.collect::<Vec<_>>()
                    })
                })
                .collect();
            meanwhile();
            clients.into_iter().flat_map(|c| c.join().expect("a client does its job")).collect()
        });
        for (key, cell) in seen {
            println!("{way:?} {key:?}: {cell}");
            self.cells.entry(key).or_default().insert(way, cell);
        }
    }

    /// What breaks the rule.
    fn worse(&self) -> Vec<String> {
        let mut worse = Vec::new();
        for (key, cells) in &self.cells {
            for (way, cell) in cells {
                let direct = &cells[&Way::direct(way.tls)];
                if way.mode == Some(Mode::Filter.name()) && !cell.equals_or_betters(direct, key.1) {
                    worse.push(format!("{key:?}, {way:?}: {cell}; direct: {direct}"));
                }
            }
        }
        worse
    }

    /// A row for each server and scenario, and those of the clients that see something else.
    fn table(&self) -> String {
        let columns = [None, Some(Mode::Default), Some(Mode::Baseline), Some(Mode::Filter)]
            .map(|mode| mode.map(Mode::name));
        let mut rows: Vec<(Key, Vec<&str>, [String; 4])> = Vec::new();
        for (key, cells) in &self.cells {
            let row = columns.map(|mode| {
                let ways: Vec<_> = cells.iter().filter(|(way, _)| way.mode == mode).collect();
                in_words(&ways)
            });
            let (server, scenario, client) = *key;
            match rows.iter_mut().find(|(k, _, r)| (k.0, k.1) == (server, scenario) && *r == row) {
                Some((_, clients, _)) => clients.push(client),
                None => rows.push((*key, vec![client], row)),
            }
        }
        let mut table = String::from(
            "| server | clients | direct | default | baseline | **filter** |\n\
             | --- | --- | --- | --- | --- | --- |\n",
        );
        for ((server, scenario, _), clients, row) in rows {
            let clients = if clients.len() == self.clients.len() {
                "all".to_owned()
            } else {
                clients.join(", ")
            };
            let what = scenario.what();
            table += &format!("| {server} {what} | {clients} | {} |\n", row.join(" | "));
        }
        table
    }
}

/// What is seen on some ways, said once where it is the same.
fn in_words(ways: &[(&Way, &Cell)]) -> String {
    let on = |hops| {
        let mut cells: Vec<String> = Vec::new();
        for (way, cell) in ways.iter().filter(|(way, _)| way.hops == hops) {
            let text = cell.to_string();
            match cells.last() {
                Some(last) if *last == text => {}
                _ if way.tls && !cells.is_empty() => cells.push(format!("with TLS {text}")),
                _ => cells.push(text),
            }
        }
        cells.join("; ")
    };
    let all = [0, 1, 2].map(on);
    let mut said: Vec<&String> = all.iter().filter(|text| !text.is_empty()).collect();
    said.dedup();
    match said[..] {
        [one] => one.clone(),
        [one, two] => format!("{one}; two hops: {two}"),
        _ => unreachable!("one hop, two hops, or none"),
    }
}

fn servers() -> Vec<&'static str> {
    let mut servers = vec![TUNGSTENITE];
    servers.extend(Library::ALL.into_iter().filter(|l| l.is_here()).map(Library::name));
    servers
}

async fn measure(modes: &[Mode], ways: &[(usize, bool)], count: usize) -> Measured {
    if !Library::Gorilla.is_here() {
        println!("no go: its libraries are left out; install Go 1.23 or later from https://go.dev");
    }
    let mut measured = Measured {
        clients: Client::all(),
        cells: Cells::new(),
        modes: modes.to_vec(),
        ways: ways.to_vec(),
        count,
    };
    for server in servers() {
        measured.measure(server).await;
    }
    measured.measure_stop(Library::Uvicorn).await;
    measured
}

/// All of it, and the table.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make interop"]
async fn everything() {
    let ways = [(1, false), (1, true), (2, false), (2, true)];
    let measured = measure(&Mode::ALL, &ways, 5).await;
    let table = measured.table();
    println!("{table}");
    fetch::write_between(&fetch::root().join("docs/interop.md"), START, STOP, &table);
    let worse = measured.worse();
    assert!(worse.is_empty(), "worse than without a proxy:\n{}", worse.join("\n"));
}

/// Through the filter, over one hop and over two with TLS.
#[tokio::test(flavor = "multi_thread")]
async fn filter_equals_direct() {
    let mut worse = Vec::new();
    // A machine that is busy elsewhere for half a second makes a close late: not twice.
    for _ in 0..2 {
        worse = measure(&[Mode::Filter], &[(1, false), (2, true)], 3).await.worse();
        if worse.is_empty() {
            return;
        }
    }
    panic!("worse than without a proxy:\n{}", worse.join("\n"));
}
