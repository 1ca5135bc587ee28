//! Everybody's WebSocket: real servers and clients in their own languages, each against each. What the
//! client sees through the filter is what it sees without a proxy and with Envoy alone, or better. `make interop` runs
//! all of it and writes the tables in docs/interop.md; `make test` runs a part of it.

mod cells;
mod peers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::closing::until_within;
use testbed::peers::{Ecosystem, Library, Serving, Status};
use testbed::{fetch, proxies, Envoy, Mode, Setup};

use cells::{Cell, ModeName, Scenario, Way};
use peers::{library, takes_http2, Client, Server, BEHIND_NGINX, PAUSE, TUNGSTENITE};

const START: &str = "<!-- interop -->\n";
const STOP: &str = "<!-- /interop -->";
const STATUSES_START: &str = "<!-- statuses -->\n";
const STATUSES_STOP: &str = "<!-- /statuses -->";

/// By server, scenario and client.
type Key = (&'static str, Scenario, &'static str);
type Cells = BTreeMap<Key, BTreeMap<Way, Cell>>;

/// A way to a server, and where it begins.
struct Entry<'a> {
    way: Way,
    url: String,
    envoy: Option<&'a Envoy>,
}

impl Entry<'_> {
    /// Without a proxy.
    fn direct(tls: bool, server: SocketAddr) -> Self {
        Self { way: Way::direct(tls), url: url(tls, server), envoy: None }
    }
}

fn url(tls: bool, address: SocketAddr) -> String {
    let scheme = if tls { "wss" } else { "ws" };
    format!("{scheme}://{address}")
}

struct Measured {
    clients: Vec<Client>,
    cells: Cells,
    /// How many closes have waited for a timer of Envoy's or of the filter's, by server and way.
    timers: BTreeMap<(&'static str, Way), u64>,
    /// What the servers' libraries have reported, by server and path.
    statuses: BTreeMap<(&'static str, Scenario), BTreeMap<Way, Cell>>,
    /// The modes to be measured, and how many closes of each kind.
    modes: Vec<Mode>,
    ways: Vec<(usize, bool)>,
    count: usize,
    /// Whether the filter's limits are longer than by default.
    patient: bool,
}

impl Measured {
    /// Envoys in front of a server, each with the ways that begin at it.
    async fn envoys(&self, server: SocketAddr, http2: bool) -> Vec<(Envoy, Vec<(Way, String)>)> {
        let mut envoys = Vec::new();
        for &mode in &self.modes {
            for tls in [false, true] {
                let ways: Vec<_> = self.ways.iter().filter(|way| way.1 == tls).collect();
                let Some(most) = ways.iter().map(|way| way.0).max() else { continue };
                let setup = Setup { tls, http2_upstream: http2, ..Setup::new(mode).hops(most) };
                let setup = if self.patient { setup.patient() } else { setup };
                let envoy = setup.start(server).await;
                let entry = |&&(hops, tls): &&(usize, bool)| {
                    let way = Way { mode: Some(mode.name()), hops, tls };
                    (way, url(tls, envoy.entry(hops)))
                };
                let entries = ways.iter().map(entry).collect();
                envoys.push((envoy, entries));
            }
        }
        envoys
    }

    async fn measure(&mut self, name: &'static str) {
        let library = library(name);
        let server = Server::start(name, false).await;
        let serves_tls = library.map_or(name == TUNGSTENITE, Library::serves_tls);
        let with_tls = if serves_tls { Some(Server::start(name, true).await) } else { None };
        let envoys = self.envoys(server.address(), takes_http2(name)).await;
        let mut entries = entries(&envoys);
        entries.push(Entry::direct(false, server.address()));
        if let Some(server) = &with_tls {
            entries.push(Entry::direct(true, server.address()));
        }
        let scenarios = Scenario::of(name);
        for entry in entries {
            let jobs: Vec<_> =
                scenarios.iter().map(|scenario| (*scenario, &entry.url[..])).collect();
            self.run(name, &entry, &jobs, || {});
            if let Server::Library(serving) = &server {
                if library.is_some_and(Library::reports_status) && entry.way != Way::direct(true) {
                    self.take_statuses(name, entry.way, scenarios, serving).await;
                }
            }
        }
    }

    /// What the server's library says of the WebSockets of a way.
    async fn take_statuses(
        &mut self,
        name: &'static str,
        way: Way,
        scenarios: &[Scenario],
        server: &Serving,
    ) {
        let all = scenarios.len() * self.clients.len() * self.count;
        let reported = || server.statuses() >= all;
        until_within(Duration::from_secs(30), || format!("{name} reports {all}"), reported).await;
        let statuses = server.take_statuses();
        for scenario in scenarios {
            let (path, _) = scenario.job();
            let mut cell = Cell::default();
            for Status { code, .. } in statuses.iter().filter(|status| status.path == path) {
                *cell.codes.entry(*code).or_default() += 1;
                cell.clean += usize::from(*code != 1006);
            }
            println!("{way:?} {name} reports on {path}: {cell}");
            self.statuses.entry((name, *scenario)).or_default().insert(way, cell);
        }
    }

    /// A server stops, or starts anew, while WebSockets are open to it.
    async fn measure_end(&mut self, library: Library, scenario: Scenario) {
        let stops = scenario == Scenario::ServerIsStopped;
        let mut server = Serving::start(library);
        let address = server.address;
        let envoys = self.envoys(address, library.takes_http2()).await;
        let mut entries = entries(&envoys);
        entries.push(Entry::direct(false, address));
        if library.serves_tls() {
            // The last, so that the server with TLS takes the other's place.
            entries.push(Entry::direct(true, address));
        }
        let mut with_tls = entries.iter().skip(1).map(|entry| entry.way == Way::direct(true));
        for entry in &entries {
            let all = server.opened() + self.clients.len() * self.count;
            self.run(library.name(), entry, &[(scenario, &entry.url)], || {
                wait_until(|| server.opened() >= all);
                if stops {
                    server.stop();
                } else {
                    let starts = server.starts();
                    server.reload();
                    // Before the old process has ended, it accepts connections that it does not serve.
                    wait_until(|| server.starts() > starts);
                }
            });
            if stops {
                drop(server);
                let tls = with_tls.next().unwrap_or_default();
                server = Serving::start_at(library, address.port(), tls);
            }
        }
    }

    /// Every client does these jobs, one after the other; with most servers all clients at the same time.
    fn run(
        &mut self,
        server: &'static str,
        entry: &Entry<'_>,
        jobs: &[(Scenario, &str)],
        meanwhile: impl FnOnce(),
    ) {
        let (way, count) = (entry.way, self.count);
        let timers = |entry: &Entry<'_>| entry.envoy.map_or(0, Envoy::timers_expired);
        let before = timers(entry);
        // It resets TCP 0.15 s behind its Close frame, whoever has read that: nobody is kept waiting by others.
        let in_turn = server == Library::Daphne.name();
        let seen: Vec<_> = std::thread::scope(|scope| {
            let mut seen = Vec::new();
            let mut at_work = Vec::new();
            for client in &mut self.clients {
                let client = scope.spawn(|| {
                    let closes = jobs.iter().map(|(scenario, url)| {
                        let (path, close) = scenario.job();
                        let closes = client.closes(&format!("{url}{path}"), close, count);
                        ((server, *scenario, client.name()), Cell::new(closes))
                    });
                    closes.collect::<Vec<_>>()
                });
                if in_turn {
                    seen.extend(client.join().expect("a client does its job"));
                } else {
                    at_work.push(client);
                }
            }
            meanwhile();
            seen.extend(at_work.into_iter().flat_map(|c| c.join().expect("a client does its job")));
            seen
        });
        let timers = timers(entry) - before;
        println!("{way:?} {server}: {timers} timers");
        *self.timers.entry((server, way)).or_default() += timers;
        for (key, cell) in seen {
            println!("{way:?} {key:?}: {cell}");
            self.cells.entry(key).or_default().insert(way, cell);
        }
    }

    /// What breaks the rule.
    fn worse(&self) -> Vec<String> {
        let mut worse = Vec::new();
        for (key, cells) in &self.cells {
            for (way, cell) in cells.iter().filter(|(way, _)| way.is_filter()) {
                // Without a proxy it is HTTP/1.1.
                let direct = way.direct_of(cells).filter(|_| !takes_http2(key.0));
                let default = cells.get(&Way { mode: Some(Mode::Default.name()), ..*way });
                for (what, other) in [("direct", direct), ("default", default)] {
                    let Some(other) = other else { continue };
                    // websocket-node forgets the code when TCP is reset behind it.
                    let forgets = key.2 == "websocket-node" && key.1.ends_tcp();
                    if !forgets && !cell.equals_or_betters(other, key.1) {
                        worse.push(format!("{key:?}, {way:?}: {cell}; {what}: {other}"));
                    }
                }
            }
        }
        for ((server, way), timers) in self.timers.iter().filter(|((_, way), _)| way.is_filter()) {
            // One leaves its HTTP/2 stream open; the other ends TCP a second after both Close frames, when `tcpCloseTimeout`
            // expires.
            let late = takes_http2(server) || *server == Library::Actix.name();
            if *timers > 0 && !late {
                worse.push(format!("{server}, {way:?}: {timers} closes have waited for a timer"));
            }
        }
        for ((server, scenario), cells) in &self.statuses {
            for (way, cell) in cells.iter().filter(|(way, _)| way.is_filter()) {
                // Envoy does not pass on a half-close: see docs/limits.md.
                let half = *scenario == Scenario::ServerHalfCloses;
                let direct = way.direct_of(cells).filter(|_| !half);
                let default = cells.get(&Way { mode: Some(Mode::Default.name()), ..*way });
                for other in [direct, default].into_iter().flatten() {
                    let all: usize = other.codes.values().sum();
                    let forgets = *server == "websocket-node" && !scenario.ends_tcp();
                    let codes =
                        cell.codes_but_for(scenario.code(), if forgets { self.count } else { 0 });
                    if other.clean == all && codes != other.codes {
                        worse.push(format!(
                            "{server} {scenario:?}, {way:?}: it reports {cell}, not {other}"
                        ));
                    }
                }
            }
        }
        worse
    }

    /// A row for each server that reports what it has seen.
    fn statuses_table(&self) -> String {
        let mut table = String::from(
            "| server | direct | default | baseline | **filter** |\n\
             | --- | --- | --- | --- | --- |\n",
        );
        for ((server, scenario), cells) in &self.statuses {
            let what = scenario.what();
            let row = columns().map(|mode| {
                let ways: Vec<_> = cells.iter().filter(|(way, _)| way.mode == mode).collect();
                in_words(&ways)
            });
            table += &format!("| {server} {what} | {} |\n", row.join(" | "));
        }
        table
    }

    /// A row for each server and scenario, and those of the clients that see something else.
    fn table(&self) -> String {
        let mut rows: Vec<(Key, Vec<&str>, [String; 4])> = Vec::new();
        for (key, cells) in &self.cells {
            let row = columns().map(|mode| {
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

/// At most 30 s.
fn wait_until(come: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !come() {
        assert!(Instant::now() < patience, "not within 30 s");
        std::thread::sleep(PAUSE);
    }
}

/// The ways of the tables' columns.
fn columns() -> [Option<ModeName>; 4] {
    [None, Some(Mode::Default), Some(Mode::Baseline), Some(Mode::Filter)]
        .map(|mode| mode.map(Mode::name))
}

fn entries(envoys: &[(Envoy, Vec<(Way, String)>)]) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    for (envoy, ways) in envoys {
        for (way, url) in ways {
            entries.push(Entry { way: *way, url: url.clone(), envoy: Some(envoy) });
        }
    }
    entries
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
    servers.extend(proxies::Kind::Nginx.is_here().then_some(BEHIND_NGINX));
    servers.extend(
        Library::SERVERS.into_iter().filter(|l| l.ecosystem().is_here()).map(Library::name),
    );
    servers
}

async fn measure(
    servers: Vec<&'static str>,
    modes: &[Mode],
    ways: &[(usize, bool)],
    count: usize,
) -> Measured {
    let mut measured = Measured {
        clients: Client::all(),
        cells: Cells::new(),
        timers: BTreeMap::new(),
        statuses: BTreeMap::new(),
        modes: modes.to_vec(),
        ways: ways.to_vec(),
        count,
        patient: modes == [Mode::Filter],
    };
    // SERVERS: some of them, by name.
    let only = std::env::var("SERVERS").ok();
    for server in servers {
        if only.as_ref().is_none_or(|only| only.split(',').any(|name| name == server)) {
            measured.measure(server).await;
        }
    }
    if only.is_some() {
        return measured;
    }
    measured.measure_end(Library::Uvicorn, Scenario::ServerIsStopped).await;
    measured.measure_end(Library::Fastapi, Scenario::ServerReloads).await;
    measured
}

/// All of it, and the table.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make interop"]
async fn everything() {
    let ways = [(1, false), (1, true), (2, false), (2, true)];
    let measured = measure(servers(), &Mode::ALL, &ways, 5).await;
    let table = measured.table();
    println!("{table}");
    let statuses = measured.statuses_table();
    println!("{statuses}");
    if std::env::var_os("SERVERS").is_none() {
        let page = fetch::root().join("docs/interop.md");
        fetch::write_between(&page, START, STOP, &table);
        fetch::write_between(&page, STATUSES_START, STATUSES_STOP, &statuses);
    }
    // The counter that the rule trusts counts.
    let default =
        measured.timers.iter().filter(|((_, way), _)| way.mode == Some(Mode::Default.name()));
    assert!(default.map(|(_, timers)| timers).sum::<u64>() > 0);
    let worse = measured.worse();
    assert!(worse.is_empty(), "worse than without a proxy:\n{}", worse.join("\n"));
}

/// Through the filter, over one hop and over two with TLS.
#[tokio::test(flavor = "multi_thread")]
async fn filter_equals_direct() {
    let mut servers = servers();
    // Those that only the comparison with Envoy alone shows more of, that are much like another, or take a minute to build.
    servers.retain(|server| {
        let builds = library(server).is_some_and(|library| library.ecosystem() == Ecosystem::Rust);
        let like_another = ["Netty", "Tomcat", "Tornado", BEHIND_NGINX].contains(server);
        !builds && !like_another && !takes_http2(server)
    });
    let worse = measure(servers, &[Mode::Filter], &[(1, false), (2, true)], 3).await.worse();
    assert!(worse.is_empty(), "worse than without a proxy:\n{}", worse.join("\n"));
}
