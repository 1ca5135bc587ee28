//! HTTP/2, from the client and between the hops: WebSockets among other streams of one connection. The others are never harmed,
//! whatever the closing ones do; and docs/http2.md says what these see, cell by cell as it is measured
//! here (`make table` writes it anew).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use testbed::browser::{Browser, Kind, View};
use testbed::closing::close;
use testbed::http2::{Connection, Stream};
use testbed::node::Sample;
use testbed::server::{path, Behaviour};
use testbed::streams::{is_documented, scenarios, Scenario, PATIENCE};
use testbed::{wire, Envoy, Mode, Server, Setup};
use tokio::time::timeout_at;

/// Runs a scenario, and says what the client sees: the code, and how the stream ends.
async fn cell(mut socket: Stream, scenario: &Scenario) -> String {
    let mut last = Instant::now();
    if scenario.closes {
        tokio::time::sleep(Duration::from_millis(300)).await;
        socket.send(wire::close(4000, "", true)).expect("an open stream");
        last = Instant::now();
    }
    let deadline = Instant::now() + PATIENCE;
    let mut code = None;
    let end = loop {
        match timeout_at(deadline.into(), socket.next()).await {
            Err(_) => break "stays open".to_owned(),
            Ok(Ok(None)) => break "END_STREAM".to_owned(),
            Ok(Err(e)) => {
                assert!(e.is_reset(), "more than the stream has ended: {e}");
                break format!("RST_STREAM {:?}", e.reason().expect("a reason"));
            }
            Ok(Ok(Some(frame))) if frame.is_close() => {
                let (received, _) = wire::read_close(&frame.payload);
                code = Some(received);
                if scenario.answers && !scenario.closes {
                    // No more than the stream itself may be gone already.
                    let _ = socket.send(wire::close(received, "", true));
                }
                last = Instant::now();
            }
            Ok(Ok(Some(_))) => {}
        }
    };
    let code = code.map_or("no code".to_owned(), |code| code.to_string());
    match (last.elapsed().as_secs_f64()).round() as u64 {
        _ if end == "stays open" => format!("{code}, {end}"),
        0 => format!("{code}, {end}"),
        seconds => format!("{code}, {end} {seconds} s late"),
    }
}

/// Uses the connection for everything else, until it is told to stop.
async fn others(connection: &mut Connection, stop: &AtomicBool) -> usize {
    let mut echoes = Vec::new();
    for _ in 0..4 {
        echoes.push(connection.websocket("/echo?by=client").await.expect("a WebSocket"));
    }
    let mut rounds = 0;
    while !stop.load(Relaxed) {
        let said = format!("message {rounds}").into_bytes();
        for echo in &mut echoes {
            echo.send(wire::message(&said, true)).expect("an open stream");
            let answer = echo.next().await.expect("a frame").expect("a frame");
            assert_eq!(answer.payload, said);
        }
        assert_eq!(connection.get("/plain").await.expect("a response"), 200);
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rounds
}

async fn column(address: SocketAddr) -> Vec<String> {
    let mut connection = Connection::open(address).await;
    let mut tasks = Vec::new();
    for scenario in scenarios() {
        let socket = connection.websocket(&scenario.path).await.expect("a WebSocket");
        tasks.push(tokio::spawn(async move { cell(socket, &scenario).await }));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let beside = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let rounds = others(&mut connection, &stop).await;
            assert!(connection.is_open());
            rounds
        }
    });
    let mut cells = Vec::new();
    for task in tasks {
        cells.push(task.await.expect("a scenario does not panic"));
    }
    stop.store(true, Relaxed);
    let rounds = beside.await.expect("the other streams are not harmed");
    assert!(rounds > 20, "{rounds}");
    cells
}

fn filter() -> Setup {
    Setup::new(Mode::Filter).with("closeHandshakeTimeout", "2s").with("tcpCloseTimeout", "1s")
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_other_streams() {
    let server = Server::start().await;
    let mut envoys: Vec<Envoy> = Vec::new();
    for mode in [Mode::Default, Mode::Baseline] {
        envoys.push(Setup::new(mode).start(server.address).await);
    }
    envoys.push(filter().start(server.address).await);
    let columns: Vec<_> =
        envoys.iter().map(|envoy| tokio::spawn(column(envoy.address()))).collect();
    let mut cells = Vec::new();
    for column in columns {
        cells.push(column.await.expect("no other stream is harmed"));
    }
    let of_filter = envoys.last().expect("three");
    let count = scenarios().len() as u64 + 4;
    assert_eq!(of_filter.metric("websocket.upgrades"), count);
    assert_eq!(of_filter.metric("websocket.unpaired"), 0);
    assert_eq!(of_filter.stat("http.hop1.downstream_cx_destroy_local"), 0);
    let whats: Vec<_> = scenarios().iter().map(|scenario| scenario.what).collect();
    is_documented("http2", &whats, &cells);
}

/// A page's WebSocket at the page's own address.
const SCRIPT: &str = "new Promise((resolve) => {
    const socket = new WebSocket('wss://' + location.host + PATH);
    let opened = NaN;
    socket.onopen = () => {
        opened = performance.now();
        if (CODE) setTimeout(() => socket.close(CODE), 300);
    };
    socket.onclose = ({ code, reason, wasClean }) =>
        // NaN is null in JSON: it never opened.
        resolve({ code, reason, wasClean, ms: performance.now() - opened - 300 });
})";

/// The two closes that are measured in Chromium: what happens, the path, the client's code.
fn closes() -> [(&'static str, String, u16); 2] {
    [
        (
            "The server closes with 4321, is answered, ends TCP",
            format!("{}&after=300", path(Behaviour::Waits, true, 4321)),
            0,
        ),
        (
            "The client closes with 4000, the server answers, ends TCP",
            path(Behaviour::Waits, false, 0),
            4000,
        ),
    ]
}

/// Opens a page through `envoy`, over HTTP/2, and WebSockets from it; what `onclose` says of each of the
/// closes, five times.
fn said_by(browser: &mut Browser, envoy: &Envoy) -> Vec<String> {
    let view = View { width: 800, height: 600, scale: 1, dark: false };
    let mut page = browser.open(&format!("https://{}/upload", envoy.address()), view);
    let mut cells = Vec::new();
    for (_, path, code) in closes() {
        let script = SCRIPT.replace("PATH", &json!(path).to_string());
        let script = script.replace("CODE", &code.to_string());
        let mut said: Vec<_> = (0..5).map(|_| in_words(&page.evaluate(&script))).collect();
        said.dedup();
        cells.push(said.join(" or "));
    }
    assert!(envoy.stat("http.hop1.downstream_cx_http2_total") > 0, "the page came over HTTP/2");
    cells
}

fn in_words(closed: &Value) -> String {
    let Some(ms) = closed["ms"].as_f64() else {
        return "does not open".to_owned();
    };
    let late = match (ms / 1000.0).round() {
        late if late > 0.0 => format!(", {late} s late"),
        _ => String::new(),
    };
    let clean = if closed["wasClean"] == true { "clean" } else { "`wasClean` false" };
    format!("{}, {clean}{late}", closed["code"])
}

/// What Chromium's `onclose` says over HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn in_chromium() {
    let server = Server::start().await;
    let mut browser = Browser::start(Kind::Chromium);
    let mut columns = Vec::new();
    for mode in Mode::ALL {
        let setup = Setup { tls: true, adds_key: true, ..Setup::new(mode) };
        let envoy = setup.start(server.address).await;
        columns.push(said_by(&mut browser, &envoy));
        assert_eq!(envoy.stat("http.hop1.downstream_cx_http1_total"), 0);
    }
    let whats: Vec<_> = closes().into_iter().map(|(what, ..)| what).collect();
    is_documented("http2 chromium", &whats, &columns);
}

/// Envoy turns an extended CONNECT into an opening handshake without the key that a server of HTTP/1.1
/// needs: with `allow_connect` browsers cannot open WebSockets at all.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_writes_no_key() {
    let sample = Sample::start(true, 50);
    let envoy = Setup { tls: true, ..Setup::new(Mode::Default) }.start(sample.address).await;
    let said = said_by(&mut Browser::start(Kind::Chromium), &envoy);
    assert_eq!(said, ["does not open", "does not open"]);
}

/// As on Istio's gateways: a page that came over HTTP/2 opens its WebSockets over connections of
/// HTTP/1.1, and these close cleanly.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_over_http2_has_its_websockets_over_http1() {
    let server = Server::start().await;
    let mut browser = Browser::start(Kind::Chromium);
    let setup = Setup { tls: true, allow_connect: false, ..Setup::new(Mode::Filter) };
    let envoy = setup.start(server.address).await;
    assert_eq!(said_by(&mut browser, &envoy), ["4321, clean", "4000, clean"]);
    assert_eq!(envoy.metric("websocket.closed.clean"), 10);
    assert!(envoy.stat("http.hop1.downstream_cx_http1_total") >= 10);
    assert!(envoy.stat("http.hop1.downstream_cx_http2_active") > 0, "the page's lives on");
}

/// An HTTP/2 connection carries other streams: its WebSockets are counted and never closed by the
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn http2_downstream() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let mut connection = Connection::open(envoy.address()).await;
    let mut other = connection.websocket("/echo?by=client").await.expect("a WebSocket");
    let mut closing =
        connection.websocket(&path(Behaviour::Waits, true, 4321)).await.expect("a WebSocket");

    let close = closing.next().await.expect("a frame").expect("a frame");
    assert_eq!(wire::read_close(&close.payload), (4321, "bye".to_owned()));
    closing.send(wire::close(4321, "", true)).expect("an open stream");
    // The stream ends, in one way or the other; the connection does not.
    while let Ok(Some(_)) = closing.next().await {}

    other.send(wire::message(b"still here", true)).expect("an open stream");
    let echo = other.next().await.expect("a frame").expect("a frame");
    assert_eq!(echo.payload, b"still here");
    assert_eq!(connection.get("/plain").await.expect("a response"), 200);
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(connection.is_open());
    assert_eq!(envoy.metric("websocket.upgrades"), 2);
    assert_eq!(envoy.metric("websocket.unpaired"), 0);
    assert_eq!(envoy.metric("websocket.closed.clean"), 1);
    assert_eq!(envoy.metric("websocket.active"), 1);
    assert_eq!(envoy.access_log(1)[0]["protocol"], "HTTP/2");
}

/// HTTP/2 between two proxies: the inner one ends its stream with RST_STREAM, of which the outer one
/// learns too late. Nothing is lost, and the client's connection ends at once.
#[tokio::test(flavor = "multi_thread")]
async fn http2_between_the_hops() {
    let server = Server::start().await;
    for mode in [Mode::Default, Mode::Filter] {
        let setup = Setup { http2_between: true, ..Setup::new(mode).hops(2) };
        let envoy = setup.start(server.address).await;
        for (behaviour, by_server, code) in [
            (Behaviour::Waits, true, 4321),
            (Behaviour::FinWithoutWaiting, true, 4321),
            (Behaviour::ClosesUnread, true, 4321),
            (Behaviour::Waits, false, 4000),
        ] {
            for _ in 0..if mode == Mode::Filter { 20 } else { 1 } {
                let ending = close(envoy.address(), behaviour, by_server).await;
                assert_eq!(ending.code(), code, "{mode:?}, {behaviour:?}: {ending:?}");
                if mode == Mode::Filter {
                    assert!(ending.is_immediate(), "{behaviour:?}: {ending:?}");
                }
            }
        }
        let flags: Vec<_> = envoy.access_log(2).iter().map(|line| line["flags"].clone()).collect();
        println!("{mode:?}: flags at the outer hop: {:?}", flags.first());
        if mode == Mode::Filter {
            assert_eq!(envoy.metric("websocket.active"), 0);
        }
    }
}
