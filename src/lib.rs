//! **ws-clean-close**: an Envoy proxy-wasm filter that makes WebSockets close cleanly through a
//! service mesh.
//!
//! One module, attached twice to a listener. The *HTTP half* (`attach: http`) sees the upgrade, the
//! frames and the end of the upstream; the *network half* (`attach: network`), in front of the
//! HTTP connection manager, can close the connection: flush, FIN, no delay. Through the return
//! address on the connection the first asks the second to close it.
//!
//! [`frame`], [`handshake`], [`config`] and [`deadlines`] are pure and know no proxy; the rest is a
//! thin shell around them and exists only in the module.

pub mod config;
pub mod deadlines;
pub mod frame;
pub mod handshake;
pub mod metrics;

#[cfg(target_family = "wasm")]
mod courier;
#[cfg(target_family = "wasm")]
mod http;
#[cfg(target_family = "wasm")]
mod network;
#[cfg(target_family = "wasm")]
mod root;
