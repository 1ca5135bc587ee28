//! The probe, as an operator runs it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;
use testbed::server::{path, Behaviour};
use testbed::{fetch, tls, Mode, Server, Setup};

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
        (
            default.entry(1),
            by(Waits, true),
            true,
            "delayed by 1.0 s: one proxy with a delayed close",
            1,
        ),
        (
            default.entry(2),
            by(Waits, false),
            false,
            "delayed by 2.0 s: two proxies; older Chrome reports 1006",
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

/// Each proxy with the filter takes a second away, the outermost first: docs/operate.md has this table. FIN or RST
/// behind a server that does not wait is not looked at: on one machine it is random.
#[tokio::test(flavor = "multi_thread")]
async fn one_proxy_after_the_other() {
    let server = Server::start().await;
    let page = fs::read_to_string(fetch::root().join("docs/operate.md")).expect("a page");
    for (outer, inner, row, seconds) in [
        (Mode::Default, Mode::Default, "neither, or in observe mode", 2),
        (Mode::Filter, Mode::Default, "the gateway", 1),
        (Mode::Default, Mode::Filter, "the sidecar only", 1),
        (Mode::Filter, Mode::Filter, "both", 0),
    ] {
        let verdict = match seconds {
            0 => "clean".to_owned(),
            seconds => format!("delayed by {seconds}.0 s"),
        };
        assert!(page.contains(&format!("| {row} | `{verdict}` | `{verdict}`")), "{row}");
        let inner = Setup::new(inner).start(server.address).await;
        let outer = Setup::new(outer).start(inner.address()).await;
        for behaviour in [Behaviour::Waits, Behaviour::FinWithoutWaiting] {
            let url = format!("ws://{}{}", outer.address(), path(behaviour, true, 4321));
            let output = probe(&[&url, "--server-close", "--json"]);
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(report["code"], 4321, "{row}, {behaviour:?}: {report}");
            let ms = report["ms"].as_f64().expect("a number");
            assert_eq!((ms / 1000.0).round() as u32, seconds, "{row}, {behaviour:?}: {report}");
            if behaviour == Behaviour::Waits {
                let words = report["words"].as_str().expect("text");
                assert!(words.starts_with(&verdict), "{row}: {report}");
            }
        }
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

/// Each error is one line, which ends with what to do, and exit code 2.
#[tokio::test(flavor = "multi_thread")]
async fn errors() {
    let server = Server::start().await;
    let envoy = Setup { tls: true, ..Setup::new(Mode::Filter) }.start(server.address).await;
    let tls = envoy.address().port();
    let plain = server.address;
    let unused =
        TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let certificate = tls::certificate().0.to_str().expect("text");
    let empty = fetch::folder("probe").join("empty.pem");
    fs::write(&empty, "").expect("the testbed's folder is writable");
    let empty = empty.to_str().expect("text");
    let status = |line: &str| answers(&format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n"));
    let accept = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n";
    let waits = path(Behaviour::Waits, false, 0);
    let never: [&str; 2] = ["--timeout", "0.5"];
    for (url, arguments, cause, advice) in [
        ("http://localhost/".into(), vec![], "expected ws:// or wss://", "Use ws:// for http://"),
        (
            "ws://nowhere.invalid/".into(),
            vec![],
            "cannot resolve nowhere.invalid",
            "Check the name",
        ),
        (format!("ws://{unused}/"), vec![], "Connection refused", "Nothing listens there"),
        (format!("ws://{}/", silent()), never.into(), "took more than 0.5 s", "longer --timeout"),
        (
            format!("ws://{plain}{waits}"),
            [&["--server-close"], &never[..]].concat(),
            "the server did not close within 0.5 s",
            "leave out --server-close",
        ),
        // TLS.
        (format!("wss://localhost:{tls}/"), vec![], "(UnknownIssuer)", "--ca-file"),
        (
            format!("wss://127.0.0.1:{tls}/"),
            vec!["--ca-file", certificate],
            "not valid for name",
            "Use a host name of the certificate",
        ),
        (
            format!("wss://localhost:{tls}/"),
            vec!["--ca-file", "no-such-file"],
            "cannot take certificates from no-such-file",
            "Expected a file in PEM",
        ),
        (
            format!("wss://localhost:{tls}/"),
            vec!["--ca-file", empty],
            "there are none in it",
            "Expected a file in PEM",
        ),
        (
            format!("wss://{}/", status("400 Bad Request")),
            vec![],
            "does not answer in TLS",
            "Try ws://",
        ),
        (
            format!("wss://{}/", answers("")),
            vec![],
            "ended the connection",
            "`hosts` of the Gateway",
        ),
        (format!("ws://localhost:{tls}/"), vec![], "ended the connection", "Try wss://"),
        // The opening handshake.
        (format!("ws://{plain}/plain"), vec![], "HTTP 200 OK", "upgrade_type websocket"),
        (format!("ws://{}/", status("401 Unauthorized")), vec![], "HTTP 401", "Authorization: …"),
        (format!("ws://{}/", status("403 Forbidden")), vec![], "HTTP 403", "AuthorizationPolicy"),
        (format!("ws://{}/", status("404 Not Found")), vec![], "HTTP 404", "a route"),
        (format!("ws://{}/", status("429 Too Many")), vec![], "HTTP 429", "Probe less often"),
        (format!("ws://{}/", status("400 Bad Request")), vec![], "HTTP 400", "the subprotocol"),
        (format!("ws://{}/", status("500 Oh")), vec![], "HTTP 500", "the server's log"),
        (format!("ws://{}/", status("503 Unavailable")), vec![], "HTTP 503", "UH, UF, NR"),
        (
            format!("ws://{}/", status("301 Moved\r\nlocation: https://else.test/")),
            vec![],
            "HTTP 301",
            "redirects to https://else.test/: probe that",
        ),
        (format!("ws://{}/", answers("SSH-2.0-x\r\n\r\n")), vec![], "is not HTTP", "another port"),
        (format!("ws://{}/", answers("")), vec![], "instead of answering", "mTLS"),
        (
            format!("ws://{}/", answers(&format!("HTTP/1.1 101 Switching\r\n{accept}"))),
            vec![],
            "the opening handshake failed",
            "breaks RFC 6455",
        ),
        (
            format!("ws://{}/", without_subprotocol()),
            vec!["--subprotocol", "chat"],
            "SubProtocol",
            "Check --subprotocol",
        ),
        (
            format!("ws://{plain}{waits}"),
            vec!["--textfile", "no-such-folder/ws.prom"],
            "cannot write no-such-folder/ws.prom",
            "a folder that exists",
        ),
    ] {
        let output = probe(&[vec![url.as_str()], arguments].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.starts_with("ws-close-probe: "), "{url}: {text}");
        let (before, after) = text.split_once(advice).unwrap_or_else(|| panic!("{url}: {text}"));
        assert!(before.contains(cause) && before.contains(". "), "{url}: {text}");
        assert!(after.ends_with(".\n") && text.lines().count() == 1, "{url}: {text}");
        assert_eq!(output.status.code(), Some(2), "{url}: {text}");
    }
    // The same for programs.
    let output = probe(&[&format!("ws://{unused}/"), "--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&value["verdict"], &value["clean"]), (&"error".into(), &false.into()));
    assert!(value["error"].is_string() && value["advice"].is_string(), "{value}");
    // And what is right passes: a certificate whose authority is given.
    let url = format!("wss://localhost:{tls}{waits}");
    assert_eq!(probe(&[&url, "--ca-file", certificate]).status.code(), Some(0));
}

/// A server that answers every request, or whatever it reads first, with `text`, and ends TCP.
fn answers(text: &str) -> SocketAddr {
    let text = text.to_owned();
    serve(move |mut stream| {
        // One read: a handshake of TLS has no empty line.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(text.as_bytes());
    })
}

fn silent() -> SocketAddr {
    serve(|mut stream| drop(stream.read_to_end(&mut Vec::new())))
}

/// A server that chooses none of the subprotocols it is offered.
fn without_subprotocol() -> SocketAddr {
    serve(|stream| drop(tokio_tungstenite::tungstenite::accept(stream)))
}

fn serve(mut each: impl FnMut(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || listener.incoming().flatten().for_each(&mut each));
    address
}

/// `--expect`: another code has its own exit code, and a close that is not clean goes before it.
#[tokio::test(flavor = "multi_thread")]
async fn expected_codes() {
    let server = Server::start().await;
    let by = |behaviour, by_server, code| {
        format!("ws://{}{}", server.address, path(behaviour, by_server, code))
    };
    for (url, server_close, expected, says, code) in [
        (by(Behaviour::Waits, true, 4321), true, "4321", "expected   4321: it came", 0),
        (by(Behaviour::Waits, true, 4321), true, "1001", "expected   1001: another code came", 3),
        (by(Behaviour::Waits, false, 0), false, "1000", "expected   1000: it came", 0),
        (by(Behaviour::Resets, true, 4321), true, "1001", "expected   1001: another code came", 1),
        (
            by(Behaviour::FinWithoutClose, true, 0),
            true,
            "1001",
            "expected   1001: another code came",
            1,
        ),
    ] {
        let mut arguments = vec![url.as_str(), "--expect", expected];
        arguments.extend(server_close.then_some("--server-close"));
        let output = probe(&arguments);
        assert!(stdout(&output).contains(says), "{url}: {output:?}");
        assert_eq!(output.status.code(), Some(code), "{url}: {output:?}");
    }
    for (wrong, says) in [("1006", "never clean"), ("999", "from 1000 to 4999")] {
        let output = probe(&["ws://localhost/", "--expect", wrong]);
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{output:?}");
        assert_eq!(output.status.code(), Some(2));
    }
}

/// `--watch` goes on over errors, a line each, until `--count` or a signal.
#[tokio::test(flavor = "multi_thread")]
async fn watching() {
    let server = Server::start().await;
    let url = format!("ws://{}{}", server.address, path(Behaviour::Waits, false, 0));
    let begun = Instant::now();
    let output = probe(&[&url, "--watch", "0.3", "--count", "3"]);
    assert!(begun.elapsed().as_secs_f64() >= 0.6, "{:?}", begun.elapsed());
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    for line in &lines[..3] {
        // 2026-11-26T13:51:44Z 1000, clean in 0 ms
        assert!(line[..20].ends_with('Z') && line[20..].starts_with(" 1000, clean in "), "{text}");
    }
    assert!(lines[3].starts_with("3 of 3 clean; median "), "{text}");
    assert_eq!(output.status.code(), Some(0));

    let output = probe(&[&format!("ws://{}/", answers("")), "--watch", "0.1", "--count", "2"]);
    let text = stdout(&output);
    assert_eq!(text.matches("Z error: the server ended the connection ").count(), 2, "{text}");
    assert!(text.ends_with("\n0 of 2 clean; 2 errors\n"), "{text}");
    assert_eq!(output.status.code(), Some(2));

    for signal in ["-TERM", "-INT"] {
        let mut watch = Command::new(fetch::program("ws-close-probe"))
            .args([&url, "--watch", "0.1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the probe runs");
        let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
        for _ in 0..3 {
            let line = lines.next().expect("a line").expect("text");
            assert!(line.contains("clean in "), "{line}");
        }
        fetch::run(Command::new("kill").arg(signal).arg(watch.id().to_string()));
        let last = lines.map_while(Result::ok).last().unwrap_or_default();
        assert!(last.contains(" clean; median "), "{signal}: {last}");
        assert_eq!(watch.wait().expect("it ends").code(), Some(0), "{signal}");
    }
}

/// `--textfile`: what Prometheus reads, checked by promtool.
#[tokio::test(flavor = "multi_thread")]
async fn textfile() {
    let server = Server::start().await;
    let folder = fetch::folder(&format!("run/probe-{}", std::process::id()));
    let file = folder.join("ws.prom");
    let url = format!("ws://{}{}&token=secret", server.address, path(Behaviour::Waits, true, 4321));
    let name = file.to_str().expect("text");
    let arguments = [&url[..], "--server-close", "--count", "2", "--textfile", name];
    assert_eq!(probe(&arguments).status.code(), Some(0));
    let text = fs::read_to_string(&file).expect("it was written");
    let labels = format!("url=\"ws://{}/waits\",closed_by=\"server\"", server.address);
    for (metric, value) in [
        (format!("success{{{labels}}}"), "1"),
        (format!("code{{{labels}}}"), "4321"),
        (format!("results_total{{{labels},verdict=\"clean\"}}"), "2"),
        (format!("results_total{{{labels},verdict=\"error\"}}"), "0"),
    ] {
        let line = format!("\nws_close_probe_{metric} {value}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    assert!(text.contains(&format!("\nws_close_probe_tcp_end_seconds{{{labels}}} 0.")), "{text}");
    assert!(!text.contains("secret"), "{text}");
    // The file alone: nothing beside it that a collector would read.
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 1);

    let failed = folder.join("failed.prom");
    let name = failed.to_str().expect("text");
    assert_eq!(probe(&["ws://nowhere.invalid/", "--textfile", name]).status.code(), Some(2));
    let text_of_error = fs::read_to_string(&failed).expect("it was written");
    assert!(text_of_error.contains("verdict=\"error\"} 1\n"), "{text_of_error}");
    assert!(!text_of_error.contains("ws_close_probe_code"), "{text_of_error}");

    match fetch::debian("prometheus", "usr/bin/promtool") {
        Some(promtool) => {
            for file in [&file, &failed] {
                let input = fs::File::open(file).expect("it was written");
                fetch::run(Command::new(&promtool).args(["check", "metrics"]).stdin(input));
            }
        }
        None => {
            fetch::notice("SKIPPED promtool: not on the PATH, and no apt-get to fetch Debian's")
        }
    }
    fs::remove_dir_all(folder).expect("it was written");
}

/// The man page and the completions have every option of the help.
#[test]
fn generated() {
    let help = stdout(&probe(&["--help"]));
    let options: BTreeSet<_> = help
        .split_whitespace()
        .filter_map(|word| word.trim_end_matches(',').strip_prefix("--"))
        .filter(|name| name.len() > 3)
        .collect();
    assert!(options.len() >= 14, "{options:?}");
    // The page that has the exit codes too.
    let page = fs::read_to_string(fetch::root().join("examples/probe/README.md")).expect("a page");
    let page = page.replace('`', "");
    let (_, codes) = help.split_once("Exit codes:\n").expect("exit codes");
    assert_eq!(codes.lines().count(), 5, "{codes}");
    for line in codes.lines() {
        let row = match line.trim().split_once("  ") {
            Some((code, meaning)) => format!("| {code} | {meaning} |"),
            None => line.to_owned(),
        };
        assert!(page.contains(&row), "{row}");
    }
    let folder = fetch::folder(&format!("run/probe-generated-{}", std::process::id()));
    for what in ["man", "bash", "fish", "zsh"] {
        let output = probe(&["--generate", what]);
        let text = stdout(&output).replace("\\-", "-");
        assert_eq!(output.status.code(), Some(0), "{what}");
        for option in &options {
            let written = match what {
                "fish" => format!("-l {option}"),
                _ => format!("--{option}"),
            };
            assert!(text.contains(&written), "{what}: no {written}");
        }
    }
    let text = stdout(&probe(&["--generate", "man"]));
    for section in ["NAME", "SYNOPSIS", "OPTIONS", "\"EXIT STATUS\"", "EXAMPLES"] {
        assert!(text.contains(&format!("\n.SH {section}\n")), "no {section}");
    }
    let bash = folder.join("completions");
    fs::write(&bash, stdout(&probe(&["--generate", "bash"]))).expect("writable");
    fetch::run(Command::new("bash").arg("-n").arg(&bash));
    fs::remove_dir_all(folder).expect("it was written");
}
