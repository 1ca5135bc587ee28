//! The closing handshake (RFC 6455 §7) as a proxy sees it: whose Close frames have passed, whose is
//! awaited, and how the WebSocket ends.

use crate::frame::{Close, CloseCode, Status};

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The upstream.
    Server,
    /// The downstream.
    Client,
}

impl Side {
    /// The other one.
    pub fn peer(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }
}

/// Whose Close frame was the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The upstream's.
    Server,
    /// The downstream's.
    Client,
    /// One of the filter's own.
    Filter,
}

impl Initiator {
    /// Its name in metrics and access logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Filter => "filter",
        }
    }
}

/// How a WebSocket ended, by the Close frames that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both.
    Clean,
    /// Only the server's.
    ServerOnly,
    /// Only the client's.
    ClientOnly,
    /// None.
    Abnormal,
}

impl Outcome {
    /// Its name in metrics and access logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::ServerOnly => "server_only",
            Self::ClientOnly => "client_only",
            Self::Abnormal => "abnormal",
        }
    }
}

/// What a closing handshake waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The Close frame of this side, in answer to that of the other (RFC 6455 §5.5.1).
    Answer(Side),
    /// The end of the upstream: the server closes TCP first (RFC 6455 §7.1.1).
    TcpClose,
}

impl Awaited {
    /// The side that has to do it.
    pub fn side(self) -> Side {
        match self {
            Self::Answer(side) => side,
            Self::TcpClose => Side::Server,
        }
    }
}

/// What the upstream leaves behind when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamEnd {
    /// A server that has closed, or that a client had answered: no failure.
    Finished,
    /// The server never answered its client.
    Unanswered,
    /// A client that the filter has told to close and that has not answered: it needs no answer itself.
    Told,
    /// No Close frame of either side.
    Missing,
}

/// The Close frames of one WebSocket.
#[derive(Debug, Default)]
pub struct Handshake {
    first: Option<Initiator>,
    // In boxes: most of its life a WebSocket has none.
    server: Option<Box<Close>>,
    client: Option<Box<Close>>,
    /// The filter's own, and whom it was sent to.
    own: Option<(Side, Box<Close>)>,
}

impl Handshake {
    /// Before any Close frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// A Close frame of `side` has passed. Only the first of a side counts.
    pub fn on_close(&mut self, side: Side, close: Close) {
        let (slot, initiator) = match side {
            Side::Server => (&mut self.server, Initiator::Server),
            Side::Client => (&mut self.client, Initiator::Client),
        };
        slot.get_or_insert_with(|| Box::new(close));
        self.first.get_or_insert(initiator);
    }

    /// The filter has sent `close` to one side of a WebSocket on which nobody had closed.
    pub fn on_own_close(&mut self, to: Side, close: Close) {
        self.own = Some((to, Box::new(close)));
        self.first = Some(Initiator::Filter);
    }

    /// The side of which nothing may reach the other any more: that other has had a Close frame of
    /// the filter's, behind which nothing may come (RFC 6455 §5.5.1).
    pub fn discarded(&self) -> Option<Side> {
        self.own.as_ref().map(|(to, _)| to.peer())
    }

    /// Whether this side's own Close frame has passed.
    pub fn has_closed(&self, side: Side) -> bool {
        match side {
            Side::Server => self.server.is_some(),
            Side::Client => self.client.is_some(),
        }
    }

    /// Whether the peer of `side` has had a Close frame from it: its own, or the filter's in its name.
    fn appears_closed(&self, side: Side) -> bool {
        self.has_closed(side) || self.discarded() == Some(side)
    }

    /// Whether there has been no Close frame yet.
    pub fn is_open(&self) -> bool {
        self.first.is_none()
    }

    /// What it waits for; `None` before the first Close frame.
    pub fn awaited(&self) -> Option<Awaited> {
        match (self.appears_closed(Side::Server), self.appears_closed(Side::Client)) {
            (false, false) => None,
            (true, false) => Some(Awaited::Answer(Side::Client)),
            (false, true) => Some(Awaited::Answer(Side::Server)),
            (true, true) => Some(Awaited::TcpClose),
        }
    }

    /// What it means that the upstream ends now.
    pub fn upstream_end(&self) -> UpstreamEnd {
        if self.has_closed(Side::Server) || self.awaited() == Some(Awaited::TcpClose) {
            UpstreamEnd::Finished
        } else if self.appears_closed(Side::Client) {
            UpstreamEnd::Unanswered
        } else if self.appears_closed(Side::Server) {
            UpstreamEnd::Told
        } else {
            UpstreamEnd::Missing
        }
    }

    /// Who sent the first Close frame.
    pub fn initiator(&self) -> Option<Initiator> {
        self.first
    }

    /// The first Close frame that passed: its code and reason are the WebSocket's.
    pub fn first_close(&self) -> Option<&Close> {
        match self.first? {
            Initiator::Server => self.server.as_deref(),
            Initiator::Client => self.client.as_deref(),
            Initiator::Filter => self.own.as_ref().map(|(_, close)| close.as_ref()),
        }
    }

    /// The answer that the server never gave its client. If the client has sent one, the answer to that (RFC 6455
    /// §5.5.1): its own status code without a reason, an empty one if it gave none, and 1002 if its
    /// payload was not valid. Else that which the filter has sent the server. `None` if there is
    /// neither.
    pub fn missing_answer(&self) -> Option<Close> {
        let Some(client) = &self.client else {
            return self.own.as_ref().map(|(_, close)| **close);
        };
        let code = match client.status() {
            Status::None => return Some(Close::empty()),
            Status::Code(code, _) => code,
            Status::Invalid => CloseCode::PROTOCOL_ERROR,
        };
        Close::new(code, "")
    }

    /// How it ended, or would if it ended now. A Close frame of the filter's counts as sent by the
    /// side in whose name it was.
    pub fn outcome(&self) -> Outcome {
        match (self.appears_closed(Side::Server), self.appears_closed(Side::Client)) {
            (true, true) => Outcome::Clean,
            (true, false) => Outcome::ServerOnly,
            (false, true) => Outcome::ClientOnly,
            (false, false) => Outcome::Abnormal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(code: u16, reason: &str) -> Close {
        Close::new(CloseCode::new(code).unwrap(), reason).unwrap()
    }

    /// Every set of Close frames: the server's, the client's, and one of the filter's to either side.
    #[test]
    fn every_set_of_close_frames() {
        use Side::{Client, Server};
        let answer = |side| Some(Awaited::Answer(side));
        let tcp = Some(Awaited::TcpClose);
        #[rustfmt::skip]
        let table = [
            // own to,      server, client, awaited,        outcome,             at the upstream's end
            (None,          false,  false,  None,           Outcome::Abnormal,   UpstreamEnd::Missing),
            (None,          true,   false,  answer(Client), Outcome::ServerOnly, UpstreamEnd::Finished),
            (None,          false,  true,   answer(Server), Outcome::ClientOnly, UpstreamEnd::Unanswered),
            (None,          true,   true,   tcp,            Outcome::Clean,      UpstreamEnd::Finished),
            (Some(Client),  false,  false,  answer(Client), Outcome::ServerOnly, UpstreamEnd::Told),
            (Some(Client),  true,   false,  answer(Client), Outcome::ServerOnly, UpstreamEnd::Finished),
            (Some(Client),  false,  true,   tcp,            Outcome::Clean,      UpstreamEnd::Finished),
            (Some(Client),  true,   true,   tcp,            Outcome::Clean,      UpstreamEnd::Finished),
            (Some(Server),  false,  false,  answer(Server), Outcome::ClientOnly, UpstreamEnd::Unanswered),
            (Some(Server),  true,   false,  tcp,            Outcome::Clean,      UpstreamEnd::Finished),
            (Some(Server),  false,  true,   answer(Server), Outcome::ClientOnly, UpstreamEnd::Unanswered),
            (Some(Server),  true,   true,   tcp,            Outcome::Clean,      UpstreamEnd::Finished),
        ];
        for (own, server, client, awaited, outcome, end) in table {
            let mut handshake = Handshake::new();
            if let Some(to) = own {
                handshake.on_own_close(to, close(1001, "bye"));
            }
            for (side, closes) in [(Server, server), (Client, client)] {
                if closes {
                    handshake.on_close(side, close(1000, ""));
                }
            }
            let row = (handshake.awaited(), handshake.outcome(), handshake.upstream_end());
            assert_eq!(row, (awaited, outcome, end), "{own:?}, {server}, {client}");
            assert_eq!(handshake.is_open(), awaited.is_none());
        }
    }

    #[test]
    fn the_first_close_frame_is_the_one_that_counts() {
        let mut handshake = Handshake::new();
        handshake.on_close(Side::Client, close(4000, "bye"));
        handshake.on_close(Side::Client, close(4001, "again"));
        handshake.on_close(Side::Server, close(1000, ""));
        assert_eq!(handshake.initiator(), Some(Initiator::Client));
        assert_eq!(handshake.first_close(), Some(&close(4000, "bye")));
    }

    #[test]
    fn a_close_frame_of_the_filters() {
        let mut downstream = Handshake::new();
        downstream.on_own_close(Side::Client, close(1001, "bye"));
        assert_eq!(downstream.discarded(), Some(Side::Server));
        downstream.on_close(Side::Client, close(1001, ""));
        assert_eq!(downstream.initiator(), Some(Initiator::Filter));
        assert_eq!(downstream.first_close(), Some(&close(1001, "bye")));

        let mut upstream = Handshake::new();
        upstream.on_own_close(Side::Server, close(1001, "bye"));
        assert_eq!(upstream.discarded(), Some(Side::Client));
        assert_eq!(upstream.missing_answer(), Some(close(1001, "bye")));
        upstream.on_close(Side::Client, close(4000, "me too"));
        assert_eq!(upstream.missing_answer(), Some(close(4000, "")));
    }

    #[test]
    fn missing_answers() {
        let missing = |client| {
            let mut handshake = Handshake::new();
            handshake.on_close(Side::Client, client);
            handshake.missing_answer()
        };
        let invalid = {
            let mut close = Close::empty();
            close.extend(&[3]);
            close
        };
        assert_eq!(missing(close(4321, "my reason")), Some(close(4321, "")));
        assert_eq!(missing(Close::empty()), Some(Close::empty()));
        assert_eq!(missing(invalid), Some(close(1002, "")));
        assert_eq!(Handshake::new().missing_answer(), None);
    }

    #[test]
    fn names() {
        let initiators = [Initiator::Server, Initiator::Client, Initiator::Filter];
        assert_eq!(initiators.map(Initiator::name), ["server", "client", "filter"]);
        use Outcome::*;
        let names = [Clean, ServerOnly, ClientOnly, Abnormal].map(Outcome::name);
        assert_eq!(names, ["clean", "server_only", "client_only", "abnormal"]);
        assert_eq!([Side::Server.peer(), Side::Client.peer()], [Side::Client, Side::Server]);
        assert_eq!(Awaited::TcpClose.side(), Side::Server);
        assert_eq!(Awaited::Answer(Side::Client).side(), Side::Client);
    }
}
