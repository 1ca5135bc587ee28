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
    /// multiplexed, of which the wrong answer costs an immediate end and the right one a living WebSocket.
    Unknown,
}

impl Upstream {
    /// As the headers of the 101 show it, names in lower case and in the order in which they came.
    ///
    /// For HTTP/2 and HTTP/3 Envoy makes an upgrade of the response to an extended CONNECT and adds
    /// `connection: upgrade` behind all others (`Utility::transformUpgradeResponseFromH2toH1` in
    /// source/common/http/utility.cc). HTTP/1.1 servers must send `Sec-WebSocket-Accept` (RFC 6455
    /// §4.2.2), which RFC 8441 does without, but a proxy may pass on.
    pub fn of_headers<'a>(headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut accepted = false;
        let mut connection = None;
        for (name, value) in headers {
            match name {
                b"sec-websocket-accept" => accepted = true,
                b"connection" => connection = Some((value, accepted)),
                _ => {}
            }
        }
        match connection {
            Some((value, _)) if value != b"upgrade" => Self::Http1,
            _ if !accepted => Self::Multiplexed,
            Some((_, false)) => Self::Http1,
            _ => Self::Unknown,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams() {
        let accept = (&b"sec-websocket-accept"[..], &b"x"[..]);
        let connection = |value: &'static [u8]| (&b"connection"[..], value);
        let of = |headers: &[(&'static [u8], &'static [u8])]| {
            Upstream::of_headers(headers.iter().copied())
        };
        let status = (&b":status"[..], &b"101"[..]);
        assert_eq!(of(&[status, accept, connection(b"Upgrade")]), Upstream::Http1);
        assert_eq!(of(&[status, connection(b"upgrade"), accept]), Upstream::Http1);
        assert_eq!(of(&[status, connection(b"keep-alive, upgrade")]), Upstream::Http1);
        assert_eq!(of(&[status, accept, connection(b"upgrade")]), Upstream::Unknown);
        assert_eq!(of(&[status, accept]), Upstream::Unknown);
        assert_eq!(of(&[status, connection(b"upgrade")]), Upstream::Multiplexed);
        assert_eq!(of(&[]), Upstream::Multiplexed);
    }
}
