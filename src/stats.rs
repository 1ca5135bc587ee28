//! The metrics as the host knows them. One that the host refused to define is not counted.

use std::time::Duration;

use proxy_wasm::types::MetricType;
use ws_clean_close_core::counter::{Counter, ACTIVE, HANDSHAKE_MS};

use crate::host;

/// Their numbers.
pub struct Stats {
    counters: Vec<Option<u32>>,
    active: Option<u32>,
    handshake_ms: Option<u32>,
}

impl Stats {
    /// Defines them.
    pub fn define() -> Self {
        let counter = |c: &Counter| host::define_metric(MetricType::Counter, c.name());
        Self {
            counters: Counter::ALL.iter().map(counter).collect(),
            active: host::define_metric(MetricType::Gauge, ACTIVE),
            handshake_ms: host::define_metric(MetricType::Histogram, HANDSHAKE_MS),
        }
    }

    /// Counts, if there is something to count.
    pub fn count(&self, counter: impl Into<Option<Counter>>) {
        if let Some(counter) = counter.into() {
            add(self.counters.get(counter as usize).copied().flatten(), 1);
        }
    }

    /// Adds to the WebSockets that are open.
    pub fn active(&self, change: i64) {
        add(self.active, change);
    }

    /// Records how long a closing handshake took.
    pub fn handshake_took(&self, time: Duration) {
        if let Some(id) = self.handshake_ms {
            host::record_metric(id, u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
    }
}

fn add(id: Option<u32>, change: i64) {
    if let Some(id) = id {
        host::increment_metric(id, change);
    }
}
