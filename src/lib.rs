//! **ws-clean-close**: an Envoy proxy-wasm filter that makes WebSockets close cleanly through a
//! service mesh.
//!
//! One module, attached twice to a listener. The *HTTP half* (`attach: http`) sees the upgrade, the
//! frames and the end of the upstream; the *network half* (`attach: network`), in front of the
//! HTTP connection manager, can close the connection: flush, FIN, no delay. Through the return
//! address on the connection the first asks the second to close it.
//!
//! [`frame`], [`handshake`], [`letting_go`], [`config`] and [`deadlines`] are pure and know no proxy; the rest is a
//! thin shell around them and exists only in the module.

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

pub mod config;
pub mod deadlines;
pub mod frame;
pub mod handshake;
pub mod letting_go;
pub mod metrics;

#[cfg(target_family = "wasm")]
mod chunk;
#[cfg(target_family = "wasm")]
mod courier;
#[cfg(target_family = "wasm")]
mod http;
#[cfg(target_family = "wasm")]
mod network;
#[cfg(target_family = "wasm")]
mod root;
#[cfg(target_family = "wasm")]
mod roster;
#[cfg(target_family = "wasm")]
mod shared;
#[cfg(target_family = "wasm")]
mod websocket;
