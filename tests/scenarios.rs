//! The README's table of scenarios: who does what, and what the client sees. Every cell is measured
//! here; `make table` writes what was measured into the README.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use testbed::closing::open;
use testbed::server::{path, Behaviour};
use testbed::{fetch, End, Ending, Mode, Plan, Server, Setup};

const START: &str = "<!-- scenarios -->\n";
const STOP: &str = "<!-- /scenarios -->";

/// Longer than any time limit, and than any delay.
const PATIENCE: Duration = Duration::from_secs(13);

struct Scenario {
    what: &'static str,
    path: String,
    plan: Plan,
}

fn scenarios() -> Vec<Scenario> {
    use Behaviour::*;
    let by_server = |behaviour| path(behaviour, true, 4321);
    let by_client = |behaviour| path(behaviour, false, 0);
    // Not so near that it could answer before what follows has happened.
    let nearby = Plan { distance: Duration::from_millis(1), patience: PATIENCE, ..Plan::default() };
    let closes = Plan { patience: PATIENCE, ..Plan::close(4000) };
    let is_silent = Plan { answer: false, ..nearby.clone() };
    let both =
        Plan { close: Some((4000, String::new(), Duration::from_millis(100))), ..nearby.clone() };
    [
        ("The server closes with 4321, is answered, ends TCP", by_server(Waits), &nearby),
        ("… and resets TCP (RST)", by_server(Resets), &nearby),
        ("… and never ends TCP", by_server(NeverCloses), &nearby),
        ("… and ends TCP without waiting for the answer", by_server(FinWithoutWaiting), &nearby),
        ("… and the client never answers", by_server(Waits), &is_silent),
        ("The client closes with 4000, the server answers, ends TCP", by_client(Waits), &closes),
        ("… the server answers, never ends TCP", by_client(NeverCloses), &closes),
        ("… the server ends TCP without an answer", by_client(FinWithoutWaiting), &closes),
        ("… the server resets TCP without an answer", by_client(Resets), &closes),
        ("… the server never answers", by_client(Ignores), &closes),
        ("… the server dies inside a frame", by_client(DiesInFrame), &closes),
        ("Both close at the same time", format!("{}&after=100", by_server(Waits)), &both),
        ("The server dies, no Close frame at all", by_server(FinWithoutClose), &nearby),
        ("The server dies inside a frame", by_server(DiesInFrame), &nearby),
    ]
    .map(|(what, path, plan)| Scenario { what, path, plan: plan.clone() })
    .into()
}

/// What the client sees, in words.
fn cell(ending: &Ending) -> String {
    let code = ending.code();
    let clean = if ending.close.is_some() && !ending.is_clean() { ", not clean" } else { "" };
    match (ending.end, (ending.ms() / 1000.0).round() as u64) {
        (End::Never, _) if ending.close.is_none() => "hangs".to_owned(),
        (End::Never, _) => format!("{code}, never ends"),
        (_, 0) => format!("{code}{clean}"),
        (_, seconds) => format!("{code}{clean}, {seconds} s late"),
    }
}

async fn column(address: SocketAddr) -> Vec<String> {
    let tasks: Vec<_> = scenarios()
        .into_iter()
        .map(|scenario| {
            tokio::spawn(async move {
                let client = open(address, &scenario.path).await;
                cell(&client.run(&scenario.plan).await)
            })
        })
        .collect();
    let mut cells = Vec::new();
    for task in tasks {
        cells.push(task.await.expect("a scenario does not panic"));
    }
    cells
}

async fn measure() -> String {
    let server = Server::start().await;
    let mut envoys = Vec::new();
    for mode in Mode::ALL {
        envoys.push(Setup::new(mode).start(server.address).await);
    }
    let abnormal = serde_json::json!({ "code": 1012 });
    let setup = Setup::new(Mode::Filter).with("abnormalClose", abnormal);
    envoys.push(setup.start(server.address).await);
    let addresses = std::iter::once(server.address).chain(envoys.iter().map(|e| e.address()));
    let columns: Vec<_> = addresses.map(|address| tokio::spawn(column(address))).collect();
    let mut cells = Vec::new();
    for column in columns {
        cells.push(column.await.expect("a column does not panic"));
    }
    let mut table = String::from(
        "| who does what | no proxy | default | baseline | **filter** |\n| --- | --- | --- | --- | --- |\n",
    );
    for (row, scenario) in scenarios().iter().enumerate() {
        let row: Vec<_> = cells.iter().map(|column| &column[row][..]).collect();
        let (with_abnormal, row) = row.split_last().expect("five columns");
        table += &format!("| {} | {} |\n", scenario.what, row.join(" | "));
        // Where `abnormalClose` makes a difference it has a row of its own.
        let (filter, others) = row.split_last().expect("four columns");
        if filter != with_abnormal {
            table += &format!(
                "| … with `abnormalClose: {{\"code\": 1012}}` | {} | {with_abnormal} |\n",
                others.join(" | ")
            );
        }
    }
    table
}

/// The table in the README is the table that is measured.
#[tokio::test(flavor = "multi_thread")]
async fn readme_table() {
    let measured = measure().await;
    println!("{measured}");
    let file = fetch::root().join("README.md");
    let readme = fs::read_to_string(&file).expect("README.md is there");
    let (before, rest) = readme.split_once(START).expect("the table has its place");
    let (written, after) = rest.split_once(STOP).expect("the table has its end");
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(&file, format!("{before}{START}{measured}{STOP}{after}")).expect("writable");
    } else {
        assert_eq!(written, measured, "the README says otherwise: `make table` writes it anew");
    }
}
