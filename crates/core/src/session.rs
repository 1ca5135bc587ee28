//! One WebSocket, from the 101 to the end of its stream: every rule of the product.
//!
//! A [`Session`] is given what happens, each with its time, and answers with [`Actions`]: what becomes
//! of the bytes in hand and of the stream. It asks for one deadline ([`Session::next_timeout`]) and at
//! the end reports what to count and whether to close the connection ([`Session::end`]).
//!
//! The Close frames that the filter sends of its own accord (`drain`, `maxAge`) are in
//! `session/own_close.rs`.

mod own_close;

use std::rc::Rc;
use std::time::Duration;

use own_close::{Draining, Due};

use crate::actions::{Actions, ChunkAction, End};
use crate::activity::Activity;
use crate::config::HttpConfig;
use crate::counter::Counter;
use crate::drain::PATIENCE;
use crate::frame::{Close, Fault};
use crate::handshake::{Awaited, Handshake, Initiator, Side, UpstreamEnd};
use crate::opening::{EarlyData, Link, Opening, Upstream};
use crate::scanner::{Chunk, Scanner};
use crate::time::Instant;
use crate::timer::{Timer, Timers};

/// The server's chunks from this length on may be part of more than its client has read. Smaller ones
/// are soon read, and come too often to ask the time for each.
const LARGE_CHUNK: usize = 1024;
/// From this many bytes on a server may not have read what the client has sent, and so hold up what is
/// behind it, for at most so long. The buffers in between are not smaller.
const HELD_UP: (u64, Duration) = (64 * 1024, Duration::from_secs(60));
/// From this many bytes on a client may not have read what the server has sent, for at most so long.
const UNREAD: (u64, Duration) = (16 * 1024, Duration::from_secs(5));

/// A Close frame that is to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Injection {
    /// That of `drain` or `maxAge`, to this side.
    Own(Side),
    /// The answer that the server never gave.
    Answer,
    /// `abnormalClose`.
    Abnormal,
}

/// One WebSocket.
#[derive(Debug)]
pub struct Session {
    config: Rc<HttpConfig>,
    link: Link,
    from_server: Scanner,
    from_client: Scanner,
    handshake: Handshake,
    /// Why the frames are not followed any more.
    fault: Option<Fault>,
    client_activity: Activity,
    /// Of its large chunks alone.
    server_activity: Activity,
    timers: Timers,
    first_close: Option<Instant>,
    /// When the awaited side last sent anything, or began to be awaited.
    awaited_since: Instant,
    draining: Option<Box<Draining>>,
    due: Option<Box<Due>>,
    injection: Option<Injection>,
    /// The response body has begun.
    body_begun: bool,
    upstream_ended: bool,
    /// `abnormalClose` was sent.
    abnormal_sent: bool,
    /// A limit, or `endSilentAfter`, has ended it.
    timed_out: bool,
    ended_silent: bool,
}

impl Session {
    /// Follows the WebSocket that a 101 has opened at `now`.
    pub fn open(config: Rc<HttpConfig>, opening: Opening, now: Instant) -> (Self, Actions) {
        let Opening { link, fraction, token_valid_for, early } = opening;
        let EarlyData { scanner, close, fault } = early.unwrap_or_default();
        let mut session = Self {
            config,
            link,
            from_server: Scanner::new(Side::Server),
            from_client: scanner,
            handshake: Handshake::new(),
            fault: None,
            client_activity: Activity::default(),
            server_activity: Activity::default(),
            timers: Timers::default(),
            first_close: None,
            awaited_since: now,
            draining: None,
            due: None,
            injection: None,
            body_begun: false,
            upstream_ended: false,
            abnormal_sent: false,
            timed_out: false,
            ended_silent: false,
        };
        session.plan_closing(fraction, token_valid_for, now);
        let mut actions = Actions { changed: true, ..Actions::default() };
        session.scanned(Side::Client, close, fault, &|| now, &mut actions);
        (session, actions)
    }

    /// The next bytes of `side` are in hand, which may be none. `end_of_stream` is what the host says.
    /// `now` is asked only if the time matters.
    pub fn on_data(
        &mut self,
        side: Side,
        chunk: &mut impl Chunk,
        end_of_stream: bool,
        now: impl Fn() -> Instant,
    ) -> Actions {
        let mut actions = Actions::default();
        let len = chunk.len();
        let ends = side == Side::Server && self.ends_upstream(len == 0, end_of_stream);
        if len > 0 {
            self.note_activity(side, len, &now);
            if self.fault.is_none() && !self.handshake.has_closed(side) {
                let (close, fault) = self.scanner(side).find_close(chunk);
                self.scanned(side, close, fault, &now, &mut actions);
            }
            if self.handshake.discarded() == Some(side) {
                actions.chunk = ChunkAction::Discard;
            } else if !ends {
                self.place_own_close(side, &now, &mut actions);
            }
        }
        if ends {
            self.upstream_ends(len, end_of_stream, &mut actions);
        }
        actions
    }

    /// Whether this chunk is the upstream's end. An HTTP/1.1 upstream that closes TCP shows as an empty
    /// chunk, before Envoy resets the stream (`CodecClient::onEvent` in
    /// source/common/http/codec_client.cc: "HTTP/1 can signal end of response by disconnecting").
    fn ends_upstream(&mut self, empty: bool, end_of_stream: bool) -> bool {
        let first = !std::mem::replace(&mut self.body_begun, true);
        if first && empty && self.link.upstream == Upstream::Unknown {
            self.link.upstream = Upstream::Http1;
        }
        let ends = end_of_stream || (empty && !first && self.link.upstream == Upstream::Http1);
        ends && !self.upstream_ended
    }

    fn note_activity(&mut self, side: Side, len: usize, now: &impl Fn() -> Instant) {
        match side {
            Side::Client if !self.handshake.has_closed(side) => {
                self.client_activity.on_chunk(len, now());
            }
            Side::Server if len >= LARGE_CHUNK => self.server_activity.on_chunk(len, now()),
            Side::Client | Side::Server => {}
        }
        if self.handshake.awaited().is_some_and(|awaited| awaited.side() == side) {
            self.awaited_since = now();
        }
    }

    fn scanner(&mut self, side: Side) -> &mut Scanner {
        match side {
            Side::Server => &mut self.from_server,
            Side::Client => &mut self.from_client,
        }
    }

    /// What a chunk of `side` had in it.
    fn scanned(
        &mut self,
        side: Side,
        close: Option<Box<Close>>,
        fault: Option<Fault>,
        now: &impl Fn() -> Instant,
        actions: &mut Actions,
    ) {
        if let Some(close) = close {
            self.handshake.on_close(side, *close);
            self.awaits(now());
            actions.changed = true;
        }
        // What cannot be RFC 6455 in one direction is not in the other: a Close frame that has passed
        // there was none. No limit ends it, and nothing is added.
        if fault.is_some() {
            self.fault = fault;
            self.timers.stop(Timer::Limit);
            actions.count = Some(Counter::Untracked);
            actions.changed = true;
        }
    }

    /// A Close frame has passed, or has been sent. Starts the limit for what is awaited now.
    fn awaits(&mut self, now: Instant) {
        self.first_close.get_or_insert(now);
        self.awaited_since = now;
        match self.limit() {
            Some((_, limit)) => self.timers.set(Timer::Limit, now + limit),
            None => self.timers.stop(Timer::Limit),
        }
    }

    /// The limit for what is awaited.
    fn limit(&self) -> Option<(Counter, Duration)> {
        let (counter, limit) = match self.handshake.awaited()? {
            Awaited::Answer(_) => (Counter::TimeoutHandshake, self.config.close_handshake_timeout),
            Awaited::TcpClose => (Counter::TimeoutTcp, self.config.tcp_close_timeout),
        };
        Some((counter, limit?))
    }

    /// The upstream ends with this chunk, which has `len` bytes.
    fn upstream_ends(&mut self, len: usize, end_of_stream: bool, actions: &mut Actions) {
        self.upstream_ended = true;
        if !self.config.enforce {
            return;
        }
        // Inside a frame there is no place for another.
        let between_frames = self.fault.is_none() && self.from_server.at_boundary();
        let answers = self.config.answer_client_close
            || self.handshake.initiator() == Some(Initiator::Filter);
        let injection = match self.handshake.upstream_end() {
            UpstreamEnd::Unanswered if answers => Some(Injection::Answer),
            UpstreamEnd::Missing if self.config.abnormal_close.is_some() => {
                Some(Injection::Abnormal)
            }
            _ => None,
        };
        let failed = match self.handshake.upstream_end() {
            UpstreamEnd::Finished => false,
            _ => self.config.missing_close_is_failure || !between_frames,
        };
        if between_frames && injection.is_some() {
            // No reset: the frame would be lost.
            self.injection = injection;
            actions.chunk = ChunkAction::Inject(len);
        } else if !failed {
            // A stream that ends by itself would lose the bytes in hand.
            actions.reset = !end_of_stream;
        }
    }

    /// The bytes that [`ChunkAction::Inject`] speaks of: one Close frame. `mask` is for one in a
    /// client's name; any four random bytes (RFC 6455 §5.3).
    pub fn injection(&self, mask: impl FnOnce() -> [u8; 4]) -> Vec<u8> {
        let own = self.due.as_ref().map(|due| due.close);
        let close = match self.injection {
            Some(Injection::Own(Side::Server)) => {
                return own.map(|close| close.to_client_frame(mask())).unwrap_or_default();
            }
            Some(Injection::Own(Side::Client)) => own,
            Some(Injection::Answer) => self.handshake.missing_answer(),
            Some(Injection::Abnormal) => self.config.abnormal_close,
            None => None,
        };
        close.map(|close| close.to_server_frame()).unwrap_or_default()
    }

    /// The host has taken the bytes of [`Session::injection`]. If it refuses them, this is not called,
    /// and the chunk passes as it was.
    pub fn on_injected(&mut self, now: Instant) -> Actions {
        let count = match self.injection.take() {
            Some(Injection::Own(to)) => self.due.take().map(|due| {
                self.handshake.on_own_close(to, due.close);
                self.awaits(now);
                // Told late, it has a moment to answer.
                self.timers.postpone(Timer::Silent, now + PATIENCE);
                due.counter
            }),
            Some(Injection::Answer) => Some(Counter::SentAnswer),
            Some(Injection::Abnormal) => {
                self.abnormal_sent = true;
                Some(Counter::SentAbnormal)
            }
            None => None,
        };
        Actions { changed: true, count, ..Actions::default() }
    }

    /// When [`Session::on_timeout`] is to be called; `None`: not at all, as far as is known.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Deals with one timer that has expired by `now`; `None` if none has. To be called until then.
    pub fn on_timeout(&mut self, now: Instant) -> Option<Actions> {
        let mut actions = Actions::default();
        match self.timers.pop_expired(now)? {
            Timer::Limit => self.limit_expires(now, &mut actions),
            Timer::Age => self.close_for_age(now),
            Timer::Drain => self.close_for_drain(now),
            Timer::Silent => self.end_silent(&mut actions),
        }
        Some(actions)
    }

    /// Whoever is awaited has it from its last bytes on: live traffic is not cut.
    fn limit_expires(&mut self, now: Instant, actions: &mut Actions) {
        let Some((counter, limit)) = self.limit() else {
            return;
        };
        let at = self.awaited_since + limit;
        if at > now {
            self.timers.set(Timer::Limit, at);
            return;
        }
        actions.count = Some(counter);
        // A stream among others on an HTTP/2 or HTTP/3 connection is tracked and counted only.
        actions.reset = self.config.enforce && self.link.owns_connection;
        self.timed_out = true;
    }

    /// The stream is over, whoever ended it.
    pub fn end(&self, now: Instant) -> End {
        let initiator = match self.handshake.initiator() {
            Some(Initiator::Server) => Some(Counter::InitiatorServer),
            Some(Initiator::Client) => Some(Counter::InitiatorClient),
            // Counted when it was sent.
            Some(Initiator::Filter) | None => None,
        };
        let code = self.handshake.first_close().map(|close| Counter::of_status(close.status()));
        let outcome = Counter::of_outcome(self.handshake.outcome());
        End {
            counters: [Some(outcome), initiator, code],
            handshake: self.first_close.map(|first| now.since(first)),
            // If it was not the client that ended the stream, Envoy has begun to close the connection and
            // would wait `delayed_close_timeout` for the client.
            close_connection: self.config.enforce
                && self.link.owns_connection
                && !self.is_in_flight(now),
            end_unseen: self.link.upstream == Upstream::Http1 && !self.upstream_ended,
        }
    }

    /// Whether bytes of either side may still be on their way: see [`crate::activity`]. A client that has
    /// closed has nothing to send and has read everything; one for which a limit has expired has been
    /// silent for long.
    fn is_in_flight(&self, now: Instant) -> bool {
        let inside_message = self.fault.is_none() && !self.from_client.at_message_boundary();
        !self.handshake.has_closed(Side::Client)
            && !self.timed_out
            && (inside_message
                || self.client_activity.in_rhythm(now)
                || self.client_activity.in_bulk(now, HELD_UP.0, HELD_UP.1)
                || self.server_activity.in_bulk(now, UNREAD.0, UNREAD.1))
    }

    /// How it ended, or would if it ended now; for the access log.
    pub fn outcome(&self) -> &'static str {
        if self.ended_silent {
            "ended_silent"
        } else {
            self.handshake.outcome().name()
        }
    }

    /// Who began to close it, and with which Close frame; for the access log.
    pub fn closed_by(&self) -> Option<(Initiator, Option<&Close>)> {
        if self.abnormal_sent {
            return Some((Initiator::Filter, self.config.abnormal_close.as_ref()));
        }
        match self.handshake.initiator() {
            Some(initiator) => Some((initiator, self.handshake.first_close())),
            None => self.ended_silent.then_some((Initiator::Filter, None)),
        }
    }

    /// Why its frames are not followed any more.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }
}

#[cfg(test)]
mod tests;
