//! Draws the dashboard's panels from real numbers: a minute of WebSockets through a real Envoy,
//! read from its Prometheus page once a second. `make picture` writes docs/dashboard.svg.

use std::collections::BTreeMap;
use std::time::Duration;

use plotters::prelude::*;
use testbed::server::{path, Behaviour};
use testbed::{fetch, Client, Envoy, Mode, Plan, Server, Setup};

const SECONDS: usize = 60;
/// In the middle of the minute the server begins to crash.
const CRASHES: std::ops::Range<usize> = 25..40;
/// Counters are shown as rates over so many seconds.
const WINDOW: usize = 5;

type Page = BTreeMap<String, f64>;

#[tokio::main]
async fn main() {
    let server = Server::start().await;
    let setup = Setup::new(Mode::Filter).hops(2).with("tcpCloseTimeout", "0.3s");
    let envoy = setup.start(server.address).await;
    let mut pages = vec![read(&envoy)];
    for second in 0..SECONDS {
        eprint!("\rpicture: {second} of {SECONDS} s ");
        for i in 0..20 {
            one(&envoy, kind(second, i), i);
            tokio::time::sleep(Duration::from_millis(45)).await;
        }
        pages.push(read(&envoy));
    }
    eprintln!();
    draw(&pages);
}

/// What the i-th WebSocket of a second does.
fn kind(second: usize, i: usize) -> (Behaviour, bool) {
    match i % 10 {
        _ if CRASHES.contains(&second) && i.is_multiple_of(2) => (Behaviour::FinWithoutClose, true),
        0..4 => (Behaviour::Waits, true),
        4..8 => (Behaviour::Waits, false),
        8 => (Behaviour::FinWithoutWaiting, false),
        _ => (Behaviour::NeverCloses, true),
    }
}

fn one(envoy: &Envoy, (behaviour, by_server): (Behaviour, bool), i: usize) {
    let code = [1000, 1001, 4321][i % 3];
    let path = format!("{}&after={}", path(behaviour, by_server, code), 300 + i * 40);
    let address = envoy.address();
    tokio::spawn(async move {
        let Ok(client) = Client::open(address, &path).await else { return };
        let close = Some((1000, String::new(), Duration::from_millis(500)));
        client.run(&Plan { close: close.filter(|_| !by_server), ..Plan::default() }).await;
    });
}

fn read(envoy: &Envoy) -> Page {
    let page = envoy.admin("/stats/prometheus");
    page.lines()
        .filter(|line| line.starts_with("websocket_"))
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.replace("{}", ""), value.parse().ok()?))
        })
        .collect()
}

fn level(pages: &[Page], name: &str) -> Vec<f64> {
    pages.iter().map(|page| page.get(name).copied().unwrap_or(0.0)).collect()
}

fn rate(pages: &[Page], name: &str) -> Vec<f64> {
    let level = level(pages, name);
    (0..level.len())
        .map(|now| {
            let before = now.saturating_sub(WINDOW);
            (level[now] - level[before]) / (now - before).max(1) as f64
        })
        .collect()
}

/// As Prometheus' `histogram_quantile` over the last `WINDOW` seconds.
fn quantile(pages: &[Page], q: f64) -> Vec<f64> {
    let mut bounds: Vec<(f64, &String)> = pages
        .last()
        .into_iter()
        .flat_map(|page| page.keys())
        .filter_map(|name| {
            let bound =
                name.strip_prefix("websocket_handshake_ms_bucket{le=\"")?.strip_suffix("\"}")?;
            Some((bound.parse().ok()?, name))
        })
        .collect();
    bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let rates: Vec<(f64, Vec<f64>)> =
        bounds.iter().map(|(bound, name)| (*bound, rate(pages, name))).collect();
    (0..pages.len())
        .map(|now| {
            let total = rates.last().map_or(0.0, |(_, rate)| rate[now]);
            let mut below = (0.0, 0.0);
            for (bound, rate) in &rates {
                if total > 0.0 && rate[now] >= q * total {
                    let share = (q * total - below.1) / (rate[now] - below.1).max(1e-9);
                    return if bound.is_finite() {
                        below.0 + share * (bound - below.0)
                    } else {
                        below.0
                    };
                }
                below = (*bound, rate[now]);
            }
            0.0
        })
        .collect()
}

fn draw(pages: &[Page]) {
    let lines = |names: &[&str]| -> Vec<(String, Vec<f64>)> {
        names
            .iter()
            .map(|name| {
                let (_, short) = name.split_once('_').unwrap_or(("", name));
                (short.replacen("closed_", "", 1).replacen("code_", "", 1), rate(pages, name))
            })
            .collect()
    };
    let panels = [
        ("Open WebSockets", vec![("open".to_owned(), level(pages, "websocket_active"))]),
        (
            "Closes by outcome, per second",
            lines(&[
                "websocket_closed_clean",
                "websocket_closed_server_only",
                "websocket_closed_client_only",
                "websocket_closed_abnormal",
            ]),
        ),
        (
            "Who began, per second",
            lines(&["websocket_initiator_server", "websocket_initiator_client"]),
        ),
        (
            "Close codes, per second",
            lines(&["websocket_code_1000", "websocket_code_1001", "websocket_code_private"]),
        ),
        (
            "Closing handshake, ms",
            vec![
                ("p50".to_owned(), quantile(pages, 0.5)),
                ("p99".to_owned(), quantile(pages, 0.99)),
            ],
        ),
        (
            "What the filter did, per second",
            lines(&[
                "websocket_sent_answer",
                "websocket_timeout_tcp",
                "websocket_timeout_handshake",
            ]),
        ),
    ];
    let folder = fetch::root().join("docs");
    std::fs::create_dir_all(&folder).expect("writable");
    let file = folder.join("dashboard.svg");
    let root = SVGBackend::new(&file, (1200, 620)).into_drawing_area();
    root.fill(&WHITE).expect("writable");
    for (area, (title, lines)) in root.split_evenly((2, 3)).iter().zip(panels) {
        let top = lines.iter().flat_map(|(_, line)| line).fold(1.0_f64, |a, b| a.max(*b)) * 1.5;
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 17))
            .margin(10)
            .x_label_area_size(24)
            .y_label_area_size(42)
            .build_cartesian_2d(0..pages.len() - 1, 0.0..top)
            .expect("a chart");
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(7)
            .y_labels(5)
            .x_label_formatter(&|second| format!("{second} s"))
            .draw()
            .expect("a chart");
        for (i, (name, line)) in lines.into_iter().enumerate() {
            let color = Palette99::pick(i).stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.into_iter().enumerate(), color))
                .expect("a chart")
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 13))
            .draw()
            .expect("a chart");
    }
    root.present().expect("writable");
    println!("{}", file.display());
}
