//! examples/envoy.yaml, as somebody without a mesh runs it: directly, and through func-e.

use std::fs;
use std::process::Command;
use std::time::Duration;

use testbed::closing::open;
use testbed::node::Sample;
use testbed::{envoy, fetch, End, Envoy, Plan};

/// func-e as its makers publish it.
const FUNC_E: &str = "github.com/tetratelabs/func-e/cmd/func-e@v1.6.0";

/// Runs the example in the project's folder, for it names the module relative to that, with ports that
/// nobody else has; closes WebSockets of the sample server through it.
async fn closes_through(command: impl Fn() -> Command) {
    let text = fs::read_to_string(fetch::root().join("examples/envoy.yaml")).expect("it is there");
    // The example runs a module that has been built.
    fetch::module();
    for by_server in [true, false] {
        let sample = Sample::start(by_server, 100);
        let (_held, port) = envoy::hold_port();
        let mut config = text.clone();
        for (from, to) in [("8080", port), ("9900", sample.address.port()), ("9901", 0)] {
            let key = format!("port_value: {from}");
            assert_eq!(config.matches(&key).count(), 1, "{key}");
            config = config.replace(&key, &format!("port_value: {to}"));
        }
        let address = ([127, 0, 0, 1], port).into();
        let mut command = command();
        command.current_dir(fetch::root());
        let envoy = Envoy::run(command, &config, vec![address]).unwrap_or_else(|e| panic!("{e}"));
        for _ in 0..5 {
            let client = open(address, "/").await;
            let plan = if by_server { Plan::default() } else { Plan::close(4000) };
            let ending = client.run(&Plan { distance: Duration::from_millis(1), ..plan }).await;
            let code = if by_server { 4321 } else { 4000 };
            assert_eq!((ending.code(), ending.end), (code, End::Fin), "{ending:?}");
            assert!(ending.is_clean() && ending.ms() < 400.0, "{ending:?}");
        }
        assert_eq!(envoy.metric("websocket.closed.clean"), 5);
        assert_eq!(envoy.metric("websocket.unpaired"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directly() {
    closes_through(|| {
        let mut command = Command::new(fetch::envoy());
        command.arg("--use-dynamic-base-id");
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_func_e() {
    let Some(func_e) = fetch::go_install(FUNC_E, "func-e") else { return };
    closes_through(|| {
        let mut command = Command::new(&func_e);
        command
            .args(["run", "--use-dynamic-base-id"])
            .env("ENVOY_PATH", fetch::envoy())
            // What it writes stays in the testbed.
            .env("HOME", fetch::folder("func-e-home"));
        command
    })
    .await;
}
