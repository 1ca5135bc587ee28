//! The closing handshake (RFC 6455 §7) as a proxy sees it: events in, one decision out.
//!
//! Pure: no time, no frames of its own making, no proxy. [`step`] is the whole rule.

use crate::frame::{Close, Status};

/// Where a WebSocket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No Close frame has passed.
    Open,
    /// The server's Close frame has passed, the client has not answered.
    ServerClosing,
    /// The client's Close frame has passed, the server has not answered.
    ClientClosing,
    /// Both Close frames have passed. The server closes TCP first (RFC 6455 §7.1.1).
    Closed,
    /// The filter has sent the client a Close frame, which has not been answered. Nothing that the
    /// server sends reaches the client any more.
    Dismissed,
    /// The filter has sent the server a Close frame in the client's name, which has not been
    /// answered. Nothing that the client sends reaches the server any more.
    Asked,
    /// The frames of an open WebSocket were lost: only its end can still be told.
    Untracked,
    /// The end has been decided.
    Ended,
}

/// What happens to a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole Close frame of the server passed.
    ServerClose,
    /// A whole Close frame of the client passed.
    ClientClose,
    /// The filter has sent the client a Close frame of its own.
    Dismissal,
    /// The filter has sent the server a Close frame of its own.
    Request,
    /// The frames of one direction cannot be followed any more.
    Fault,
    /// The server has closed TCP, between two frames: a frame may still be added.
    ServerEnd,
    /// The server has closed TCP inside a frame, or nobody knows where: nothing may be added.
    ServerCut,
    /// The time limit that was asked for is over.
    Timeout,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Pass,
    /// Wait for the other side's Close frame, at most `closeHandshakeTimeout`.
    AwaitAnswer,
    /// Wait for the server to close TCP, at most `tcpCloseTimeout`.
    AwaitTcpClose,
    /// End the stream from this side, so that it is nobody's failure, and the connection with it.
    Finish,
    /// The stream is ending as a failure of the server, which it is. End the connection with it.
    Drop,
    /// As `Drop`, but the client is owed a Close frame: the answer to its own, or that to the filter's.
    Answer,
    /// As `Drop`, but no Close frame was seen at all: the operator may want to give a code.
    Abandon,
}

/// The closing handshake: every pair of state and event.
pub fn step(state: State, event: Event) -> (State, Decision) {
    use Decision::*;
    use Event::*;
    use State::*;
    match (state, event) {
        (Open, ServerClose) => (ServerClosing, AwaitAnswer),
        (Open, ClientClose) => (ClientClosing, AwaitAnswer),
        (Open, Fault) => (Untracked, Pass),
        (Open, ServerEnd) => (Ended, Abandon),
        (Open, ServerCut) => (Ended, Drop),
        (Open, Dismissal) => (Dismissed, AwaitAnswer),
        (Open, Request) => (Asked, AwaitAnswer),
        (Open, Timeout) => (Open, Pass),

        (ServerClosing, ClientClose) => (Closed, AwaitTcpClose),
        (ServerClosing, ServerEnd | ServerCut | Timeout) => (Ended, Finish),

        (ClientClosing, ServerClose) => (Closed, AwaitTcpClose),
        (ClientClosing, ServerEnd) => (Ended, Answer),
        (ClientClosing, ServerCut) => (Ended, Drop),
        (ClientClosing, Timeout) => (Ended, Finish),

        (Closed, ServerEnd | ServerCut | Timeout) => (Ended, Finish),

        // The client has its Close frame already: it stays the one that is to be answered.
        (Dismissed, ServerClose) => (ServerClosing, Pass),
        (Dismissed, ClientClose) => (Closed, AwaitTcpClose),
        (Dismissed, ServerEnd | ServerCut) => (Ended, Drop),
        (Dismissed, Timeout) => (Ended, Finish),

        (Asked, ServerClose) => (ServerClosing, AwaitAnswer),
        // The server has its Close frame already: its answer will be the client's too.
        (Asked, ClientClose) => (ClientClosing, Pass),
        (Asked, ServerEnd) => (Ended, Answer),
        (Asked, ServerCut) => (Ended, Drop),
        (Asked, Timeout) => (Ended, Finish),

        (Untracked, ServerEnd | ServerCut) => (Ended, Drop),
        (Untracked, Timeout) => (Untracked, Pass),

        (Ended, _) => (Ended, Pass),
        // A second Close frame of the same side changes nothing, nor do frames that are lost behind
        // the first; and the filter has nothing to say where somebody else is closing.
        (_, ServerClose | ClientClose | Fault | Dismissal | Request) => (state, Pass),
    }
}

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The upstream.
    Server,
    /// The downstream.
    Client,
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
    /// The word for it in metrics and access logs.
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
    /// The word for it in metrics and access logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::ServerOnly => "server_only",
            Self::ClientOnly => "client_only",
            Self::Abnormal => "abnormal",
        }
    }
}

/// One WebSocket's closing handshake: where it stands and what has passed.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    server: Option<Close>,
    client: Option<Close>,
    /// The filter's own, and whom it was sent to.
    own: Option<(Side, Close)>,
    initiator: Option<Initiator>,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// Before any Close frame.
    pub fn new() -> Self {
        Self { state: State::Open, server: None, client: None, own: None, initiator: None }
    }

    /// Takes the next event.
    pub fn on(&mut self, event: Event) -> Decision {
        let (state, decision) = step(self.state, event);
        self.state = state;
        decision
    }

    /// Takes a Close frame of one side.
    pub fn on_close(&mut self, side: Side, close: Close) -> Decision {
        if !matches!(self.state, State::Untracked | State::Ended) {
            let (slot, initiator) = match side {
                Side::Server => (&mut self.server, Initiator::Server),
                Side::Client => (&mut self.client, Initiator::Client),
            };
            slot.get_or_insert(close);
            self.initiator.get_or_insert(initiator);
        }
        self.on(match side {
            Side::Server => Event::ServerClose,
            Side::Client => Event::ClientClose,
        })
    }

    /// The filter has sent `close` to one side of an open WebSocket.
    pub fn on_own_close(&mut self, to: Side, close: Close) -> Decision {
        self.own = Some((to, close));
        self.initiator = Some(Initiator::Filter);
        self.on(match to {
            Side::Client => Event::Dismissal,
            Side::Server => Event::Request,
        })
    }

    /// The side of which nothing may reach the other any more: that other has had a Close frame of
    /// the filter's, behind which nothing may come (RFC 6455 §5.5.1).
    pub fn muted(&self) -> Option<Side> {
        match self.own?.0 {
            Side::Client => Some(Side::Server),
            Side::Server => Some(Side::Client),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Who sent the first Close frame.
    pub fn initiator(&self) -> Option<Initiator> {
        self.initiator
    }

    /// Whether this side's Close frame has passed.
    pub fn has_closed(&self, side: Side) -> bool {
        match side {
            Side::Server => self.server.is_some(),
            Side::Client => self.client.is_some(),
        }
    }

    /// The first Close frame that passed: its code and reason are the WebSocket's.
    pub fn first_close(&self) -> Option<&Close> {
        match self.initiator? {
            Initiator::Server => self.server.as_ref(),
            Initiator::Client => self.client.as_ref(),
            Initiator::Filter => self.own.as_ref().map(|(_, close)| close),
        }
    }

    /// The Close frame that the client is owed. Where it has sent one, the answer to that (RFC 6455
    /// §5.5.1): its own status code without a reason, an empty one where it gave none, and 1002 where
    /// its payload was not valid. Else that which the filter has sent the server. `None` where there
    /// is neither.
    pub fn owed_answer(&self) -> Option<Close> {
        let Some(client) = &self.client else {
            return self.own.map(|(_, close)| close);
        };
        let code = match client.status() {
            Status::None => return Some(Close::empty()),
            Status::Code(code, _) => code,
            Status::Invalid => crate::frame::CloseCode::PROTOCOL_ERROR,
        };
        Close::new(code, "")
    }

    /// How it ended, or would if it ended now.
    pub fn outcome(&self) -> Outcome {
        // A Close frame of the filter's stands for that of the side in whose name it was sent.
        let passed = |side, close: &Option<Close>| close.is_some() || self.muted() == Some(side);
        match (passed(Side::Server, &self.server), passed(Side::Client, &self.client)) {
            (true, true) => Outcome::Clean,
            (true, false) => Outcome::ServerOnly,
            (false, true) => Outcome::ClientOnly,
            (false, false) => Outcome::Abnormal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Decision::*;
    use super::Event::*;
    use super::State::*;
    use super::*;
    use crate::frame::CloseCode;

    const STATES: [State; 8] =
        [Open, ServerClosing, ClientClosing, Closed, Dismissed, Asked, Untracked, Ended];
    const EVENTS: [Event; 8] =
        [ServerClose, ClientClose, Dismissal, Request, Fault, ServerEnd, ServerCut, Timeout];

    /// The table, written a second time as a table: a row a state, a column an event.
    #[test]
    fn every_pair_of_state_and_event() {
        #[rustfmt::skip]
        let table = [
            //              ServerClose                    ClientClose                    Dismissal                 Request                Fault                  ServerEnd         ServerCut        Timeout
            /* Open */     [(ServerClosing, AwaitAnswer), (ClientClosing, AwaitAnswer), (Dismissed, AwaitAnswer), (Asked, AwaitAnswer),  (Untracked, Pass),     (Ended, Abandon), (Ended, Drop),   (Open, Pass)],
            /* SrvClosing*/[(ServerClosing, Pass),        (Closed, AwaitTcpClose),      (ServerClosing, Pass),    (ServerClosing, Pass), (ServerClosing, Pass), (Ended, Finish),  (Ended, Finish), (Ended, Finish)],
            /* CliClosing*/[(Closed, AwaitTcpClose),      (ClientClosing, Pass),        (ClientClosing, Pass),    (ClientClosing, Pass), (ClientClosing, Pass), (Ended, Answer),  (Ended, Drop),   (Ended, Finish)],
            /* Closed */   [(Closed, Pass),               (Closed, Pass),               (Closed, Pass),           (Closed, Pass),        (Closed, Pass),        (Ended, Finish),  (Ended, Finish), (Ended, Finish)],
            /* Dismissed */[(ServerClosing, Pass),        (Closed, AwaitTcpClose),      (Dismissed, Pass),        (Dismissed, Pass),     (Dismissed, Pass),     (Ended, Drop),    (Ended, Drop),   (Ended, Finish)],
            /* Asked */    [(ServerClosing, AwaitAnswer), (ClientClosing, Pass),        (Asked, Pass),            (Asked, Pass),         (Asked, Pass),         (Ended, Answer),  (Ended, Drop),   (Ended, Finish)],
            /* Untracked */[(Untracked, Pass),            (Untracked, Pass),            (Untracked, Pass),        (Untracked, Pass),     (Untracked, Pass),     (Ended, Drop),    (Ended, Drop),   (Untracked, Pass)],
            /* Ended */    [(Ended, Pass),                (Ended, Pass),                (Ended, Pass),            (Ended, Pass),         (Ended, Pass),         (Ended, Pass),    (Ended, Pass),   (Ended, Pass)],
        ];
        for (state, row) in STATES.into_iter().zip(table) {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(step(state, event), expected, "{state:?}, {event:?}");
            }
        }
    }

    fn close(code: u16, reason: &str) -> Close {
        Close::new(CloseCode::new(code).unwrap(), reason).unwrap()
    }

    #[test]
    fn the_first_close_frame_is_the_one_that_counts() {
        let mut handshake = Handshake::new();
        assert_eq!(handshake.outcome(), Outcome::Abnormal);
        handshake.on_close(Side::Client, close(4000, "bye"));
        assert_eq!(handshake.outcome(), Outcome::ClientOnly);
        handshake.on_close(Side::Client, close(4001, "again"));
        handshake.on_close(Side::Server, close(1000, ""));
        assert_eq!(handshake.initiator(), Some(Initiator::Client));
        assert_eq!(handshake.first_close(), Some(&close(4000, "bye")));
        assert_eq!(handshake.outcome(), Outcome::Clean);
    }

    #[test]
    fn an_untracked_websocket_has_no_close() {
        let mut handshake = Handshake::new();
        handshake.on(Fault);
        assert_eq!(handshake.on_close(Side::Server, close(1000, "")), Pass);
        assert_eq!(handshake.outcome(), Outcome::Abnormal);
        assert_eq!(handshake.first_close(), None);
    }

    /// What the filter has sent counts as sent by the side in whose name it was.
    #[test]
    fn a_close_frame_of_the_filters() {
        let mut dismissed = Handshake::new();
        dismissed.on_own_close(Side::Client, close(1001, "bye"));
        assert_eq!(dismissed.muted(), Some(Side::Server));
        assert_eq!(dismissed.outcome(), Outcome::ServerOnly);
        dismissed.on_close(Side::Client, close(1001, ""));
        assert_eq!(dismissed.outcome(), Outcome::Clean);
        assert_eq!(dismissed.initiator(), Some(Initiator::Filter));
        assert_eq!(dismissed.first_close(), Some(&close(1001, "bye")));

        let mut asked = Handshake::new();
        asked.on_own_close(Side::Server, close(1001, "bye"));
        assert_eq!(asked.muted(), Some(Side::Client));
        assert_eq!(asked.outcome(), Outcome::ClientOnly);
        assert_eq!(asked.owed_answer(), Some(close(1001, "bye")));
        asked.on_close(Side::Client, close(4000, "me too"));
        assert_eq!(asked.owed_answer(), Some(close(4000, "")));
        asked.on_close(Side::Server, close(1001, ""));
        assert_eq!(asked.outcome(), Outcome::Clean);
    }

    #[test]
    fn owed_answers() {
        let owed = |client| {
            let mut handshake = Handshake::new();
            handshake.on_close(Side::Client, client);
            handshake.owed_answer()
        };
        assert_eq!(owed(close(4321, "my reason")), Some(close(4321, "")));
        assert_eq!(owed(Close::empty()), Some(Close::empty()));
        assert_eq!(Handshake::new().owed_answer(), None);
    }
}
