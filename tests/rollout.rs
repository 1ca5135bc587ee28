//! The recipes of examples/drain, run against a real Envoy; `kubectl` has a stand-in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::closing::{open, until};
use testbed::server::{path, Behaviour};
use testbed::{fetch, Client, Envoy, Mode, Plan, Server, Setup};

/// Whether what the recipes call is there.
fn has_curl() -> bool {
    let found = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: no curl (Debian: apt-get install curl)");
    }
    found
}

fn recipe(name: &str) -> PathBuf {
    fetch::root().join("examples/drain").join(name)
}

async fn wait_until_empty(envoy: &Envoy, seconds: u32) -> Output {
    let mut command = Command::new(recipe("wait-until-empty.sh"));
    command.arg(envoy.admin_address().to_string()).arg(seconds.to_string());
    let waits = tokio::task::spawn_blocking(move || command.output());
    waits.await.expect("no panic").expect("a shell")
}

/// WebSockets on which nobody speaks, which follow what becomes of them.
async fn silent(envoy: &Envoy, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(open(envoy.address(), &path(Behaviour::Waits, false, 0)).await);
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_until_it_is_empty() {
    if !has_curl() {
        return;
    }
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let empty = wait_until_empty(&envoy, 0).await;
    assert!(empty.status.success(), "{empty:?}");
    let clients = silent(&envoy, 3).await;
    let full = wait_until_empty(&envoy, 0).await;
    assert_eq!(full.status.code(), Some(1));
    assert_eq!(said(&full), "open WebSockets: 3\n");
    let (waited, ()) = tokio::join!(wait_until_empty(&envoy, 20), async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for client in clients {
            client.run(&Plan::close(1000)).await;
        }
    });
    assert!(waited.status.success(), "{waited:?}");
    assert!(said(&waited).starts_with("open WebSockets: 3\n"));
    assert!(said(&waited).ends_with("open WebSockets: 0\n"));
    let address = envoy.admin_address();
    drop(envoy);
    let gone = Command::new(recipe("wait-until-empty.sh")).arg(address.to_string()).output();
    assert_eq!(gone.expect("a shell").status.code(), Some(2));
}

/// Writes down what it is asked, and answers as a cluster with one old pod would, which is this Envoy.
const KUBECTL: &str = r#"#!/bin/sh
echo "$*" >> "$FOLDER/calls"
case "$*" in
*" get pods "*) echo pod/old ;;
*" patch "*) for last; do :; done; echo "$last" > "$FOLDER/patch.new"; mv "$FOLDER/patch.new" "$FOLDER/patch" ;;
*" exec "*) curl --silent "http://$ADMIN/stats?filter=websocket\.active" ;;
esac
"#;

#[tokio::test(flavor = "multi_thread")]
async fn rolls_a_gateway() {
    if !has_curl() {
        return;
    }
    let server = Server::start().await;
    let setup = Setup { dynamic: true, ..Setup::new(Mode::Filter) };
    let mut envoy = setup.start(server.address).await;
    let clients = silent(&envoy, 50).await;
    let folder = fetch::folder("rollout").join(std::process::id().to_string());
    fs::create_dir_all(&folder).expect("target is writable");
    let kubectl = folder.join("kubectl");
    fs::write(&kubectl, KUBECTL).expect("target is writable");
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).expect("our own file");
    let begun = Instant::now();
    let mut script = Command::new(recipe("rollout.sh"))
        .env("KUBECTL", &kubectl)
        .env("FOLDER", &folder)
        .env("ADMIN", envoy.admin_address().to_string())
        .envs([("WITHIN", "2s"), ("END_SILENT_AFTER", "1s"), ("PATIENCE", "20")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");

    // As the control plane does: what was patched goes to the proxy.
    let patch = folder.join("patch");
    until("the drain begins", || patch.exists()).await;
    let text = fs::read_to_string(&patch).expect("it is there");
    let drain: Value = serde_json::from_str(&text).expect("JSON");
    let drain = &drain["spec"]["pluginConfig"]["drain"];
    assert_eq!((&drain["within"], &drain["endSilentAfter"]), (&"2s".into(), &"1s".into()));
    envoy.update("http", |setup| {
        setup.http_filter.as_mut().expect("a configuration")["drain"] = drain.clone();
    });
    until("the script ends", || script.try_wait().expect("ours").is_some()).await;
    let output = script.wait_with_output().expect("ours");
    assert!(output.status.success(), "{output:?}");
    assert!(begun.elapsed() > Duration::from_secs(1));
    assert_eq!(envoy.metric("websocket.active"), 0);
    assert_eq!(envoy.metric("websocket.ended.silent"), 50);
    drop(clients);

    let calls = fs::read_to_string(folder.join("calls")).expect("it was called");
    let calls: Vec<_> = calls.lines().filter(|call| !call.contains(" exec ")).collect();
    let named = |call: &str, words: &[&str]| words.iter().all(|word| call.contains(word));
    assert_eq!(calls.len(), 5, "{calls:#?}");
    assert!(named(calls[0], &["--namespace istio-system", "get pods", "istio=ingressgateway"]));
    assert!(named(calls[1], &["rollout restart", "deployment/istio-ingressgateway"]));
    assert!(named(calls[2], &["rollout status"]));
    assert!(named(calls[3], &["patch wasmplugin ws-clean-close-http", "rollout "]));
    assert!(named(calls[4], &["patch wasmplugin ws-clean-close-http", r#""drain":null"#]));
}
