//! What a session answers with.

use std::time::Duration;

use crate::counter::Counter;

/// What becomes of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChunkAction {
    /// It passes as it is.
    #[default]
    Pass,
    /// Nothing of it passes.
    Discard,
    /// What is in front of this offset passes, 0 to its length, and behind it [`Session::injection`](crate::Session::injection)
    /// instead of the rest. Then [`Session::on_injected`](crate::Session::on_injected).
    Inject(usize),
}

/// What to do.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// What becomes of the chunk in hand.
    pub chunk: ChunkAction,
    /// End the stream from this side, so that it is no failure of the upstream.
    pub reset: bool,
    /// The deadline may be another one, and the access log's fields too.
    pub changed: bool,
    /// Count this.
    pub count: Option<Counter>,
}

/// What to count and to do when the stream is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct End {
    /// How it ended, who began it, with which code.
    pub counters: [Option<Counter>; 3],
    /// From the first Close frame to the end.
    pub handshake: Option<Duration>,
    /// Close the downstream connection: flush, then FIN. Otherwise it is left to Envoy.
    pub close_connection: bool,
    /// The upstream speaks HTTP/1.1, and its end was not shown. Nothing is wrong with that if the client
    /// ended the stream.
    pub end_unseen: bool,
}
