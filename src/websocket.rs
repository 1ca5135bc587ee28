//! One WebSocket: feeds the scanners, asks the closing handshake, carries out what it decides.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use log::debug;
use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType, LogLevel, MapType};

use crate::chunk::HostChunk;
use crate::courier::{self, Address};
use crate::deadlines::Ticket;
use crate::frame::{Close, Event as FrameEvent, Scanner, Status};
use crate::handshake::{Decision, Event, Handshake, Outcome, Side, State};
use crate::metrics::Counter;
use crate::shared::{Alarm, Due, Shared, Sleeper, TICK};

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
    wait: Option<Ticket>,
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
    Holding { len: usize, until: Ticket },
    /// It has been released.
    Released,
}

impl Hold {
    fn is_holding(&self) -> bool {
        matches!(self, Self::Holding { .. })
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
                wait: None,
            })
        });
        if early_bytes {
            websocket.borrow_mut().lost("the client sent bytes before the 101");
        }
        websocket.borrow().log_fields();
        websocket
    }

    /// The next `len` bytes of the client are in hand.
    pub fn client_bytes(&mut self, len: usize) {
        if len == 0 || self.handshake.has_closed(Side::Client) {
            return;
        }
        self.last_client_bytes = Some(Instant::now());
        self.scan(Side::Client, len);
        if self.handshake.has_closed(Side::Client) {
            self.release();
        }
    }

    /// The next bytes of the server are in hand: `len` with those that were held back.
    pub fn server_bytes(&mut self, len: usize, end_of_stream: bool) -> Action {
        let first = !std::mem::replace(&mut self.body_begun, true);
        // What is held back is shown again, in front of what is new.
        let was_holding = self.hold.is_holding();
        let new = len.saturating_sub(self.take_held());
        let was_open = self.handshake.state() == State::Open;
        if new > 0 && !was_holding {
            self.scan(Side::Server, new);
        }
        // An HTTP/1.1 upstream that closes TCP shows as an empty chunk, before Envoy resets the
        // stream: `CodecClient::onEvent` in source/common/http/codec_client.cc dispatches an empty
        // buffer, "HTTP/1 can signal end of response by disconnecting". An HTTP/2 upstream ends the
        // stream.
        if end_of_stream || (new == 0 && !first) {
            if was_holding && !end_of_stream {
                // Before the stream is reset: Envoy does both, in this order, after this call.
                let _ = hostcalls::resume_http_response();
            }
            let event =
                if self.from_server.at_boundary() { Event::ServerEnd } else { Event::ServerCut };
            let decision = self.handshake.on(event);
            self.carry_out(decision, end_of_stream);
            return if was_holding && !end_of_stream { Action::Pause } else { Action::Continue };
        }
        if was_open && self.may_hold(len) {
            let until = self.shared.wait(HOLD, self.alarm(Alarm::HoldIsOver));
            self.hold = Hold::Holding { len, until };
            return Action::Pause;
        }
        if matches!(self.hold, Hold::Released) && new > 0 {
            // Once paused, Envoy's wasm filter buffers every chunk until it is resumed again.
            let _ = hostcalls::resume_http_response();
            return Action::Pause;
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
        let Hold::Holding { len, until } = self.hold else {
            return 0;
        };
        self.shared.cancel(until);
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

    fn scan(&mut self, side: Side, len: usize) {
        if matches!(self.handshake.state(), State::Untracked | State::Ended) {
            return;
        }
        let (scanner, buffer) = match side {
            Side::Server => (&mut self.from_server, BufferType::HttpResponseBody),
            Side::Client => (&mut self.from_client, BufferType::HttpRequestBody),
        };
        let mut close = None;
        let result = scanner.scan(&mut HostChunk::new(buffer, len), |event| {
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
            Alarm::Handshake => Counter::TimeoutHandshake,
            Alarm::TcpClose => Counter::TimeoutTcp,
        };
        self.wait = None;
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
                if config.answer_client_close {
                    self.send(self.handshake.owed_answer(), Counter::SentAnswer);
                }
            }
            Decision::Abandon => {
                let close = config.abnormal_close;
                if self.send(close, Counter::SentAbnormal) {
                    log_close(close.as_ref(), "filter");
                }
            }
        }
    }

    fn await_within(&mut self, limit: Option<Duration>, alarm: Alarm) {
        self.stop_waiting();
        self.wait = limit.map(|limit| self.shared.wait(limit, self.alarm(alarm)));
    }

    fn alarm(&self, alarm: Alarm) -> Due {
        let this: Weak<dyn Sleeper> = Weak::<RefCell<Self>>::clone(&self.this);
        Due::Wake(alarm, this)
    }

    fn stop_waiting(&mut self) {
        if let Some(ticket) = self.wait.take() {
            self.shared.cancel(ticket);
        }
    }

    /// Sends the client a Close frame in place of a server that is gone, in the last, empty chunk.
    fn send(&self, close: Option<Close>, counter: Counter) -> bool {
        let (Some(close), true) = (close, self.shared.config.enforce) else {
            return false;
        };
        let frame = close.to_server_frame();
        let sent = hostcalls::set_buffer(BufferType::HttpResponseBody, 0, 0, &frame).is_ok();
        if sent {
            self.shared.metrics.count(counter);
        }
        sent
    }

    /// The stream is over, whoever ended it. Where that was not the client, the HTTP connection
    /// manager has begun to close the connection and would wait `delayed_close_timeout` for it.
    pub fn end(&mut self) {
        self.stop_waiting();
        self.take_held();
        self.count_end();
        self.log_end();
        let (Some(address), true) = (self.address, self.shared.config.enforce) else {
            return;
        };
        let still_sending = !self.handshake.has_closed(Side::Client)
            && self.last_client_bytes.is_some_and(|last| last.elapsed() < STILL_SENDING);
        if still_sending {
            self.shared.wait(GRACE, Due::Close(address));
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
            Some(Side::Server) => metrics.count(Counter::InitiatorServer),
            Some(Side::Client) => metrics.count(Counter::InitiatorClient),
            None => {}
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
                self.handshake.initiator().map_or("nobody", Side::name),
                self.handshake.first_close().map_or(Status::None, Close::status),
            );
        }
    }
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
