//! The fields of the access log, `%FILTER_STATE(wasm.websocket_close_…:PLAIN)%`.

use ws_clean_close_core::frame::Status;
use ws_clean_close_core::Session;

use crate::host;

/// The field that a WebSocket has from its opening on.
pub const OUTCOME: &str = "websocket_close_outcome";

/// Keeps them as they would be if the stream ended now: Envoy writes the log before a filter learns of
/// the end.
pub fn update(session: &Session) {
    host::set_property(OUTCOME, session.outcome().as_bytes());
    let Some((initiator, close)) = session.closed_by() else {
        return;
    };
    set("initiator", initiator.name());
    match close.map(|close| close.status()) {
        None => {}
        Some(Status::None) => set("code", "1005"),
        Some(Status::Invalid) => set("code", "invalid"),
        Some(Status::Code(code, reason)) => {
            set("code", &code.get().to_string());
            // What a peer sends must not write lines of its own into anybody's log.
            set("reason", &reason.replace(|c: char| c.is_control(), ""));
        }
    }
}

fn set(name: &str, value: &str) {
    host::set_property(&format!("websocket_close_{name}"), value.as_bytes());
}
