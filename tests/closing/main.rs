//! WebSockets that close: code, outcome and time, as their clients see them.

use std::time::Duration;

use testbed::Plan;

mod behaviours;
mod buffers;
mod frames;
mod lost_peers;
mod many;
mod timeouts;

fn unanswering() -> Plan {
    Plan { answer: false, patience: Duration::from_secs(3), ..Plan::default() }
}

fn closing() -> Plan {
    Plan { patience: Duration::from_secs(3), ..Plan::close(4000) }
}
