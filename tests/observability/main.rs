//! What operators see: metrics, access log, log lines, the dashboard and the alerts.

mod dashboard;
mod metrics;
