//! HTTP half: follows the frames of each WebSocket and carries out what the closing handshake asks.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, BufferType, LogLevel, MapType};

use crate::config::HttpConfig;
use crate::courier::Address;
use crate::deadlines::{Deadlines, Ticket};
use crate::frame::{Chunk, Close, Event as FrameEvent, Scanner, Status};
use crate::handshake::{Decision, Event, Handshake, Outcome, Side, State};
use crate::metrics::{Counter, Metrics};

/// Resolution of Envoy's plugin timer.
const TICK: Duration = Duration::from_millis(1);
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

/// Stream state: an HTTP half follows this stream.
const FOLLOWED: &str = "ws_clean_close.followed";

thread_local! {
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// Envoy calls into this VM while it sends on what an HTTP half has given it. After *each* call it
/// carries out what the VM has asked for, so that a stream would be reset before what was held back
/// is written. From now on nothing is held back in this VM.
pub fn sending_is_interrupted() {
    INTERRUPTED.set(true);
}

/// The HTTP half of one worker thread.
pub struct HttpHalf {
    shared: Rc<Shared>,
}

/// What its streams share.
struct Shared {
    root: u32,
    config: HttpConfig,
    metrics: Metrics,
    due: RefCell<Deadlines<Due>>,
    /// When the timer fires next.
    tick: Cell<Option<Instant>>,
    warned: Warned,
}

/// What has been said, and is not said again.
#[derive(Default)]
struct Warned {
    unpaired: Cell<bool>,
    twice: Cell<bool>,
}

/// What happens when a time is over.
enum Due {
    /// The connection of a client that was still sending is closed.
    Grace(Address),
    /// The server did not close TCP behind its Close frame: the client may have it.
    Release(Weak<RefCell<WebSocket>>),
    /// A closing handshake has taken too long.
    Limit(Limit, Weak<RefCell<WebSocket>>),
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    /// `closeHandshakeTimeout`.
    Handshake,
    /// `tcpCloseTimeout`.
    TcpClose,
}

impl HttpHalf {
    pub fn new(root: u32, config: Box<HttpConfig>) -> Self {
        info!("ws-clean-close: HTTP half configured: {config}");
        if config.max_age.is_some() || config.drain.is_some() {
            warn!("ws-clean-close: `maxAge` and `drain` are checked, but have no effect yet");
        }
        Self {
            shared: Rc::new(Shared {
                root,
                config: *config,
                metrics: Metrics::define(),
                due: RefCell::default(),
                tick: Cell::new(None),
                warned: Warned::default(),
            }),
        }
    }

    /// The context of an HTTP stream.
    pub fn stream(&self, id: u32) -> Box<dyn HttpContext> {
        Box::new(Stream {
            id,
            shared: Rc::clone(&self.shared),
            early_bytes: false,
            websocket: None,
        })
    }

    /// Something has become due.
    pub fn tick(&self) {
        self.shared.tick.set(None);
        // Envoy counts from the beginning of its event loop's turn, so that it is early by less than
        // the time that turn took.
        let now = Instant::now() + TICK / 2;
        // Borrowed anew each time: what is due may arm and disarm others.
        while let Some(due) = self.shared.pop_due(now) {
            match due {
                Due::Grace(address) => address.ask_to_close(),
                Due::Release(websocket) => {
                    if let Some(websocket) = websocket.upgrade() {
                        websocket.borrow_mut().hold_is_over();
                    }
                }
                Due::Limit(limit, websocket) => {
                    if let Some(websocket) = websocket.upgrade() {
                        websocket.borrow_mut().time_is_over(limit);
                    }
                }
            }
        }
        self.shared.arm();
    }

    /// The root context ends and will have no tick any more: nobody is left waiting.
    pub fn shut_down(&self) {
        while let Some(due) = self.shared.pop() {
            if let Due::Grace(address) = due {
                address.ask_to_close();
            }
        }
    }
}

impl Shared {
    fn pop_due(&self, now: Instant) -> Option<Due> {
        self.due.borrow_mut().pop_due(now)
    }

    fn pop(&self) -> Option<Due> {
        self.due.borrow_mut().pop()
    }

    fn wait(&self, time: Duration, due: Due) -> Ticket {
        let ticket = self.due.borrow_mut().insert(Instant::now() + time, due);
        self.arm();
        ticket
    }

    /// Sets Envoy's timer for the first deadline; without one it stands still. A timer that fires
    /// too early finds nothing and is set again.
    fn arm(&self) {
        let next = self.due.borrow().next();
        let period = match (next, self.tick.get()) {
            (Some(next), Some(tick)) if tick <= next => return,
            (Some(next), _) => {
                // To the nearest: a tick is taken for due half a period early.
                let left = next.saturating_duration_since(Instant::now()) + TICK / 2;
                TICK.max(Duration::from_millis(left.as_millis() as u64))
            }
            (None, _) => Duration::ZERO,
        };
        self.tick.set(next);
        let _ = hostcalls::set_tick_period(period);
    }

    /// Whether no other HTTP half follows this stream already.
    fn follow_alone(&self) -> bool {
        if hostcalls::get_property(vec![FOLLOWED]).is_ok_and(|other| other.is_some()) {
            if !self.warned.twice.replace(true) {
                warn!(
                    "ws-clean-close: the HTTP half is attached more than once to this listener: only \
                     the one next to the router does anything"
                );
            }
            return false;
        }
        let _ = hostcalls::set_property(vec![FOLLOWED], Some(b"1"));
        true
    }

    fn warn_unpaired(&self) {
        self.metrics.count(Counter::Unpaired);
        if !self.warned.unpaired.replace(true) {
            warn!(
                "ws-clean-close: a WebSocket's connection has no network half: it will close late. \
                 Attach the module to this listener's filter chain with {{\"attach\": \"network\"}} \
                 too. Said once; the counter websocket.unpaired goes on"
            );
        }
    }
}

/// The context of one HTTP stream. All but WebSockets pay for this and nothing else.
struct Stream {
    id: u32,
    shared: Rc<Shared>,
    /// The client sent bytes before the 101. They were not followed.
    early_bytes: bool,
    websocket: Option<Rc<RefCell<WebSocket>>>,
}

impl Context for Stream {
    fn on_done(&mut self) -> bool {
        if let Some(websocket) = self.websocket.take() {
            websocket.borrow_mut().end();
        }
        true
    }
}

impl HttpContext for Stream {
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        if is_websocket_upgrade() {
            if self.shared.follow_alone() {
                self.websocket = Some(WebSocket::open(self.id, &self.shared, self.early_bytes));
            } else {
                sending_is_interrupted();
            }
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, len: usize, _: bool) -> Action {
        match &self.websocket {
            Some(websocket) => websocket.borrow_mut().client_bytes(len),
            None => self.early_bytes |= len > 0,
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, len: usize, end_of_stream: bool) -> Action {
        match &self.websocket {
            Some(websocket) => websocket.borrow_mut().server_bytes(len, end_of_stream),
            None => Action::Continue,
        }
    }
}

/// Whether the response is 101 with `upgrade: websocket` (RFC 6455 §4.2.2). Envoy shows the
/// extended CONNECT of HTTP/2 and HTTP/3 (RFC 8441) in the same way.
fn is_websocket_upgrade() -> bool {
    // In this order: a plain response has no such header, and asking for it allocates nothing.
    response_header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
        && response_header(":status").is_some_and(|status| status == b"101")
}

/// Whether the upstream speaks HTTP/1.1. No attribute tells; but Envoy makes the response to an
/// extended CONNECT look like an upgrade with `connection: upgrade`
/// (`Utility::transformUpgradeResponseFromH2toH1` in source/common/http/utility.cc), where HTTP/1.1
/// servers, but for a few, write `Upgrade`. For those few the answer is wrong, and harmless.
fn upstream_is_http1() -> bool {
    response_header("connection").is_some_and(|value| value != b"upgrade")
}

fn response_header(name: &str) -> Option<Vec<u8>> {
    hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, name).ok().flatten()
}

/// One WebSocket, from the 101 to the end of its stream.
struct WebSocket {
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
    fn open(id: u32, shared: &Rc<Shared>, early_bytes: bool) -> Rc<RefCell<Self>> {
        let protocol = hostcalls::get_property(vec!["request", "protocol"]).ok().flatten();
        let owns_connection = protocol.is_some_and(|p| p == b"HTTP/1.1");
        let address = if owns_connection { Address::of_connection() } else { None };
        shared.metrics.opened();
        if owns_connection && address.is_none() {
            shared.warn_unpaired();
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

    fn client_bytes(&mut self, len: usize) {
        if len == 0 || self.handshake.has_closed(Side::Client) {
            return;
        }
        self.last_client_bytes = Some(Instant::now());
        self.scan(Side::Client, len);
        if self.handshake.has_closed(Side::Client) {
            self.release();
        }
    }

    fn server_bytes(&mut self, len: usize, end_of_stream: bool) -> Action {
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
            let until = self.shared.wait(HOLD, Due::Release(Weak::clone(&self.this)));
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
            && !INTERRUPTED.get()
    }

    /// Ends the holding, without releasing anything; tells how many bytes are held.
    fn take_held(&mut self) -> usize {
        let Hold::Holding { len, until } = self.hold else {
            return 0;
        };
        self.shared.due.borrow_mut().remove(until);
        self.hold = Hold::Released;
        len
    }

    fn release(&mut self) {
        if self.take_held() > 0 {
            let _ = hostcalls::resume_http_response();
        }
    }

    /// Called from the root context's tick.
    fn hold_is_over(&mut self) {
        self.as_effective_context(Self::release);
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

    /// Called from the root context's tick.
    fn time_is_over(&mut self, limit: Limit) {
        self.wait = None;
        self.shared.metrics.count(match limit {
            Limit::Handshake => Counter::TimeoutHandshake,
            Limit::TcpClose => Counter::TimeoutTcp,
        });
        // Other streams of an HTTP/2 or HTTP/3 connection are no business of this one; but nor is
        // this stream the filter's to end: it is tracked and counted only.
        let decision = self.handshake.on(Event::Timeout);
        if self.owns_connection {
            self.as_effective_context(|this| this.carry_out(decision, false));
        }
    }

    fn carry_out(&mut self, decision: Decision, end_of_stream: bool) {
        let config = &self.shared.config;
        match decision {
            Decision::Pass => {}
            Decision::AwaitAnswer => {
                self.await_within(config.close_handshake_timeout, Limit::Handshake)
            }
            Decision::AwaitTcpClose => self.await_within(config.tcp_close_timeout, Limit::TcpClose),
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

    fn await_within(&mut self, limit: Option<Duration>, kind: Limit) {
        self.stop_waiting();
        self.wait =
            limit.map(|limit| self.shared.wait(limit, Due::Limit(kind, Weak::clone(&self.this))));
    }

    fn stop_waiting(&mut self) {
        if let Some(ticket) = self.wait.take() {
            self.shared.due.borrow_mut().remove(ticket);
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
    fn end(&mut self) {
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
            self.shared.wait(GRACE, Due::Grace(address));
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

/// A chunk that the host holds. It hands out copies, so as little as possible is asked for.
struct HostChunk {
    buffer: BufferType,
    len: usize,
    window: Vec<u8>,
    window_at: usize,
}

impl HostChunk {
    /// A call to the host costs as much as copying this many bytes: what is nearer than that to the
    /// last read is fetched with more of its neighbourhood.
    const NEAR: usize = 512;
    const NEIGHBOURHOOD: usize = 4096;

    fn new(buffer: BufferType, len: usize) -> Self {
        Self { buffer, len, window: Vec::new(), window_at: 0 }
    }
}

impl Chunk for HostChunk {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&mut self, offset: usize, len: usize) -> Option<&[u8]> {
        if len == 0 {
            return Some(&[]);
        }
        let end = self.window_at + self.window.len();
        if offset < self.window_at || offset + len > end {
            let left = self.len.checked_sub(offset)?;
            let small_frames = !self.window.is_empty() && offset < self.window_at + Self::NEAR;
            let wanted = if small_frames || left <= Self::NEAR { Self::NEIGHBOURHOOD } else { len };
            self.window =
                hostcalls::get_buffer(self.buffer, offset, wanted.max(len).min(left)).ok()??;
            self.window_at = offset;
        }
        self.window.get(offset - self.window_at..)?.get(..len)
    }
}
