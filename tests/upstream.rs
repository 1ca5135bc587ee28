//! What the reports in docs/upstream say of Envoy is so. Should Envoy mend one of these, its test fails,
//! and the workaround can go.

use std::time::Duration;

use serde_json::json;
use testbed::closing::open;
use testbed::server::{path, Behaviour};
use testbed::{Envoy, Mode, Server, Setup};

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
