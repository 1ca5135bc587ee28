//! The main job, seen: one WebSocket server behind three Envoys of two hops each, as Envoy comes
//! (default), with `delayed_close_timeout: 0s` (baseline) and with the filter.
//!
//! Ends with exit code 0 if the filter's column is what it promises.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use testbed::browser::{Browser, Closed, Closing, Kind};
use testbed::node::{self, Sample};
use testbed::server::{path, Behaviour};
use testbed::{Client, Ending, Envoy, Mode, Plan, Server, Setup};

const CLOSES: usize = 40;
const UPLOADS: u32 = 40;
const AT_ONCE: usize = 20;

/// A row of the table: a cell for each mode, and whether the filter's is as promised.
struct Row {
    what: String,
    cells: Vec<String>,
    kept: bool,
}

/// The three Envoys, each in front of Node `ws` and in front of the server with a choice of closes.
struct Stand {
    mode: Mode,
    sample: Envoy,
    choice: Envoy,
}

#[tokio::main]
async fn main() -> ExitCode {
    let started = Instant::now();
    say("building the module, finding Envoy");
    testbed::fetch::say_what_is_missing();
    testbed::fetch::module();
    say(&format!("Envoy: {}", testbed::fetch::envoy().display()));
    let sample = Sample::start(true, 50);
    let server = Server::start().await;
    let mut stands = Vec::new();
    for mode in Mode::ALL {
        say(&format!("starting Envoy, {}, two hops", mode.name()));
        stands.push(Stand {
            mode,
            sample: Setup::new(mode).hops(2).start(sample.address).await,
            choice: Setup::new(mode).hops(2).start(server.address).await,
        });
    }

    let mut rows = Vec::new();
    say(&format!("{CLOSES} closes by the server, code 4321 (Node ws)"));
    let endings =
        each(&stands, async |stand| closes(&stand.sample, "/", &Plan::default()).await).await;
    rows.push(codes("the server closes, 4321", &endings, 4321));
    rows.push(delays("  Close exchange to FIN, median", &endings));

    say(&format!("{CLOSES} closes by the client, code 4000"));
    let by_client = path(Behaviour::Waits, false, 0);
    let plan = Plan::close(4000);
    let endings = each(&stands, async |stand| closes(&stand.choice, &by_client, &plan).await).await;
    rows.push(codes("the client closes, 4000", &endings, 4000));
    rows.push(delays("  Close exchange to FIN, median", &endings));

    say(&format!("{CLOSES} closes by a server that sends Close and FIN together"));
    let early_fin = path(Behaviour::FinWithoutWaiting, true, 4321);
    let nearby = Plan { distance: Duration::from_millis(1), ..Plan::default() };
    let endings =
        each(&stands, async |stand| closes(&stand.choice, &early_fin, &nearby).await).await;
    rows.push(codes("the server does not wait, 4321", &endings, 4321));

    say(&format!("{CLOSES} closes that the server does not answer"));
    let unanswered = path(Behaviour::FinWithoutWaiting, false, 0);
    let endings =
        each(&stands, async |stand| closes(&stand.choice, &unanswered, &plan).await).await;
    rows.push(codes("the server ends TCP, no answer, 4000", &endings, 4000));

    say(&format!("{UPLOADS} uploads of 3 MB that are answered 403 at once"));
    let arrived: Vec<u32> =
        stands.iter().map(|stand| node::upload(stand.choice.address(), UPLOADS).http).collect();
    rows.push(Row {
        what: "early 403 replies received".into(),
        cells: arrived.iter().map(|n| format!("{n} of {UPLOADS}")).collect(),
        kept: arrived.last() == Some(&UPLOADS),
    });

    say(&format!("{AT_ONCE} clean closes at once"));
    let failures = each(&stands, async |stand| failures(stand.mode, server.address).await).await;
    rows.push(Row {
        what: format!("{AT_ONCE} clean closes: failures, ejections"),
        cells: failures.iter().map(|(uc, out)| format!("{uc} UC, {out} ejected")).collect(),
        kept: failures.last() == Some(&(0, 0)),
    });

    for kind in [Kind::Chromium, Kind::Chrome88] {
        match Browser::try_start(kind) {
            Ok(mut browser) => {
                say(&format!("{}: 10 closes at once", browser.version));
                rows.push(in_browser(&mut browser, &stands));
                if kind == Kind::Chromium {
                    say(&format!("{}: {AT_ONCE} closes while it sends", browser.version));
                    rows.push(while_sending(&mut browser, server.address).await);
                }
            }
            Err(why) => say(&format!("no {kind:?}, no row: {why}")),
        }
    }

    print(&rows);
    let broken: Vec<_> = rows.iter().filter(|row| !row.kept).map(|row| row.what.trim()).collect();
    say(&format!("done in {:.0} s", started.elapsed().as_secs_f64()));
    if broken.is_empty() {
        println!("\nThe filter keeps what it promises.");
        ExitCode::SUCCESS
    } else {
        println!("\nThe filter does NOT keep what it promises: {}.", broken.join("; "));
        ExitCode::FAILURE
    }
}

fn say(what: &str) {
    eprintln!("demo: {what}");
}

async fn each<T>(stands: &[Stand], run: impl AsyncFn(&Stand) -> T) -> Vec<T> {
    let mut results = Vec::new();
    for stand in stands {
        results.push(run(stand).await);
    }
    results
}

/// As many closes as the table counts, twenty at a time.
async fn closes(envoy: &Envoy, path: &str, plan: &Plan) -> Vec<Ending> {
    let mut endings = Vec::new();
    while endings.len() < CLOSES {
        endings.extend(batch(envoy, path, plan, AT_ONCE.min(CLOSES - endings.len())).await);
    }
    endings
}

async fn batch(envoy: &Envoy, path: &str, plan: &Plan, count: usize) -> Vec<Ending> {
    let mut tasks = Vec::new();
    for _ in 0..count {
        let client = Client::open(envoy.address(), path).await.expect("a WebSocket");
        let plan = plan.clone();
        tasks.push(tokio::spawn(async move { client.run(&plan).await }));
        // So that they do not stand in each other's way: this is about one close, not about load.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let mut endings = Vec::new();
    for task in tasks {
        endings.push(task.await.expect("a close does not panic"));
    }
    endings
}

/// Access log lines flagged as upstream failure, and hosts ejected, of a fresh Envoy.
async fn failures(mode: Mode, server: std::net::SocketAddr) -> (usize, u64) {
    let envoy = Setup::new(mode).start(server).await;
    let path = format!("{}&after=200", path(Behaviour::Waits, true, 1000));
    batch(&envoy, &path, &Plan::default(), AT_ONCE).await;
    let failures = envoy.access_log(1).iter().filter(|line| line["flags"] == "UC").count();
    (failures, envoy.over_hops("outlier_detection.ejections_enforced_total"))
}

fn codes(what: &str, endings: &[Vec<Ending>], code: u16) -> Row {
    let cell = |endings: &Vec<Ending>| {
        let right = endings.iter().filter(|e| e.code() == code).count();
        let clean = endings.iter().filter(|e| e.is_clean()).count();
        let code = if right == endings.len() {
            format!("{code}")
        } else if right == 0 && endings.iter().all(|e| e.code() == 1006) {
            "1006".into()
        } else {
            format!("{code} in {right}")
        };
        format!("{code}, {clean} of {} clean", endings.len())
    };
    let filter = endings.last().map_or(&[][..], |filter| filter);
    Row {
        what: what.into(),
        cells: endings.iter().map(cell).collect(),
        kept: filter.iter().all(|e| e.code() == code && e.is_clean()),
    }
}

fn median(endings: &[Ending]) -> f64 {
    let mut ms: Vec<f64> = endings.iter().map(Ending::ms).collect();
    ms.sort_by(f64::total_cmp);
    ms.get(ms.len() / 2).copied().unwrap_or(f64::NAN)
}

fn delays(what: &str, endings: &[Vec<Ending>]) -> Row {
    let medians: Vec<f64> = endings.iter().map(|e| median(e)).collect();
    Row {
        what: what.into(),
        cells: medians.iter().map(|ms| format!("{ms:.1} ms")).collect(),
        kept: medians.last().is_some_and(|ms| *ms < 50.0),
    }
}

fn in_browser(browser: &mut Browser, stands: &[Stand]) -> Row {
    let cell = |closes: &[Closed]| {
        let clean = closes.iter().filter(|c| c.was_clean && c.code == 4321).count();
        let lost = closes.iter().filter(|c| c.code == 1006).count();
        let lost = if lost > 0 { format!(", 1006 in {lost}") } else { String::new() };
        let slowest = closes.iter().map(|c| c.ms).fold(0.0, f64::max) - 50.0;
        format!("{clean} of {} clean{lost}, {slowest:.0} ms", closes.len())
    };
    let closes: Vec<_> = stands
        .iter()
        .map(|stand| {
            let url = format!("ws://{}/", stand.sample.address());
            browser.closes_at_once(&url, &Closing::ByServer, 10)
        })
        .collect();
    let version = browser.version.trim_start_matches("Headless");
    Row {
        what: format!("{}: 4321", version.split('.').next().unwrap_or(version)),
        cells: closes.iter().map(|c| cell(c)).collect(),
        kept: closes.last().is_some_and(|c| c.iter().all(|c| c.was_clean && c.code == 4321)),
    }
}

/// A server that closes early on a browser that goes on sending, over one hop.
async fn while_sending(browser: &mut Browser, server: std::net::SocketAddr) -> Row {
    let mut lost = Vec::new();
    for mode in Mode::ALL {
        let envoy = Setup::new(mode).start(server).await;
        let path = format!("{}&after=60", path(Behaviour::FinWithoutWaiting, true, 4321));
        let url = format!("ws://{}{path}", envoy.address());
        let closes = browser.closes_at_once(&url, &Closing::Sending(100, 5), AT_ONCE);
        lost.push(closes.iter().filter(|c| c.code != 4321).count());
    }
    Row {
        what: "  while it sends, one hop: code lost".into(),
        cells: lost.iter().map(|n| format!("{n} of {AT_ONCE}")).collect(),
        kept: lost.last() == Some(&0),
    }
}

fn print(rows: &[Row]) {
    let heads = ["two hops", "default", "baseline", "filter"].map(String::from);
    let lines: Vec<Vec<&str>> = std::iter::once(heads.iter().map(String::as_str).collect())
        .chain(rows.iter().map(|row| {
            std::iter::once(row.what.as_str()).chain(row.cells.iter().map(String::as_str)).collect()
        }))
        .collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    println!();
    for (i, line) in lines.iter().enumerate() {
        let cells: Vec<_> =
            line.iter().enumerate().map(|(c, text)| format!("{text:w$}", w = width(c))).collect();
        println!("| {} |", cells.join(" | "));
        if i == 0 {
            let rules: Vec<_> = (0..line.len()).map(|c| "-".repeat(width(c))).collect();
            println!("| {} |", rules.join(" | "));
        }
    }
}
