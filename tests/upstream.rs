//! What the reports in docs/upstream say of Envoy is so. Should Envoy mend one of these, its test fails,
//! and the workaround can go.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use testbed::closing::{open, run_all};
use testbed::server::{path, Behaviour};
use testbed::{envoy, fetch, Envoy, Mode, Plan, Server, Setup};

/// equal-configuration.md
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_equals_a_living_one_is_not_told() {
    let server = Server::start().await;
    let setup = Setup { dynamic: true, workers: 1, log: "info", ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    // The first configuration's root context lives as long as this does.
    let client = open(envoy.address(), &path(Behaviour::Waits, false, 0)).await;
    // On the main thread and on the worker.
    let told = |envoy: &Envoy| envoy.log().matches("HTTP filter configured").count();
    let settled = async |envoy: &Envoy| {
        let mut last = told(envoy);
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            match told(envoy) {
                now if now == last => return now,
                now => last = now,
            }
        }
    };
    let first = settled(&envoy).await;
    let drain = |setup: &mut Setup| {
        setup.http_filter.as_mut().expect("a configuration")["drain"] = json!({"within": "24h"});
    };
    envoy.update("http", drain);
    let second = settled(&envoy).await;
    assert_eq!(second - first, 3, "another configuration is told");
    envoy.update("http", |setup| {
        setup.http_filter = Some(json!({"attach": "http"}));
    });
    // What checks a configuration on the main thread does not live on.
    let third = settled(&envoy).await;
    assert_eq!(third - second, 1, "the first configuration again: the workers are not told");
    drop(client);
}

/// An Envoy with a configuration of docs/upstream in which each of these stands once, and is replaced; and with other
/// ports.
fn run(file: &str, replacements: &[(&str, &str)]) -> (Envoy, Vec<SocketAddr>) {
    let mut config = fs::read_to_string(fetch::root().join("docs/upstream").join(file))
        .unwrap_or_else(|e| panic!("{file}: {e}"));
    for (from, to) in replacements.iter().chain(&[("port_value: 9901", "port_value: 0")]) {
        assert_eq!(config.matches(from).count(), 1, "{file}: {from}");
        config = config.replace(from, to);
    }
    let mut held = Vec::new();
    for port in ["port_value: 8080", "port_value: 8081"] {
        if config.contains(port) {
            let (socket, free) = envoy::hold_port();
            config = config.replace(port, &format!("port_value: {free}"));
            held.push((socket, SocketAddr::from(([127, 0, 0, 1], free))));
        }
    }
    let addresses: Vec<_> = held.iter().map(|(_, address)| *address).collect();
    let mut command = Command::new(fetch::envoy());
    command.args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]);
    let envoy = Envoy::run(command, &config, addresses.clone()).unwrap_or_else(|e| panic!("{e}"));
    (envoy, addresses)
}

/// The same with a module of docs/upstream in text, changed or not.
fn run_text(name: &str, change: impl FnOnce(&str) -> String) -> (Envoy, SocketAddr) {
    let text = fs::read_to_string(fetch::root().join(format!("docs/upstream/{name}.wat")));
    let module = wat::parse_str(change(&text.expect("it is there"))).expect("a module");
    let file = fetch::folder("run").join(format!("{name}-{}.wasm", std::process::id()));
    fs::write(&file, module).expect("writable");
    let path = file.to_str().expect("UTF-8");
    let (envoy, addresses) = run(&format!("{name}.yaml"), &[(&format!("{name}.wasm"), path)]);
    fs::remove_file(file).expect("writable");
    (envoy, addresses[0])
}

fn request(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).expect("a connection");
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").expect("sent");
    client
}

/// All until the end of the connection; nothing of one that is reset.
fn reply(mut client: TcpStream) -> String {
    client.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    let mut reply = String::new();
    let _ = client.read_to_string(&mut reply);
    reply
}

const SIGSEGV: i32 = 11;

/// envoy-wasm-nested-actions.md
#[test]
fn actions_nest_until_the_stack_is_full() {
    for (requests, survives) in [(100, true), (3000, false)] {
        let (mut envoy, address) = run_text("nested-actions", |text| {
            assert_eq!(text.matches("i32.const 3000").count(), 1);
            text.replace("i32.const 3000", &format!("i32.const {requests}"))
        });
        let clients: Vec<_> = (0..requests).map(|_| request(address)).collect();
        let replies: Vec<_> = clients.into_iter().map(reply).collect();
        if survives {
            assert!(replies.iter().all(|reply| reply.starts_with("HTTP/1.1 200")), "{replies:?}");
            assert!(!envoy.has_ended());
        } else {
            assert_eq!(envoy.end().signal(), Some(SIGSEGV));
        }
    }
}

/// envoy-wasm-timer-of-another-root.md
#[test]
fn a_timer_of_another_root_is_a_use_after_free() {
    let (mut envoy, address) = run_text("timer-of-another-root", str::to_owned);
    reply(request(address));
    assert_eq!(envoy.end().signal(), Some(SIGSEGV));
}

/// envoy-delayed-close-of-upgrades.md, envoy-websocket-close-is-a-failure.md: without the filter.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_close_is_late_and_a_failure() {
    let server = Server::start().await;
    let port = format!("port_value: {}", server.address.port());
    for timeout in ["1s", "0s"] {
        let delayed = format!("delayed_close_timeout: {timeout}");
        let replacements =
            [("port_value: 9000", port.as_str()), ("delayed_close_timeout: 1s", &delayed)];
        let (envoy, addresses) = run("websocket-close.yaml", &replacements);
        let path = path(Behaviour::Waits, true, 4321);
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(open(addresses[0], &path).await);
        }
        for ending in run_all(clients, &Plan::default()).await {
            assert!(ending.is_clean(), "{timeout}: {ending}");
            assert_eq!(ending.is_immediate(), timeout == "0s", "{timeout}: {ending}");
        }
        let statistic = |name: &str| envoy.stat(&format!("cluster.server.{name}"));
        assert_eq!(statistic("outlier_detection.ejections_enforced_total"), 1, "{timeout}");
        assert_eq!(statistic("upstream_cx_destroy_remote_with_active_rq"), 20, "{timeout}");
    }
}

/// proxy-wasm-rust-sdk-panics.md
#[test]
fn the_sdk_panics() {
    // That fetches what a build needs.
    fetch::module();
    let target = fetch::root().join("target/sdk-panics");
    fetch::run(
        Command::new("cargo")
            .current_dir(fetch::root())
            .args(["build", "--quiet", "--release", "--target", "wasm32-wasip1"])
            .args(["--package", "sdk-panics", "--target-dir"])
            .arg(&target)
            // With all exports, as others build theirs.
            .env("CARGO_TARGET_WASM32_WASIP1_LINKER", "rust-lld"),
    );
    let module = target.join("wasm32-wasip1/release/sdk_panics.wasm");
    let module = module.to_str().expect("UTF-8");
    let (envoy, addresses) = run("sdk-panics/envoy.yaml", &[("sdk_panics.wasm", module)]);
    // The first request meets the panic, and the second a VM that is gone.
    for _ in 0..2 {
        assert!(reply(request(addresses[0])).starts_with("HTTP/1.1 503"), "{}", envoy.log());
    }
    assert_eq!(reply(TcpStream::connect(addresses[1]).expect("a connection")), "");
    let log = envoy.log();
    for (file, text) in
        [("hostcalls.rs", "unexpected status: 2"), ("dispatcher.rs", "invalid context_id")]
    {
        let panic = log.lines().zip(log.lines().skip(1)).any(|(at, what)| {
            at.contains("panicked at") && at.contains(file) && what.starts_with(text)
        });
        assert!(panic, "{file}: {text}: {log}");
    }
}
