//! The fields of the access log, `%FILTER_STATE(wasm.websocket_close_…:PLAIN)%`.

use std::cell::Cell;

use ws_clean_close_core::frame::{Close, Status};
use ws_clean_close_core::handshake::Initiator;
use ws_clean_close_core::Session;

use crate::host;

/// The field that a WebSocket has from its opening on.
pub const OUTCOME: &str = "websocket_close_outcome";
const INITIATOR: &str = "websocket_close_initiator";
const CODE: &str = "websocket_close_code";
const REASON: &str = "websocket_close_reason";

/// The fields of one WebSocket, as far as they have been written: each write costs Envoy some memory.
#[derive(Default)]
pub struct Fields {
    outcome: Cell<&'static str>,
    closed_by: Cell<bool>,
}

impl Fields {
    /// Keeps them as they would be if the stream ended now: Envoy writes the log before a filter learns of
    /// the end.
    pub fn update(&self, session: &Session) {
        let outcome = session.outcome();
        if self.outcome.replace(outcome) != outcome {
            set(OUTCOME, outcome);
        }
        // Who has closed it does not change any more.
        if let (Some((initiator, close)), false) = (session.closed_by(), self.closed_by.get()) {
            self.closed_by.set(true);
            set_closed_by(initiator, close);
        }
    }
}

fn set_closed_by(initiator: Initiator, close: Option<&Close>) {
    set(INITIATOR, initiator.name());
    match close.map(|close| close.status()) {
        None => {}
        Some(Status::None) => set(CODE, "1005"),
        Some(Status::Invalid) => set(CODE, "invalid"),
        Some(Status::Code(code, reason)) => {
            set(CODE, &code.get().to_string());
            // What a peer sends must not write lines of its own into anybody's log.
            set(REASON, &reason.replace(|c: char| c.is_control(), ""));
        }
    }
}

fn set(field: &str, value: &str) {
    host::set_property(field, value.as_bytes());
}
