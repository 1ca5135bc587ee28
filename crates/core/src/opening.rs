//! What is known of a WebSocket when its 101 comes.

use std::time::Duration;

use crate::frame::{Close, Fault};
use crate::handshake::Side;
use crate::scanner::{Chunk, Scanner};

/// What the upstream speaks, which decides how its end shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// HTTP/1.1: its end is an empty chunk. So is, right behind the 101, a head with nothing behind it
    /// (`ConnectionImpl::maybeDirectDispatch` in Envoy's source/common/http/http1/codec_impl.cc).
    Http1,
    /// HTTP/2 or HTTP/3: its end is the end of the stream, and an empty chunk is an empty DATA frame.
    Multiplexed,
    /// The 101 does not show it. If the first chunk is empty, it is HTTP/1.1; else it is taken for
    /// multiplexed, of which the wrong answer costs a prompt end and the right one a living WebSocket.
    Unknown,
}

/// The connections on either side of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The downstream is HTTP/1.1: its connection carries nothing else and may be closed.
    pub owns_connection: bool,
    /// The upstream's protocol.
    pub upstream: Upstream,
}

/// What is known when the 101 comes.
#[derive(Debug)]
pub struct Opening {
    /// The connections.
    pub link: Link,
    /// 0 to 1: how far into its `jitter` this session is closed for its age.
    pub fraction: f64,
    /// How long the client's token is still valid; zero if it is not. Asked for if `maxAge.claim` is set.
    pub token_valid_for: Option<Duration>,
    /// What the client sent before the 101.
    pub early: Option<EarlyData>,
}

/// What a client sends before the 101, which Envoy forwards. It is followed before anybody knows
/// whether the stream becomes a WebSocket.
#[derive(Debug)]
pub struct EarlyData {
    pub(crate) scanner: Scanner,
    pub(crate) close: Option<Box<Close>>,
    pub(crate) fault: Option<Fault>,
}

impl Default for EarlyData {
    fn default() -> Self {
        Self { scanner: Scanner::new(Side::Client), close: None, fault: None }
    }
}

impl EarlyData {
    /// The client's next chunk; returns whether a further one can still tell anything.
    pub fn on_data(&mut self, chunk: &mut impl Chunk) -> bool {
        let (close, fault) = self.scanner.find_close(chunk);
        self.close = self.close.take().or(close);
        self.fault = self.fault.or(fault);
        self.scanner.is_scanning()
    }
}
