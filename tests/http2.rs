//! HTTP/2 from the client: WebSockets among other streams of one connection. The others are never harmed,
//! whatever the closing ones do; and docs/http2.md says what these see, cell by cell as it is measured
//! here (`make table` writes it anew).

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::http2::{Connection, Stream};
use lab::server::{path, Behaviour};
use lab::{fetch, wire, Envoy, Mode, Server, Setup};
use tokio::time::timeout_at;

const START: &str = "<!-- http2 -->\n";
const STOP: &str = "<!-- /http2 -->";

/// Longer than the limits that the filter is given here.
const PATIENCE: Duration = Duration::from_secs(4);

struct Scenario {
    what: &'static str,
    path: String,
    closes: bool,
    answers: bool,
}

fn scenarios() -> Vec<Scenario> {
    use Behaviour::*;
    let server = |behaviour| format!("{}&after=300", path(behaviour, true, 4321));
    let client = |behaviour| path(behaviour, false, 0);
    [
        ("The server closes with 4321, is answered, ends TCP", server(Waits), false, true),
        ("… and resets TCP (RST)", server(Resets), false, true),
        ("… and never ends TCP", server(NeverCloses), false, true),
        ("… and ends TCP without waiting for the answer", server(Hasty), false, true),
        ("… and the client never answers", server(Waits), false, false),
        ("The client closes with 4000, the server answers, ends TCP", client(Waits), true, true),
        ("… the server answers, never ends TCP", client(NeverCloses), true, true),
        ("… the server ends TCP without an answer", client(Hasty), true, true),
        ("… the server never answers", client(Ignores), true, true),
        ("The server dies, no Close frame at all", server(Vanishes), false, true),
        ("The server dies inside a frame", server(DiesInFrame), false, true),
    ]
    .map(|(what, path, closes, answers)| Scenario { what, path, closes, answers })
    .into()
}

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
    let mut measured = String::from(
        "| who does what | default | baseline | **filter** |\n| --- | --- | --- | --- |\n",
    );
    for (row, scenario) in scenarios().iter().enumerate() {
        let row: Vec<_> = cells.iter().map(|column| &column[row][..]).collect();
        measured += &format!("| {} | {} |\n", scenario.what, row.join(" | "));
    }
    println!("{measured}");
    let of_filter = envoys.last().expect("three");
    let count = scenarios().len() as u64 + 4;
    assert_eq!(of_filter.metric("websocket.upgrades"), count);
    assert_eq!(of_filter.metric("websocket.unpaired"), 0);
    assert_eq!(of_filter.stat("http.hop1.downstream_cx_destroy_local"), 0);
    let file = fetch::root().join("docs/http2.md");
    if std::env::var_os("UPDATE_README").is_some() {
        fetch::write_between(&file, START, STOP, &measured);
    } else {
        let text = fs::read_to_string(&file).expect("docs/http2.md is there");
        assert!(
            text.contains(&format!("{START}{measured}{STOP}")),
            "docs/http2.md says otherwise: `make table` writes it anew"
        );
    }
}
