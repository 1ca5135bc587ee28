//! **ws-clean-close**: an Envoy proxy-wasm filter that makes WebSockets close cleanly through a
//! service mesh.
//!
//! One module, attached twice to a listener. The *HTTP filter* (`attach: http`) sees the upgrade, the
//! frames and the end of the upstream. The *network filter* (`attach: network`), in front of the HTTP
//! connection manager, can close the connection: flush, FIN, no delay. Through the handle that it
//! leaves on the connection, the first asks the second to close it.
//!
//! Here is no rule: the files translate what Envoy calls for `ws-clean-close-core`, whose `session.rs`
//! decides, and carry out what it answers. All of it exists only in the module.

#![cfg(target_family = "wasm")]
#![warn(missing_docs)]
#![deny(unsafe_code)]
// A panic in the module kills the VM, and with it the filter for every stream of the worker.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::todo
)]

mod access_log;
mod body;
mod close_queue;
mod host;
mod http_filter;
mod network_filter;
mod registry;
mod root;
mod stats;
mod websocket;
mod worker;
