//! The demo page's pictures for the README, from what a browser has really seen on it:
//! docs/demo-page.png is the page, docs/close.svg one close as it happened, in motion.

use std::fmt::Write as _;
use std::fs;

use testbed::browser::{Browser, Kind, Page, View};
use testbed::{fetch, Mode};

use crate::site::Site;

const VIEW: View = View { width: 1200, height: 800, scale: 1, dark: false };

/// The proxies on the way, as the page comes.
const HOPS: u64 = 2;

/// What a lane has shown.
struct Lane {
    mode: Mode,
    ms: f64,
    words: String,
    tone: String,
    /// How many upstream failures the close was counted as.
    failures: u64,
}

/// Takes them.
pub fn take(site: &Site) {
    let docs = fetch::root().join("docs");
    let mut browser = Browser::start(Kind::Chromium);
    let page = &mut browser.open(&format!("http://{}/", site.address), VIEW);
    page.wait("document.body.dataset.counted");
    // The first close of an Envoy that has just been started takes a little longer.
    close(page, "1");
    close(page, "1");
    wait_for_count(page, 2 * HOPS);
    let lanes = Mode::ALL.map(|mode| lane(page, mode));
    fs::write(docs.join("close.svg"), svg(&lanes)).expect("docs is writable");

    close(page, "20");
    wait_for_count(page, 22 * HOPS);
    page.evaluate("document.activeElement.blur()");
    page.screenshot(&docs.join("demo-page.png"));
    for lane in &lanes {
        eprintln!("pictures: {}: {:.1} ms, {}", lane.mode.name(), lane.ms, lane.words);
    }
}

/// The server closes so many WebSockets, over two hops, as the page comes.
fn close(page: &mut Page, sockets: &str) {
    page.evaluate(&format!(
        "document.querySelector('[name=sockets][value=\"{sockets}\"]').click()"
    ));
    page.evaluate("document.querySelector('#server button').click()");
    page.wait(
        "[...document.querySelectorAll('.lane')].every((lane) => lane.dataset.state === 'done')",
    );
}

/// Waits until the default's Envoy has counted so many upstream failures, and all have been asked.
fn wait_for_count(page: &mut Page, failures: u64) {
    page.wait(&format!("document.querySelector('#counts td').textContent >= {failures}"));
}

fn lane(page: &mut Page, mode: Mode) -> Lane {
    let mut text = |expression: &str| {
        let value =
            page.evaluate(&format!("document.getElementById('{}').{expression}", mode.name()));
        value.as_str().unwrap_or_default().to_owned()
    };
    Lane {
        mode,
        ms: text("dataset.ms").parse().expect("the lane is done"),
        words: text("querySelector('.words').innerText.replace('\\n', ' ')"),
        tone: text("dataset.tone"),
        // Those of two closes.
        failures: text(&format!(
            "ownerDocument.querySelectorAll('#counts td')[{}].textContent",
            mode as usize
        ))
        .parse::<u64>()
        .expect("a number")
            / 2,
    }
}

// All in user units of the picture, and seconds of its loop.
const WIDTH: f64 = 900.0;
const TRACK: (f64, f64) = (150.0, 430.0);
const ROW: f64 = 66.0;
const TOP: f64 = 62.0;
const LOOP: f64 = 7.0;
const BEGIN: f64 = 0.8;
const STAYS: f64 = 6.6;
/// Milliseconds of a whole track.
const FULL: f64 = 2200.0;
/// Milliseconds between two states of a clock.
const TICK: f64 = 100.0;

const STYLE: &str = "
  svg { --paper: #fff; --ink: #1d1f23; --soft: #5d6068; --track: #eae8e1; --good: #08704f; --late: #8f5a00; --bad: #b0261f; font-family: system-ui, -apple-system, 'Segoe UI', sans-serif; }
  @media (prefers-color-scheme: dark) { svg { --paper: #15171b; --ink: #e9e8e4; --soft: #a3a6ad; --track: #2a2e36; --good: #58cf9f; --late: #e8b04c; --bad: #ff8a7e; } }
  text { fill: var(--ink); font-size: 15px; } .soft { fill: var(--soft); font-size: 13px; }
  .name { font-weight: 650; font-size: 17px; } .time { font-size: 22px; font-variant-numeric: tabular-nums; } .words { font-weight: 650; font-size: 17px; }
  .good { fill: var(--good); } .late { fill: var(--late); } .bad { fill: var(--bad); }
  .bar { transform-box: fill-box; transform-origin: left; } .tick { opacity: 0; fill: var(--soft); }
";

/// One close in motion. Where nothing moves, because the reader wants it so, it shows the end.
fn svg(lanes: &[Lane]) -> String {
    let height = TOP + ROW * lanes.len() as f64 + 26.0;
    let percent = |seconds: f64| seconds / LOOP * 100.0;
    let mut motion = format!(
        "@keyframes tick {{ 0%, {:.2}% {{ opacity: 1 }} {:.2}%, 100% {{ opacity: 0 }} }}\n",
        percent(TICK / 1000.0) - 0.01,
        percent(TICK / 1000.0),
    );
    let mut rows = String::new();
    for (row, lane) in lanes.iter().enumerate() {
        let Lane { mode, ms, words, tone, failures } = lane;
        let name = mode.name();
        let middle = TOP + ROW * row as f64 + ROW / 2.0;
        let (from, width) = TRACK;
        let filled = (ms / FULL * width).clamp(4.0, width);
        let (blame, counted) = match failures {
            0 => ("", "no failure of the upstream".to_owned()),
            n => (" bad", format!("and {n} upstream failures")),
        };
        let (begin, end, stays) = (percent(BEGIN), percent(BEGIN + ms / 1000.0), percent(STAYS));
        let _ = writeln!(
            motion,
            "@keyframes bar-{name} {{ 0%, {begin:.2}% {{ transform: scaleX(0) }} {end:.2}%, {stays:.2}% \
             {{ transform: scaleX(1); opacity: 1 }} 100% {{ transform: scaleX(1); opacity: 0 }} }}\n\
             @keyframes end-{name} {{ 0%, {end:.2}% {{ opacity: 0 }} {:.2}%, {stays:.2}% {{ opacity: 1 }} \
             100% {{ opacity: 0 }} }}\n\
             .bar-{name} {{ animation: bar-{name} {LOOP}s linear infinite }} \
             .end-{name} {{ animation: end-{name} {LOOP}s linear infinite }}",
            end + 0.1,
        );
        let _ = writeln!(
            rows,
            "<text class='name' x='24' y='{y}'>{name}</text>\n\
             <rect x='{from}' y='{bar}' width='{width}' height='10' rx='5' fill='var(--track)'/>\n\
             <rect class='bar bar-{name} {tone}' x='{from}' y='{bar}' width='{filled:.1}' height='10' rx='{:.1}'/>\n\
             <g class='end-{name}'><text class='time {tone}' x='{at}' y='{time}'>{}</text>\
             <text class='words {tone}' x='{beside}' y='{words_y}'>{words}</text>\
             <text class='soft{blame}' x='{beside}' y='{counted_y}'>{counted}</text></g>",
            (filled / 2.0).min(5.0),
            clock(*ms),
            y = middle + 6.0,
            time = middle + 7.0,
            words_y = middle - 3.0,
            counted_y = middle + 17.0,
            bar = middle - 5.0,
            at = from + width + 20.0,
            beside = from + width + 110.0,
        );
        // The clock runs.
        for tick in 0..(ms / TICK) as usize {
            let shown = tick as f64 * TICK;
            let _ = writeln!(
                rows,
                "<text class='time tick' x='{}' y='{}' style='animation: tick {LOOP}s {:.2}s infinite'>{}</text>",
                from + width + 20.0,
                middle + 7.0,
                BEGIN + shown / 1000.0,
                clock(shown),
            );
        }
    }
    let mut axis = String::new();
    for second in 0..=2 {
        let x = TRACK.0 + f64::from(second) * 1000.0 / FULL * TRACK.1;
        let _ = writeln!(
            axis,
            "<line x1='{x:.1}' x2='{x:.1}' y1='{TOP}' y2='{}' stroke='var(--track)'/>\
             <text class='soft' x='{x:.1}' y='{}' text-anchor='middle'>{second} s</text>",
            height - 28.0,
            height - 10.0,
        );
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' role='img' \
         aria-label='A close by the server with 4321 through two proxies, until onclose: {}'>\n\
         <style>{STYLE}@media (prefers-reduced-motion: no-preference) {{\n{motion}}}\n</style>\n\
         <rect width='100%' height='100%' rx='14' fill='var(--paper)'/>\n\
         <text x='24' y='36'>The server closes with 4321, two proxies away. How long until the browser’s <tspan font-family='ui-monospace, monospace'>onclose</tspan>?</text>\n\
         {axis}{rows}</svg>\n",
        lanes.iter().map(|l| format!("{} {}, {}", l.mode.name(), clock(l.ms), l.words)).collect::<Vec<_>>().join("; "),
    )
}

fn clock(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.1} ms"),
        ..100.0 => format!("{ms:.0} ms"),
        _ => format!("{:.2} s", ms / 1000.0),
    }
}
