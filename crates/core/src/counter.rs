//! The metrics and their names.
//!
//! Envoy shows them as `wasmcustom.websocket…`, Prometheus as `websocket_…`.

use crate::frame::Status;
use crate::handshake::Outcome;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// Every counter, in the order of its discriminant.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in Envoy, less the prefix `wasmcustom.`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    /// Responses 101 with `upgrade: websocket`.
    Upgrades = "websocket.upgrades",
    /// HTTP/1.1 connections without the network filter.
    Unpaired = "websocket.unpaired",
    /// WebSockets whose frames could not be followed.
    Untracked = "websocket.untracked",
    /// Both Close frames passed.
    ClosedClean = "websocket.closed.clean",
    /// Only the server's Close frame passed.
    ClosedServerOnly = "websocket.closed.server_only",
    /// Only the client's Close frame passed.
    ClosedClientOnly = "websocket.closed.client_only",
    /// No Close frame passed.
    ClosedAbnormal = "websocket.closed.abnormal",
    /// The first Close frame was the server's.
    InitiatorServer = "websocket.initiator.server",
    /// The first Close frame was the client's.
    InitiatorClient = "websocket.initiator.client",
    /// Normal closure.
    Code1000 = "websocket.code.1000",
    /// Going away.
    Code1001 = "websocket.code.1001",
    /// Protocol error.
    Code1002 = "websocket.code.1002",
    /// Unsupported data.
    Code1003 = "websocket.code.1003",
    /// No status code in the Close frame.
    Code1005 = "websocket.code.1005",
    /// Invalid frame payload data.
    Code1007 = "websocket.code.1007",
    /// Policy violation.
    Code1008 = "websocket.code.1008",
    /// Message too big.
    Code1009 = "websocket.code.1009",
    /// Mandatory extension.
    Code1010 = "websocket.code.1010",
    /// Internal error.
    Code1011 = "websocket.code.1011",
    /// Service restart.
    Code1012 = "websocket.code.1012",
    /// Try again later.
    Code1013 = "websocket.code.1013",
    /// Bad gateway.
    Code1014 = "websocket.code.1014",
    /// 3000 to 3999.
    CodeRegistered = "websocket.code.registered",
    /// 4000 to 4999.
    CodePrivate = "websocket.code.private",
    /// A Close frame whose payload is not valid.
    CodeInvalid = "websocket.code.invalid",
    /// The client's Close frame was answered instead of the server.
    SentAnswer = "websocket.sent.answer",
    /// A Close frame was sent instead of a server that died.
    SentAbnormal = "websocket.sent.abnormal",
    /// A Close frame was sent because of `maxAge`.
    SentMaxAge = "websocket.sent.max_age",
    /// A Close frame was sent because of `drain`.
    SentDrain = "websocket.sent.drain",
    /// `closeHandshakeTimeout` was over.
    TimeoutHandshake = "websocket.timeout.handshake",
    /// `tcpCloseTimeout` was over.
    TimeoutTcp = "websocket.timeout.tcp",
    /// Ended without a Close frame, because nobody spoke for `endSilentAfter`.
    EndedSilent = "websocket.ended.silent",
    /// The upstream ended and the filter was not shown it: another filter holds data between it and
    /// the router.
    EndUnseen = "websocket.end_unseen",
}

/// The gauge of open WebSockets.
pub const ACTIVE: &str = "websocket.active";
/// The histogram of milliseconds from the first Close frame to the end of the stream.
pub const HANDSHAKE_MS: &str = "websocket.handshake_ms";

impl Counter {
    /// The counter for how a WebSocket ended.
    pub fn of_outcome(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Clean => Self::ClosedClean,
            Outcome::ServerOnly => Self::ClosedServerOnly,
            Outcome::ClientOnly => Self::ClosedClientOnly,
            Outcome::Abnormal => Self::ClosedAbnormal,
        }
    }

    /// The counter for the status of a Close frame.
    pub fn of_status(status: Status<'_>) -> Self {
        match status {
            Status::None => Self::Code1005,
            Status::Invalid => Self::CodeInvalid,
            Status::Code(code, _) => match code.get() {
                1000 => Self::Code1000,
                1001 => Self::Code1001,
                1002 => Self::Code1002,
                1003 => Self::Code1003,
                1007 => Self::Code1007,
                1008 => Self::Code1008,
                1009 => Self::Code1009,
                1010 => Self::Code1010,
                1011 => Self::Code1011,
                1012 => Self::Code1012,
                1013 => Self::Code1013,
                1014 => Self::Code1014,
                3000..=3999 => Self::CodeRegistered,
                4000..=4999 => Self::CodePrivate,
                _ => Self::CodeInvalid,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Close, CloseCode};

    #[test]
    fn counters_stand_in_the_order_of_their_discriminants() {
        for (i, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
    }

    #[test]
    fn outcomes_and_odd_payloads() {
        use Outcome::*;
        for outcome in [Clean, ServerOnly, ClientOnly, Abnormal] {
            let name = Counter::of_outcome(outcome).name();
            assert_eq!(name, format!("websocket.closed.{}", outcome.name()));
        }
        assert_eq!(Counter::of_status(Status::None).name(), "websocket.code.1005");
        assert_eq!(Counter::of_status(Status::Invalid).name(), "websocket.code.invalid");
    }

    #[test]
    fn every_code_that_may_be_on_the_wire_has_a_counter() {
        for code in (0..=u16::MAX).filter_map(CloseCode::new) {
            let close = Close::new(code, "").unwrap();
            let name = Counter::of_status(close.status()).name();
            match code.get() {
                3000..=3999 => assert_eq!(name, "websocket.code.registered"),
                4000.. => assert_eq!(name, "websocket.code.private"),
                code => assert_eq!(name, format!("websocket.code.{code}")),
            }
        }
    }
}
