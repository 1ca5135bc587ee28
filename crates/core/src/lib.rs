//! The rules of **ws-clean-close**: the WebSocket closing handshake (RFC 6455 §7) as a proxy sees
//! it, and what the proxy does about it.
//!
//! Sans I/O: nothing here knows Envoy, reads a clock or sends a byte. Facts go in with the time at
//! which they happened; values come out that the caller carries out. [`Session`] follows one
//! WebSocket from the 101 to the end of its stream and holds every rule.
//!
//! ```
//! use std::{rc::Rc, time::Duration};
//! use ws_clean_close_core::{config::HttpConfig, time::Instant, Link, Opening, Session, Side, Upstream};
//!
//! let start = Instant::ZERO;
//! let link = Link { owns_connection: true, upstream: Upstream::Http1 };
//! let opening = Opening { link, fraction: 0.5, token_valid_for: None, early: None };
//! let (mut session, _) = Session::open(Rc::new(HttpConfig::default()), opening, start);
//!
//! // Behind the 101 comes an empty chunk; then the server's Close frame, code 1000; then, from an
//! // HTTP/1.1 upstream, an empty chunk when it closes TCP.
//! assert!(!session.on_data(Side::Server, &mut &b""[..], false, || start).reset);
//! assert!(!session.on_data(Side::Server, &mut &b"\x88\x02\x03\xe8"[..], false, || start).reset);
//! let actions = session.on_data(Side::Server, &mut &b""[..], false, || start);
//! assert!(actions.reset, "the stream ends from this side: no failure of the upstream");
//! assert!(session.end(start + Duration::from_millis(1)).close_connection);
//! ```

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

pub mod actions;
pub mod activity;
pub mod config;
pub mod counter;
pub mod drain;
pub mod frame;
pub mod handshake;
pub mod opening;
pub mod scanner;
pub mod session;
pub mod time;
pub mod timer;

pub use actions::{Actions, ChunkAction, End};
pub use handshake::{Initiator, Outcome, Side};
pub use opening::{EarlyData, Link, Opening, Upstream};
pub use session::Session;
