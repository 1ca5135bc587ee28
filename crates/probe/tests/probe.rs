//! The probe, as an operator runs it.

use std::process::{Command, Output};

use serde_json::Value;
use testbed::server::{path, Behaviour};
use testbed::{fetch, Mode, Server, Setup};

fn probe(arguments: &[&str]) -> Output {
    Command::new(fetch::program("ws-close-probe")).args(arguments).output().expect("the probe runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The verdict in words, and the exit code, for each way to end.
#[tokio::test(flavor = "multi_thread")]
async fn verdicts() {
    let server = Server::start().await;
    let filter = Setup::new(Mode::Filter).hops(2).start(server.address).await;
    let default = Setup::new(Mode::Default).hops(2).start(server.address).await;
    let direct = server.address;
    let by = |behaviour, by_server| path(behaviour, by_server, 4321);
    use Behaviour::*;
    for (address, path, server_close, words, code) in [
        (filter.entry(2), by(Waits, true), true, "clean in ", 0),
        (filter.entry(2), by(Waits, false), false, "clean in ", 0),
        (default.entry(1), by(Waits, true), true, "1.0 s late: one proxy with a delayed close", 1),
        (
            default.entry(2),
            by(Waits, false),
            false,
            "2.0 s late: two proxies; older Chrome reports 1006",
            1,
        ),
        (
            direct,
            by(Resets, true),
            true,
            "reset after the Close frame: browsers report wasClean=false",
            1,
        ),
        (direct, by(FinWithoutClose, true), true, "no Close frame: browsers report 1006", 1),
        (direct, by(FinWithoutWaiting, false), false, "no Close frame: browsers report 1006", 1),
        (direct, by(NeverCloses, true), true, "TCP still open after 2 s", 1),
    ] {
        let url = format!("ws://{address}{path}");
        let mut arguments = vec![url.as_str(), "--timeout", "4"];
        if path.starts_with("/never") {
            arguments[2] = "2";
        }
        if server_close {
            arguments.push("--server-close");
        }
        let output = probe(&arguments);
        let text = stdout(&output);
        assert!(text.contains(&format!("verdict    {words}")), "{url}: {text}");
        assert_eq!(output.status.code(), Some(code), "{url}: {text}");
    }
}

/// JSON for programs, and counting.
#[tokio::test(flavor = "multi_thread")]
async fn output() {
    let server = Server::start().await;
    let envoy = Setup { tls: true, ..Setup::new(Mode::Filter) }.start(server.address).await;
    let url =
        format!("wss://localhost:{}{}", envoy.address().port(), path(Behaviour::Waits, true, 4321));
    let output = probe(&[
        &url,
        "--server-close",
        "--insecure",
        "--json",
        "--count",
        "3",
        "--header",
        "x-a: b",
        "--subprotocol",
        "chat",
    ]);
    let reports: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(reports.len(), 3, "{output:?}");
    for report in reports {
        assert_eq!(report["code"], 4321, "{report}");
        assert_eq!(report["reason"], "bye", "{report}");
        assert_eq!(report["closed_by"], "server", "{report}");
        assert_eq!(report["end"], "FIN", "{report}");
        assert_eq!(report["verdict"], "clean", "{report}");
        assert!(report["ms"].as_f64().expect("a number") < 400.0, "{report}");
    }
    let output = probe(&[&url, "--server-close", "--insecure", "--count", "2"]);
    assert!(stdout(&output).contains("2 of 2 clean; median "), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

/// What goes wrong is said in one line, with exit code 2.
#[tokio::test(flavor = "multi_thread")]
async fn errors() {
    let server = Server::start().await;
    let envoy = Setup { tls: true, ..Setup::new(Mode::Filter) }.start(server.address).await;
    let unused =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    for (url, arguments, says) in [
        (
            format!("ws://{}/plain", server.address),
            vec![],
            "the opening handshake was refused: HTTP 200",
        ),
        (format!("ws://{unused}/"), vec![], "cannot connect to 127.0.0.1:"),
        (format!("wss://localhost:{}/", envoy.address().port()), vec![], "TLS with localhost:"),
        (format!("http://{}/", server.address), vec![], "expected ws:// or wss://"),
        (
            format!("ws://{}{}", server.address, path(Behaviour::Waits, false, 0)),
            vec!["--server-close", "--timeout", "0.5"],
            "the server did not close within 0.5 s",
        ),
    ] {
        let output = probe(&[vec![url.as_str()], arguments].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.starts_with("probe: ") && text.contains(says), "{url}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(output.status.code(), Some(2), "{url}: {text}");
    }
}
