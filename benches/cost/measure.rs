//! Paired measurements, their spread, and where they are kept.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use testbed::{fetch, Envoy, Setup};

use crate::limits;

/// Whether this is a smoke run.
pub fn is_quick() -> bool {
    std::env::var_os("BENCH_QUICK").is_some_and(|value| value != "0")
}

/// `full`, or in a smoke run `quick`.
pub fn amount(full: usize, quick: usize) -> usize {
    if is_quick() {
        quick
    } else {
        full
    }
}

/// Median and quartiles of the rounds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |share| quantile(&values, share);
        Self { median: at(0.5), low: at(0.25), high: at(0.75) }
    }

    /// Of what was measured in the same rounds as `base`: the ratios.
    pub fn of_ratios(values: &[f64], base: &[f64]) -> Self {
        Self::of(values.iter().zip(base).map(|(value, base)| value / base))
    }

    /// In words, for a line.
    pub fn over_the_floor(&self) -> String {
        format!("  {:.3} ({:.3} to {:.3}) of the floor's", self.median, self.low, self.high)
    }
}

/// Of sorted values; between two of them in proportion.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(low), Some(high)) => low + (high - low) * place.fract(),
        _ => f64::NAN,
    }
}

/// What one setup costs, and how that compares with the first setup in the same round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub what: String,
    pub setup: String,
    /// What `cost` is in.
    pub unit: String,
    pub cost: Spread,
    pub ratio: Spread,
    /// If this setup has a floor: the floor's ratio, and this setup's cost as a ratio to the floor's in the same round.
    pub floor: Option<(f64, Spread)>,
    pub rounds: usize,
    /// CPU seconds of the shortest round.
    pub shortest: f64,
}

impl Row {
    fn print(&self) {
        let Self { what, setup, unit, cost, ratio, floor, .. } = self;
        let over = floor.map_or_else(String::new, |(_, over)| over.over_the_floor());
        println!(
            "  {what:44} {setup:16} {:9.3} {unit:14} {:.3} ({:.3} to {:.3}){over}{}",
            cost.median,
            ratio.median,
            ratio.low,
            ratio.high,
            limits::verdict(ratio.median, limits::of(self), floor.map(|(ratio, _)| ratio))
        );
    }
}

/// What is compared: listeners of one Envoy, with one worker thread. One process, because two that
/// are started alike differ by a tenth in what they use, for as long as they run.
pub struct Lanes {
    pub envoy: Envoy,
    names: Vec<String>,
}

impl Lanes {
    /// In front of `server`; ratios are to the first. Behind them, one for each module to compare with,
    /// attached as the second: `BENCH_BASE` has its file, or several with a comma between them.
    pub async fn start<const N: usize>(server: SocketAddr, lanes: [(&str, Setup); N]) -> Self {
        let filter = lanes[1].1.clone();
        let mut lanes: Vec<_> =
            lanes.into_iter().map(|(name, setup)| (name.to_owned(), setup)).collect();
        for file in bases() {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            lanes.push((name, Setup { module: Some(file), ..filter.clone() }));
        }
        let (names, setups): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        let mut setups = setups.into_iter();
        let first = setups.next().expect("a lane");
        let setup = Setup { workers: 1, beside: setups.collect(), ..first };
        Self { envoy: setup.start(server).await, names }
    }

    /// What they are called.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The lane that is the floor of this one, if there is one.
    pub fn floor_of(&self, lane: usize) -> Option<usize> {
        let own = format!("{}, floor", self.names.get(lane)?);
        let is = |name: &String| *name == own || lane == 1 && name == "floor";
        self.names.iter().position(is)
    }

    /// Where a lane is entered.
    pub fn address(&self, lane: usize) -> SocketAddr {
        self.envoy.entry(lane + 1)
    }
}

/// What is measured, and how much of it at first.
pub struct Job<'a> {
    pub what: String,
    /// Of the cost of one.
    pub unit: &'a str,
    /// How many of that unit are in a second.
    pub scale: f64,
    /// How much to do in the first round, from which follows how much in the others.
    pub first: usize,
    /// How often each lane has its turn: many short ones, as what disturbs a machine lasts longer.
    pub rounds: usize,
}

impl Job<'_> {
    /// Envoy's CPU time for the same work in each lane, all lanes in each round, each round with
    /// another first, so that what drifts is nobody's.
    pub async fn compare(&self, lanes: &Lanes, work: impl AsyncFn(SocketAddr, usize)) -> Vec<Row> {
        // Long enough to tell; a round of the cheapest lane takes this long.
        let enough = if is_quick() { 0.02 } else { 0.1 };
        let mut cheapest = f64::INFINITY;
        let seconds = async |lane: usize, much: usize| {
            let before = lanes.envoy.cpu_seconds();
            work(lanes.address(lane), much).await;
            // The end of the connections is part of it.
            tokio::time::sleep(Duration::from_millis(20)).await;
            lanes.envoy.cpu_seconds() - before
        };
        let count = lanes.names().len();
        // What is first slow, such as the VM's compiler, is in no round.
        for lane in 0..count {
            seconds(lane, self.first).await;
            cheapest = cheapest.min(seconds(lane, self.first).await);
        }
        let much = (self.first as f64 * enough / cheapest).max(1.0) as usize;
        let rounds = if is_quick() { 2 } else { self.rounds };
        let mut costs = vec![Vec::new(); count];
        let mut shortest = vec![f64::INFINITY; count];
        for round in 0..rounds {
            for i in 0..count {
                // Backwards every other time: a lane is not always behind the same one.
                let turn = if round % 2 == 0 { i } else { count - 1 - i };
                let which = (turn + round / 2) % count;
                let seconds = seconds(which, much).await;
                shortest[which] = shortest[which].min(seconds);
                costs[which].push(seconds * self.scale / much as f64);
            }
        }
        let row = |(i, name): (usize, &String)| Row {
            what: self.what.clone(),
            setup: name.clone(),
            unit: self.unit.to_owned(),
            cost: Spread::of(costs[i].iter().copied()),
            ratio: Spread::of_ratios(&costs[i], &costs[0]),
            floor: lanes.floor_of(i).map(|floor| {
                let ratio = Spread::of_ratios(&costs[floor], &costs[0]);
                (ratio.median, Spread::of_ratios(&costs[i], &costs[floor]))
            }),
            rounds,
            shortest: shortest[i],
        };
        let rows: Vec<Row> = lanes.names().iter().enumerate().map(row).collect();
        rows.iter().for_each(Row::print);
        rows
    }
}

/// Where a run was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub envoy: String,
    /// The commit, with `+` where files have changed since.
    pub commit: String,
    /// Processes that wanted to run, mean of the last minute: an idle machine has 0.
    pub load: String,
    pub quick: bool,
}

impl Machine {
    fn here() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1.to_owned()));
        let git = |arguments: &[&str]| {
            let output = Command::new("git").current_dir(fetch::root()).args(arguments).output();
            output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
        };
        let changed =
            if git(&["status", "--porcelain", "src", "Cargo.toml"]).is_empty() { "" } else { "+" };
        Self {
            processor: processor.unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            envoy: fetch::envoy_version(),
            commit: git(&["rev-parse", "--short", "HEAD"]) + changed,
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            quick: is_quick(),
        }
    }
}

/// What an item has found, and where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept<T> {
    pub machine: Machine,
    pub found: T,
}

fn file(item: &str) -> PathBuf {
    let folder = fetch::root().join("target/bench");
    std::fs::create_dir_all(&folder).expect("target is writable");
    folder.join(format!("{item}.json"))
}

/// Modules to compare with, which `BENCH_BASE` names with a comma between them.
fn bases() -> Vec<PathBuf> {
    let files = std::env::var("BENCH_BASE").unwrap_or_default();
    files.split(',').filter(|file| !file.is_empty()).map(PathBuf::from).collect()
}

/// Keeps what an item has found; not if it was compared with other modules, which are no rows of the page.
pub fn save<T: Serialize>(item: &str, found: &T) {
    if !bases().is_empty() {
        return;
    }
    let kept = Kept { machine: Machine::here(), found };
    let json = serde_json::to_string_pretty(&kept).expect("it is JSON");
    std::fs::write(file(item), json).expect("target is writable");
}

/// What an item found when it was last run.
pub fn load<T: DeserializeOwned>(item: &str) -> Option<Kept<T>> {
    let json = std::fs::read_to_string(file(item)).ok()?;
    Some(serde_json::from_str(&json).unwrap_or_else(|e| panic!("run `{item}` again: {e}")))
}
