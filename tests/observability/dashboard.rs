//! The dashboard and the alerts, against what a real Envoy shows.

use std::fs;
use std::process::Command;

use serde_json::{json, Value};
use testbed::closing::close;
use testbed::server::Behaviour;
use testbed::{fetch, Mode, Server, Setup};

/// Every expression of the dashboard, its variables filled in.
fn dashboard() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(expr)) = map.get("expr") {
                    found.push(
                        expr.replace("$__rate_interval", "5m")
                            .replace("$by", "instance")
                            .replace("$job", ".*"),
                    );
                }
                map.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let text = fs::read_to_string(fetch::root().join("examples/grafana-dashboard.json"));
    let json: Value = serde_json::from_str(&text.expect("the dashboard is there")).expect("JSON");
    let mut found = Vec::new();
    collect(&json, &mut found);
    assert!(found.len() > 10);
    assert!(found.iter().all(|expr| !expr.contains('$')), "an unknown variable: {found:?}");
    found
}

/// The metrics that a text names.
fn named(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("websocket_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// Each metric that the dashboard or an alert names is on a real Envoy's page, and each of the
/// page's is on the dashboard.
#[tokio::test(flavor = "multi_thread")]
async fn names_exist() {
    let server = Server::start().await;
    let envoy = Setup::new(Mode::Filter).start(server.address).await;
    close(envoy.address(), Behaviour::Waits, true).await;
    let page = envoy.admin("/stats/prometheus");
    let shown: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("websocket_"))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let rules = fs::read_to_string(fetch::root().join("examples/prometheus-rules.yaml"));
    let expressions = dashboard().join("\n");
    for name in named(&expressions).into_iter().chain(named(&rules.expect("the rules are there"))) {
        let exists =
            shown.iter().any(|shown| *shown == name || shown.starts_with(&format!("{name}_")));
        assert!(exists, "{name} is not on Envoy's page: {shown:?}");
    }
    for shown in shown {
        let drawn = expressions.contains(shown)
            || shown.starts_with("websocket_code_")
            || shown.starts_with("websocket_handshake_ms")
            || shown == "websocket_upgrades";
        assert!(drawn, "{shown} is nowhere on the dashboard");
    }
}

/// Every expression is one that Prometheus takes.
#[test]
fn expressions_parse() {
    let Some(promtool) = fetch::debian("prometheus", "usr/bin/promtool") else {
        println!("skipped: no promtool on the PATH, and no apt-get to fetch Debian's");
        return;
    };
    let rules: Vec<Value> = dashboard()
        .iter()
        .enumerate()
        .map(|(i, expr)| json!({ "record": format!("panel:{i}"), "expr": expr }))
        .collect();
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let file = fetch::folder("promtool").join("dashboard.yaml");
    // JSON is YAML.
    fs::write(&file, rules.to_string()).expect("writable");
    let alerts = fetch::root().join("examples/prometheus-rules.yaml");
    let said = fetch::run(Command::new(&promtool).args(["check", "rules"]).arg(&file).arg(&alerts));
    assert!(said.contains("5 rules found"), "{said}");
    // It would say so.
    let bad = fetch::folder("promtool").join("bad.yaml");
    fs::write(&bad, rules.to_string().replace("sum by (instance) (", "sum by (instance) (("))
        .expect("writable");
    let output = Command::new(&promtool).args(["check", "rules"]).arg(&bad).output().expect("runs");
    assert!(!output.status.success());
}
