//! One WebSocket: feeds the scanners, asks the closing handshake, carries out what it decides.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use log::debug;
use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType, LogLevel, MapType};

use crate::chunk::HostChunk;
use crate::courier::{self, Address};
use crate::frame::{Chunk, Close, Event as FrameEvent, Scanner, Status};
use crate::handshake::{Decision, Event, Handshake, Initiator, Outcome, Side, State};
use crate::metrics::Counter;
use crate::shared::{random, Alarm, Shared, Sleeper, Wait, TICK};
use crate::{letting_go, roster};

/// A client that sent bytes within this time counts as still sending.
const STILL_SENDING: Duration = Duration::from_millis(50);
/// How long the connection of a client that is still sending is kept after the server's end. Envoy
/// no longer reads then, and a socket closed over unread bytes is reset: the client gets this time
/// to read the Close frame first.
const GRACE: Duration = Duration::from_millis(90);

/// How long the Close frame of a server that begins is held back, to see whether the server closes
/// TCP right behind it, as many do. Envoy stops reading the client in the moment it learns of that,
/// and an answer that is on its way then meets a socket that nobody reads, which makes RST of FIN.
/// Held back, the Close frame and the FIN leave together, and no answer can be on its way. The
/// shortest time that Envoy's plugin timer knows.
const HOLD: Duration = TICK;
/// Longest chunk that is held back with the Close frame at its end. Envoy resets a stream whose
/// buffered bytes are more than `per_connection_buffer_limit_bytes`, of which no one sets so few.
const HOLD_LEN: usize = 512;

/// One WebSocket, from the 101 to the end of its stream.
pub struct WebSocket {
    /// The HTTP context's number.
    id: u32,
    shared: Rc<Shared>,
    /// For the deadlines.
    this: Weak<RefCell<WebSocket>>,
    /// The downstream is HTTP/1.1: its connection carries nothing else and may be closed.
    owns_connection: bool,
    /// The upstream is HTTP/1.1 for certain, whose end is seen in time. A stream that HTTP/2 resets is
    /// gone at once, with all that is held back.
    upstream_is_http1: bool,
    address: Option<Address>,
    from_server: Scanner,
    from_client: Scanner,
    handshake: Handshake,
    /// The response body has begun. Its first callback comes with the bytes behind the 101's head,
    /// which may be none.
    body_begun: bool,
    last_client_bytes: Option<Instant>,
    hold: Hold,
    first_close: Option<Instant>,
    limit: Option<Wait>,
    age: Option<Wait>,
    drain: Option<(Wait, Close)>,
    leave: Option<Leave>,
}

/// The WebSocket is to be let go at the next opportunity.
struct Leave {
    close: Close,
    counter: Counter,
    since: Instant,
}

impl Sleeper for RefCell<WebSocket> {
    fn wake(&self, alarm: Alarm) {
        self.borrow_mut().wake(alarm);
    }
}

/// The Close frame of a server that begins: see [`HOLD`].
enum Hold {
    /// It has not come.
    NotYet,
    /// A chunk of this length is held back, at most until then.
    Holding { len: usize, _until: Wait },
    /// It has been released.
    Released,
}

impl Hold {
    fn is_holding(&self) -> bool {
        matches!(self, Self::Holding { .. })
    }

    /// Lets the chunk in hand pass. Once paused, Envoy's wasm filter buffers every chunk until it is
    /// resumed again.
    fn pass_on(&self) -> Action {
        if matches!(self, Self::NotYet) {
            return Action::Continue;
        }
        let _ = hostcalls::resume_http_response();
        Action::Pause
    }
}

impl WebSocket {
    /// Follows the WebSocket that a 101 has opened on the HTTP context `id`.
    pub fn open(id: u32, shared: &Rc<Shared>, early_bytes: bool) -> Rc<RefCell<Self>> {
        let protocol = hostcalls::get_property(vec!["request", "protocol"]).ok().flatten();
        let owns_connection = protocol.is_some_and(|p| p == b"HTTP/1.1");
        let address = if owns_connection { Address::of_connection() } else { None };
        shared.metrics.opened();
        if owns_connection && address.is_none() {
            shared.count_unpaired();
        }
        let websocket = Rc::new_cyclic(|this| {
            RefCell::new(Self {
                id,
                shared: Rc::clone(shared),
                this: Weak::clone(this),
                owns_connection,
                upstream_is_http1: upstream_is_http1(),
                address,
                from_server: Scanner::new(),
                from_client: Scanner::new(),
                handshake: Handshake::new(),
                body_begun: false,
                last_client_bytes: None,
                hold: Hold::NotYet,
                first_close: None,
                limit: None,
                age: None,
                drain: None,
                leave: None,
            })
        });
        roster::enter(&websocket);
        websocket.borrow_mut().plan_to_leave();
        if early_bytes {
            websocket.borrow_mut().lost("the client sent bytes before the 101");
        }
        websocket.borrow().log_fields();
        websocket
    }

    /// Has it let go after `maxAge`, and where the proxy is draining.
    fn plan_to_leave(&mut self) {
        let shared = Rc::clone(&self.shared);
        if !shared.config.enforce {
            return;
        }
        if let Some(max_age) = &shared.config.max_age {
            let time = max_age.after.mul_f64(1.0 + max_age.jitter * shared.next_fraction());
            self.age = Some(shared.wake_in(time, Alarm::MaxAge, self.sleeper()));
        }
        if let Some(drain) = &shared.config.drain {
            self.drain_in(drain.within, drain.close, &shared);
        }
    }

    /// Whether it was opened under a configuration of this plugin.
    pub fn belongs_to(&self, plugin: &str) -> bool {
        self.shared.plugin == plugin
    }

    /// Lets it go with `close` in `time`; `shared` is of the configuration that says so.
    pub fn drain_in(&mut self, time: Duration, close: Close, shared: &Rc<Shared>) {
        self.stop_draining();
        self.drain = Some((shared.wake_in(time, Alarm::Drain, self.sleeper()), close));
    }

    /// Whether it is this configuration that lets it go.
    pub fn is_drained_by(&self, shared: &Rc<Shared>) -> bool {
        self.drain.as_ref().is_some_and(|(wait, _)| wait.is_of(shared))
    }

    /// Lets it live on.
    pub fn stop_draining(&mut self) {
        self.drain = None;
        self.leave.take_if(|leave| leave.counter == Counter::SentDrain);
    }

    /// The next `len` bytes of the client are in hand.
    pub fn client_bytes(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        if !self.handshake.has_closed(Side::Client) {
            self.last_client_bytes = Some(Instant::now());
            self.scan(Side::Client, len);
            if self.handshake.has_closed(Side::Client) {
                self.release();
            }
        }
        self.let_go(Side::Client, len);
    }

    /// The next bytes of the server are in hand: `len` with those that were held back.
    pub fn server_bytes(&mut self, len: usize, end_of_stream: bool) -> Action {
        let first = !std::mem::replace(&mut self.body_begun, true);
        // What is held back is shown again, in front of what is new.
        let was_holding = self.hold.is_holding();
        let new = len.saturating_sub(self.take_held());
        let was_open = matches!(self.handshake.state(), State::Open | State::Asked);
        if new > 0 && !was_holding {
            self.scan(Side::Server, new);
            self.let_go(Side::Server, len);
        }
        // An HTTP/1.1 upstream that closes TCP shows as an empty chunk, before Envoy resets the
        // stream: `CodecClient::onEvent` in source/common/http/codec_client.cc dispatches an empty
        // buffer, "HTTP/1 can signal end of response by disconnecting". An HTTP/2 upstream ends the
        // stream.
        if end_of_stream || (new == 0 && !first) {
            // Before the stream is reset: Envoy does both, in this order, after this call.
            let action =
                if was_holding && !end_of_stream { self.hold.pass_on() } else { Action::Continue };
            let event =
                if self.from_server.at_boundary() { Event::ServerEnd } else { Event::ServerCut };
            let decision = self.handshake.on(event);
            self.carry_out(decision, end_of_stream);
            return action;
        }
        if was_open && self.may_hold(len) {
            let _until = self.shared.wake_in(HOLD, Alarm::HoldIsOver, self.sleeper());
            self.hold = Hold::Holding { len, _until };
            return Action::Pause;
        }
        if new > 0 {
            return self.hold.pass_on();
        }
        Action::Continue
    }

    /// Whether the chunk in hand, which is `len` bytes long, is to be held back: see [`HOLD`].
    fn may_hold(&self, len: usize) -> bool {
        self.handshake.state() == State::ServerClosing
            && len <= HOLD_LEN
            && self.upstream_is_http1
            && self.address.is_some()
            && self.shared.config.enforce
            && !courier::is_sending_interrupted()
    }

    /// Ends the holding, without releasing anything; tells how many bytes are held.
    fn take_held(&mut self) -> usize {
        let Hold::Holding { len, .. } = self.hold else {
            return 0;
        };
        self.hold = Hold::Released;
        len
    }

    fn release(&mut self) {
        if self.take_held() > 0 {
            let _ = hostcalls::resume_http_response();
        }
    }

    /// Does something that a host call does to the current stream, from the root context.
    fn as_effective_context(&mut self, act: impl FnOnce(&mut Self)) {
        // Refused where the stream is already gone.
        if hostcalls::set_effective_context(self.id).is_ok() {
            act(self);
            let _ = hostcalls::set_effective_context(self.shared.root);
        }
    }

    /// The chunk of `len` bytes in hand comes from `side`: lets the WebSocket go with a Close frame at
    /// its end, where it is time and the chunk has a place for it; or drops it, where there has been
    /// one.
    fn let_go(&mut self, side: Side, len: usize) {
        if self.handshake.muted() == Some(side) {
            replace_end(side, 0, len, &[]);
            return;
        }
        let (Some(leave), State::Open) = (&self.leave, self.handshake.state()) else {
            return;
        };
        let boundaries = match side {
            Side::Server => self.from_server.boundaries(),
            Side::Client => self.from_client.boundaries(),
        };
        let Some(cut) = letting_go::cut(side, boundaries, leave.since.elapsed()) else {
            return;
        };
        let close = leave.close;
        let (to, frame) = match side {
            Side::Server => (Side::Client, close.to_server_frame()),
            Side::Client => (Side::Server, close.to_client_frame(random().to_le_bytes())),
        };
        if replace_end(side, cut, len, &frame) {
            self.shared.metrics.count(leave.counter);
            self.leave = None;
            self.first_close = Some(Instant::now());
            let decision = self.handshake.on_own_close(to, close);
            self.log_fields();
            self.carry_out(decision, false);
        }
    }

    fn scan(&mut self, side: Side, len: usize) {
        if matches!(self.handshake.state(), State::Untracked | State::Ended) {
            return;
        }
        let scanner = match side {
            Side::Server => &mut self.from_server,
            Side::Client => &mut self.from_client,
        };
        let mut close = None;
        let result = scanner.scan(&mut HostChunk::new(buffer_of(side), len), |event| {
            if let FrameEvent::Close(frame) = event {
                close = Some(frame);
            }
        });
        if let Some(frame) = close {
            self.close_passed(side, frame);
        }
        if let Err(fault) = result {
            self.lost(&fault.to_string());
        }
    }

    fn close_passed(&mut self, side: Side, frame: Close) {
        #[cfg(feature = "trap")]
        if frame.payload().starts_with(&4999_u16.to_be_bytes()) {
            std::process::abort();
        }
        self.first_close.get_or_insert_with(Instant::now);
        let decision = self.handshake.on_close(side, frame);
        self.log_fields();
        self.carry_out(decision, false);
    }

    fn lost(&mut self, why: &str) {
        debug!("ws-clean-close: stream {}: frames lost: {why}", self.id);
        self.shared.metrics.count(Counter::Untracked);
        let decision = self.handshake.on(Event::Fault);
        self.carry_out(decision, false);
    }

    fn wake(&mut self, alarm: Alarm) {
        let counter = match alarm {
            Alarm::HoldIsOver => return self.as_effective_context(Self::release),
            Alarm::MaxAge => return self.leave_for_age(),
            Alarm::Drain => return self.leave_for_drain(),
            Alarm::Handshake => Counter::TimeoutHandshake,
            Alarm::TcpClose => Counter::TimeoutTcp,
        };
        self.limit = None;
        self.shared.metrics.count(counter);
        let decision = self.handshake.on(Event::Timeout);
        // A stream among others on an HTTP/2 or HTTP/3 connection is tracked and counted only.
        if self.owns_connection {
            self.as_effective_context(|this| {
                this.release();
                this.carry_out(decision, false);
            });
        }
    }

    fn leave_for_age(&mut self) {
        if let Some(max_age) = &self.shared.config.max_age {
            // In the place of a drain too, which may be called off.
            let since = self.leave.as_ref().map_or_else(Instant::now, |leave| leave.since);
            self.leave = Some(Leave { close: max_age.close, counter: Counter::SentMaxAge, since });
        }
    }

    fn leave_for_drain(&mut self) {
        if let Some((_, close)) = self.drain {
            self.leave.get_or_insert(Leave {
                close,
                counter: Counter::SentDrain,
                since: Instant::now(),
            });
        }
    }

    fn carry_out(&mut self, decision: Decision, end_of_stream: bool) {
        let config = &self.shared.config;
        match decision {
            Decision::Pass => {}
            Decision::AwaitAnswer => {
                self.await_within(config.close_handshake_timeout, Alarm::Handshake)
            }
            Decision::AwaitTcpClose => self.await_within(config.tcp_close_timeout, Alarm::TcpClose),
            // A stream that ends by itself would lose the bytes in hand.
            Decision::Finish if !end_of_stream && config.enforce => {
                let _ = hostcalls::reset_http_response();
            }
            Decision::Finish | Decision::Drop => {}
            Decision::Answer => {
                let is_own = self.handshake.initiator() == Some(Initiator::Filter);
                if config.answer_client_close || is_own {
                    self.send(self.handshake.owed_answer(), Counter::SentAnswer);
                }
            }
            Decision::Abandon => {
                let close = config.abnormal_close;
                if self.send(close, Counter::SentAbnormal) {
                    log_close(close.as_ref(), Initiator::Filter.name());
                }
            }
        }
    }

    fn await_within(&mut self, limit: Option<Duration>, alarm: Alarm) {
        self.limit = limit.map(|limit| self.shared.wake_in(limit, alarm, self.sleeper()));
    }

    fn sleeper(&self) -> Weak<dyn Sleeper> {
        Weak::<RefCell<Self>>::clone(&self.this)
    }

    /// Sends the client a Close frame in place of a server that is gone, in the last, empty chunk.
    fn send(&self, close: Option<Close>, counter: Counter) -> bool {
        let (Some(close), true) = (close, self.shared.config.enforce) else {
            return false;
        };
        let frame = close.to_server_frame();
        let sent = replace_end(Side::Server, 0, 0, &frame);
        if sent {
            self.shared.metrics.count(counter);
        }
        sent
    }

    /// The stream is over, whoever ended it. Where that was not the client, the HTTP connection
    /// manager has begun to close the connection and would wait `delayed_close_timeout` for it.
    pub fn end(&mut self) {
        self.take_held();
        self.count_end();
        self.log_end();
        let (Some(address), true) = (self.address, self.shared.config.enforce) else {
            return;
        };
        let still_sending = !self.handshake.has_closed(Side::Client)
            && self.last_client_bytes.is_some_and(|last| last.elapsed() < STILL_SENDING);
        if still_sending {
            self.shared.close_in(GRACE, address);
        } else {
            address.ask_to_close();
        }
    }

    fn count_end(&self) {
        let metrics = &self.shared.metrics;
        metrics.closed(match self.handshake.outcome() {
            Outcome::Clean => Counter::ClosedClean,
            Outcome::ServerOnly => Counter::ClosedServerOnly,
            Outcome::ClientOnly => Counter::ClosedClientOnly,
            Outcome::Abnormal => Counter::ClosedAbnormal,
        });
        match self.handshake.initiator() {
            Some(Initiator::Server) => metrics.count(Counter::InitiatorServer),
            Some(Initiator::Client) => metrics.count(Counter::InitiatorClient),
            // Counted where it was sent.
            Some(Initiator::Filter) | None => {}
        }
        if let Some(close) = self.handshake.first_close() {
            metrics.count(Counter::of_status(close.status()));
        }
        if let Some(first) = self.first_close {
            metrics.handshake_took(first.elapsed());
        }
    }

    /// Keeps the access log's fields as they would be if the stream ended now: Envoy writes the log
    /// before a filter learns of the end.
    fn log_fields(&self) {
        log_field("outcome", self.handshake.outcome().name());
        if let Some(initiator) = self.handshake.initiator() {
            log_close(self.handshake.first_close(), initiator.name());
        }
    }

    fn log_end(&self) {
        // Asked each time, because the level can change at any time, and writing the line costs more.
        if let Ok(LogLevel::Trace | LogLevel::Debug) = hostcalls::get_log_level() {
            debug!(
                "ws-clean-close: stream {}: closed {}, begun by {}, {}",
                self.id,
                self.handshake.outcome().name(),
                self.handshake.initiator().map_or("nobody", Initiator::name),
                self.handshake.first_close().map_or(Status::None, Close::status),
            );
        }
    }
}

fn buffer_of(side: Side) -> BufferType {
    match side {
        Side::Server => BufferType::HttpResponseBody,
        Side::Client => BufferType::HttpRequestBody,
    }
}

/// Puts `new` into the place of what is behind `cut` in the chunk in hand, which comes from `side` and
/// is `len` bytes long; tells whether it could.
fn replace_end(side: Side, cut: usize, len: usize, new: &[u8]) -> bool {
    let buffer = buffer_of(side);
    if cut == len {
        return hostcalls::set_buffer(buffer, len, 0, new).is_ok();
    }
    // Envoy replaces the beginning of a buffer, all of it, or nothing (`Buffer::copyFrom` in
    // source/extensions/common/wasm/context.cc).
    let mut chunk = HostChunk::new(buffer, len);
    let Some(kept) = chunk.read(0, cut).and_then(|kept| kept.get(..cut)) else {
        return false;
    };
    hostcalls::set_buffer(buffer, 0, len, &[kept, new].concat()).is_ok()
}

/// Sets a field of the access log, `%FILTER_STATE(wasm.websocket_close_…:PLAIN)%`.
fn log_field(name: &str, value: &str) {
    let name = format!("websocket_close_{name}");
    let _ = hostcalls::set_property(vec![&name], Some(value.as_bytes()));
}

fn log_close(close: Option<&Close>, initiator: &str) {
    log_field("initiator", initiator);
    match close.map(Close::status) {
        None => {}
        Some(Status::None) => log_field("code", "1005"),
        Some(Status::Invalid) => log_field("code", "invalid"),
        Some(Status::Code(code, reason)) => {
            log_field("code", &code.get().to_string());
            // What a peer sends must not write lines of its own into anybody's log.
            log_field("reason", &reason.replace(|c: char| c.is_control(), ""));
        }
    }
}

/// Whether the upstream speaks HTTP/1.1. No attribute tells; but Envoy makes the response to an
/// extended CONNECT look like an upgrade with `connection: upgrade`
/// (`Utility::transformUpgradeResponseFromH2toH1` in source/common/http/utility.cc), where HTTP/1.1
/// servers, but for a few, write `Upgrade`. For those few the answer is wrong, and harmless.
fn upstream_is_http1() -> bool {
    response_header("connection").is_some_and(|value| value != b"upgrade")
}

/// A header of the response that is in hand.
pub fn response_header(name: &str) -> Option<Vec<u8>> {
    hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, name).ok().flatten()
}
