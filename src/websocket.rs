//! One WebSocket: gives its session what Envoy shows, and carries out what the session answers.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::debug;
use ws_clean_close_core::config::Drain;
use ws_clean_close_core::counter::Counter;
use ws_clean_close_core::drain::token_valid_for;
use ws_clean_close_core::frame::Status;
use ws_clean_close_core::time::Instant;
use ws_clean_close_core::timer::Ticket;
use ws_clean_close_core::{
    Actions, ChunkAction, EarlyData, Link, Opening, Session, Side, Upstream,
};

use crate::access_log::Fields;
use crate::body::{self, Body, SmallFrames};
use crate::close_queue::Handle;
use crate::host;
use crate::registry::Registry;
use crate::worker::{self, Waiting, Worker};

/// Where `jwt_authn` leaves the claim `exp` of a token that it has verified.
const TOKEN_EXPIRY: &str = "metadata\0filter_metadata\0envoy.filters.http.jwt_authn\0payload\0exp";
/// `UpstreamConnectionTermination` (UC) in `response.flags` (envoy/stream_info/stream_info.h).
const UPSTREAM_CONNECTION_TERMINATION: u64 = 0x40;

thread_local! {
    static OPEN: Registry<WebSocket> = const { Registry::new() };
}

/// Those that are open in this VM.
pub fn open() -> Vec<Rc<WebSocket>> {
    OPEN.with(Registry::living)
}

/// One WebSocket, from the 101 to the end of its stream.
pub struct WebSocket {
    /// The HTTP context's number.
    id: u32,
    worker: Rc<Worker>,
    session: RefCell<Session>,
    /// Of the server, and of the client.
    small_frames: [SmallFrames; 2],
    /// What is written of it for the access log.
    fields: Fields,
    /// How to close its connection.
    handle: Option<Handle>,
    /// When the worker wakes it.
    alarm: Cell<Option<(Instant, Ticket)>>,
    /// The configuration that drains it.
    drained_by: RefCell<Weak<Worker>>,
    this: Weak<Self>,
}

impl WebSocket {
    /// Follows the WebSocket that a 101 has opened on the HTTP context `id`, the current one.
    pub fn open(id: u32, worker: &Rc<Worker>, early: Option<EarlyData>) -> Rc<Self> {
        let protocol = host::property("request\0protocol");
        let owns_connection = protocol.is_some_and(|protocol| protocol == b"HTTP/1.1");
        let handle = if owns_connection { Handle::of_connection() } else { None };
        worker.stats.count(Counter::Upgrades);
        worker.stats.active(1);
        if owns_connection && handle.is_none() {
            worker.count_unpaired();
        }
        let opening = Opening {
            link: Link { owns_connection, upstream: upstream() },
            fraction: worker.next_fraction(),
            token_valid_for: token_valid(worker),
            early,
        };
        let (session, actions) = Session::open(Rc::clone(&worker.config), opening, worker::now());
        let websocket = Rc::new_cyclic(|this| Self {
            id,
            worker: Rc::clone(worker),
            session: RefCell::new(session),
            small_frames: Default::default(),
            fields: Fields::default(),
            handle,
            alarm: Cell::new(None),
            drained_by: RefCell::new(Weak::new()),
            this: Weak::clone(this),
        });
        if worker.config.drain.is_some() {
            *websocket.drained_by.borrow_mut() = Rc::downgrade(worker);
        }
        OPEN.with(|open| open.enter(&websocket));
        websocket.carry_out(actions);
        websocket
    }

    /// The next `len` bytes of `side` are in hand.
    pub fn on_data(&self, side: Side, len: usize, end_of_stream: bool) {
        let [server, client] = &self.small_frames;
        let small_frames = match side {
            Side::Server => server,
            Side::Client => client,
        };
        let mut body = Body::new(side, len, small_frames);
        // Asked at most once: a call to the host.
        let time = OnceCell::new();
        let now = || *time.get_or_init(worker::now);
        let actions = self.session.borrow_mut().on_data(side, &mut body, end_of_stream, now);
        // Nearly always, and nothing is asked of the host for it.
        if actions == Actions::default() {
            return;
        }
        match actions.chunk {
            ChunkAction::Pass => {}
            ChunkAction::Discard => {
                body::replace_end(side, 0, len, &[]);
            }
            ChunkAction::Inject(at) => {
                let mask = || worker::random().to_le_bytes();
                let bytes = self.session.borrow().injection(mask);
                if body::replace_end(side, at, len, &bytes) {
                    let actions = self.session.borrow_mut().on_injected(now());
                    self.carry_out(actions);
                }
            }
        }
        self.carry_out(actions);
    }

    fn carry_out(&self, actions: Actions) {
        self.worker.stats.count(actions.count);
        if actions.changed {
            self.set_alarm();
            let session = self.session.borrow();
            self.fields.update(&session);
            if let (Some(fault), Some(Counter::Untracked)) = (session.fault(), actions.count) {
                debug!("stream {}: frames not followed any more: {fault}", self.id);
            }
            #[cfg(feature = "trap")]
            if let Some((_, Some(close))) = session.closed_by() {
                if close.payload().starts_with(&4999_u16.to_be_bytes()) {
                    std::process::abort();
                }
            }
        }
        if actions.reset {
            host::reset_stream();
        }
    }

    /// Has the worker wake it when its session wants to. In a context of its own root only.
    fn set_alarm(&self) {
        let next = self.session.borrow().next_timeout();
        let alarm = self.alarm.get();
        if alarm.map(|(at, _)| at) == next {
            return;
        }
        if let Some((_, ticket)) = alarm {
            self.worker.cancel(ticket);
        }
        let this: Weak<dyn Waiting> = Weak::<Self>::clone(&self.this);
        self.alarm.set(next.map(|at| (at, self.worker.wake_at(at, this))));
    }

    /// Whether it was opened under a configuration of this plugin.
    pub fn belongs_to(&self, plugin: &[u8]) -> bool {
        self.worker.plugin == plugin
    }

    /// Closes it as `drain` says, in `time`; `worker` is of the configuration that has it, and its root
    /// context is the current one.
    pub fn drain_in(&self, time: Duration, drain: &Drain, worker: &Rc<Worker>) {
        let at = worker::now() + time;
        self.session.borrow_mut().drain(at, drain.close, drain.end_silent_after);
        *self.drained_by.borrow_mut() = Rc::downgrade(worker);
        // The timer that wakes it is its own root's. Not in a tick: Envoy does not bear a timer that is
        // set for another root there (`Wasm::tickHandler`).
        host::as_context(self.worker.root, worker.root, || self.set_alarm());
    }

    /// Whether it is this configuration that drains it.
    pub fn is_drained_by(&self, worker: &Worker) -> bool {
        std::ptr::eq(self.drained_by.borrow().as_ptr(), worker)
    }

    /// It stays open.
    pub fn stop_draining(&self) {
        self.session.borrow_mut().stop_draining();
    }

    /// The stream is over, whoever ended it.
    pub fn end(&self) {
        let session = self.session.borrow();
        let end = session.end(worker::now());
        let stats = &self.worker.stats;
        stats.active(-1);
        for counter in end.counters {
            stats.count(counter);
        }
        if let Some(time) = end.handshake {
            stats.handshake_took(time);
        }
        if end.end_unseen && upstream_terminated() {
            self.worker.count_end_unseen();
        }
        if let Some((_, ticket)) = self.alarm.take() {
            self.worker.cancel(ticket);
        }
        // Asked each time, because the level can change at any time, and writing the line costs more.
        if host::logs_debug() {
            let (by, close) = match session.closed_by() {
                Some((initiator, close)) => (initiator.name(), close),
                None => ("nobody", None),
            };
            let status = close.map_or(Status::None, |close| close.status());
            debug!("stream {}: closed {}, begun by {by}, {status}", self.id, session.outcome());
        }
        if let (true, Some(handle)) = (end.close_connection, self.handle) {
            handle.close();
        }
    }
}

impl Waiting for WebSocket {
    fn wake(&self, now: Instant) {
        self.alarm.set(None);
        host::as_context(self.id, self.worker.root, || loop {
            let actions = self.session.borrow_mut().on_timeout(now);
            let Some(actions) = actions else {
                break;
            };
            self.carry_out(actions);
        });
        self.set_alarm();
    }
}

/// What the upstream speaks, as far as the 101 in hand shows it.
fn upstream() -> Upstream {
    match host::response_headers() {
        Some(headers) => Upstream::of_headers(headers.iter()),
        None => Upstream::Unknown,
    }
}

/// How long the client's token is valid, if the configuration asks.
fn token_valid(worker: &Worker) -> Option<Duration> {
    if !worker.config.max_age.as_ref()?.claim {
        return None;
    }
    let bytes = host::property(TOKEN_EXPIRY)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    token_valid_for(f64::from_le_bytes(bytes.try_into().ok()?), now)
}

/// Whether Envoy blames the upstream for the end of the current stream.
fn upstream_terminated() -> bool {
    let flags = host::property("response\0flags").and_then(|flags| flags.try_into().ok());
    flags.is_some_and(|flags| u64::from_le_bytes(flags) & UPSTREAM_CONNECTION_TERMINATION != 0)
}
