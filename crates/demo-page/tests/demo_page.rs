//! The demo page as its visitors have it: in a browser, with real Envoys behind it.

use serde_json::Value;
use testbed::browser::{Browser, Kind, Page, View};
use testbed::server::Behaviour;

#[path = "../src/site.rs"]
mod site;

const DESKTOP: View = View { width: 1280, height: 900, scale: 1, dark: false };
const PHONE: View = View { width: 360, height: 740, scale: 1, dark: true };

fn wait_for_lanes(page: &mut Page) {
    page.wait(
        "[...document.querySelectorAll('.lane')].every((lane) => lane.dataset.state === 'done')",
    );
}

/// A lane's `data-` attribute.
fn data(page: &mut Page, lane: &str, key: &str) -> String {
    let value = page.evaluate(&format!("document.getElementById('{lane}').dataset.{key}"));
    value.as_str().unwrap_or_default().to_owned()
}

fn ms(page: &mut Page, lane: &str) -> f64 {
    data(page, lane, "ms").parse().expect("a number")
}

/// Waits until a row of the table, as numbers of the lanes, is as expected. It is read once a second.
fn wait_for_row(page: &mut Page, row: &str, expected: &str) {
    page.wait(&format!(
        "(([normal, baseline, filter]) => {expected})(
            [...[...document.querySelectorAll('#counts tr')]
                .find((line) => line.firstChild.textContent.startsWith('{row}'))?.children ?? []]
                .slice(1).map((cell) => Number(cell.textContent)))"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page() {
    let site = site::Site::start(0).await.expect("a free port");
    let url = format!("http://{}/", site.address);
    let mut browser = Browser::start(Kind::Chromium);
    let page = &mut browser.open(&url, DESKTOP);
    page.wait("document.body.dataset.counted");

    // By keyboard: one hop more, and the first of the server's closes.
    page.press(&["Tab", "ArrowRight", "Tab", "Tab", "Enter"]);
    assert_eq!(page.evaluate("document.forms[0].hops.value"), "3");
    assert_eq!(page.evaluate("document.activeElement.textContent"), "waits for the answer");
    wait_for_lanes(page);
    for lane in ["default", "baseline", "filter"] {
        assert_eq!(data(page, lane, "codes"), "4321", "{lane}");
        assert_eq!(data(page, lane, "clean"), "1", "{lane}");
        let words = page.evaluate(&format!("document.querySelector('#{lane} .note').textContent"));
        assert_eq!(words, "reason “bye”", "{lane}");
    }
    // Chromium waits two seconds at most.
    assert!(ms(page, "default") > 1900.0, "{}", ms(page, "default"));
    assert!(ms(page, "filter") < 500.0, "{}", ms(page, "filter"));

    // Twenty at once, over two hops: each a failure of its upstream, but with the filter.
    page.press(&["Tab"]);
    page.evaluate("document.querySelector('[name=hops][value=\"2\"]').click()");
    page.evaluate("document.querySelector('[name=sockets][value=\"20\"]').click()");
    page.evaluate("document.querySelector('#server button').click()");
    wait_for_lanes(page);
    assert_eq!(data(page, "filter", "clean"), "20");
    // Three of the first close, forty of these. Over three hops the browser, which gives up after two
    // seconds, may be the one that ends the last of the default's.
    wait_for_row(page, "websocket.closed.clean", "filter === 43");
    wait_for_row(page, "upstream failures", "normal >= 42 && baseline === 43 && filter === 0");
    wait_for_row(page, "healthy servers ejected", "normal > 0 && filter === 0");

    // The server never answers.
    page.evaluate("document.querySelector('[name=sockets][value=\"1\"]').click()");
    page.evaluate("document.querySelector('#client [data-path*=fin-without-waiting]').click()");
    wait_for_lanes(page);
    assert_eq!(data(page, "default", "codes"), "1006");
    assert_eq!(data(page, "filter", "codes"), "4000");
    assert_eq!(data(page, "filter", "clean"), "1");

    // Nothing to complain about, and nobody else was asked for anything.
    let seen = page.seen();
    assert_eq!(seen.complaints, Vec::<String>::new());
    assert!(seen.requests.iter().all(|request| request.starts_with(&url)), "{seen:?}");

    // The early reply: with the filter every one arrives, wherever it is read.
    page.evaluate("document.getElementById('upload').click()");
    wait_for_lanes(page);
    for lane in ["default", "filter"] {
        assert_eq!(data(page, lane, "tried"), "30", "{lane}");
        assert_eq!(data(page, lane, "lost"), "0", "{lane}");
    }
    println!("lost with the baseline: {} of 30", data(page, "baseline", "lost"));
    // A browser reports each 403 by itself.
    let complaints = page.seen().complaints;
    assert!(complaints.iter().all(|complaint| complaint.contains("403")), "{complaints:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_phone_in_the_dark() {
    let site = site::Site::start(0).await.expect("a free port");
    let url = format!("http://{}/", site.address);
    let mut browser = Browser::start(Kind::Chromium);
    let page = &mut browser.open(&url, PHONE);
    page.wait("document.body.dataset.counted");
    let width = page.evaluate("document.documentElement.scrollWidth").as_u64();
    assert_eq!(width, Some(PHONE.width.into()), "it scrolls sideways");
    let colours = page.evaluate("getComputedStyle(document.documentElement).backgroundColor");
    assert_eq!(colours, "rgb(21, 23, 27)");

    // A button for each way to close.
    let paths = page
        .evaluate("[...document.querySelectorAll('#server button')].map((b) => b.dataset.path)");
    let paths: Vec<_> = paths.as_array().expect("paths").iter().filter_map(Value::as_str).collect();
    for behaviour in Behaviour::COMMON.into_iter().chain([Behaviour::DataAfterClose]) {
        let start = format!("/{}?", behaviour.name());
        assert!(paths.iter().any(|path| path.starts_with(&start)), "{behaviour:?}: {paths:?}");
    }

    // What is seen while a lane is closing is a clock that runs.
    page.evaluate("document.querySelector('#server button').click()");
    page.wait("document.getElementById('default').dataset.state === 'closing'");
    let clock = "document.querySelector('#default .time').textContent";
    let first = page.evaluate(clock);
    page.wait(&format!("{clock} !== {first}"));
    wait_for_lanes(page);
    // Over two hops, as the page comes.
    assert!(ms(page, "default") > 1900.0);
    assert!(ms(page, "filter") < 500.0);
}
