//! What the WebSockets of an HTTP filter share on one worker thread: configuration, metrics, timer.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::rc::{Rc, Weak};
use std::sync::OnceLock;
use std::time::Duration;

use log::warn;
use ws_clean_close_core::config::HttpConfig;
use ws_clean_close_core::counter::Counter;
use ws_clean_close_core::drain::Spread;
use ws_clean_close_core::time::Instant;
use ws_clean_close_core::timer::{Queue, Ticket};

use crate::close_queue::AT_ONCE;
use crate::stats::Stats;
use crate::{access_log, host};

/// Resolution of Envoy's plugin timer.
const TICK: Duration = Duration::from_millis(1);

/// Who waits for a time.
pub trait Waiting {
    /// It has come.
    fn wake(&self, now: Instant);
}

/// What they share.
pub struct Worker {
    /// The root context.
    pub root: u32,
    pub config: Rc<HttpConfig>,
    pub stats: Stats,
    /// The plugin's name in Envoy's configuration.
    pub plugin: Vec<u8>,
    spread: RefCell<Spread>,
    queue: RefCell<Queue<Weak<dyn Waiting>>>,
    /// When the timer fires next.
    tick: Cell<Option<Instant>>,
    warned: Warned,
}

/// What has been logged, and is not logged again.
#[derive(Default)]
struct Warned {
    unpaired: Cell<bool>,
    twice: Cell<bool>,
    end_unseen: Cell<bool>,
}

impl Worker {
    /// For the streams of the root context `root`, the current one.
    pub fn new(root: u32, config: HttpConfig) -> Self {
        Self {
            root,
            config: Rc::new(config),
            stats: Stats::define(),
            plugin: host::property("plugin_name").unwrap_or_default(),
            spread: RefCell::new(Spread::new(random())),
            queue: RefCell::default(),
            tick: Cell::new(None),
            warned: Warned::default(),
        }
    }

    /// Envoy's timer has fired.
    pub fn tick(&self) {
        self.tick.set(None);
        // Envoy counts from the beginning of its event loop's turn, so that it is early by less than
        // the time that turn took.
        let now = now() + TICK / 2;
        // Borrowed anew each time: who is woken may set another time. The rest has the next tick.
        for waiting in std::iter::from_fn(|| self.queue.borrow_mut().pop_due(now)).take(AT_ONCE) {
            if let Some(waiting) = waiting.upgrade() {
                waiting.wake(now);
            }
        }
        self.arm();
    }

    /// Wakes `waiting` at `at`. To be called in a context of this root.
    pub fn wake_at(&self, at: Instant, waiting: Weak<dyn Waiting>) -> Ticket {
        let ticket = self.queue.borrow_mut().insert(at, waiting);
        self.arm();
        ticket
    }

    /// Wakes it no more.
    pub fn cancel(&self, ticket: Ticket) {
        self.queue.borrow_mut().remove(ticket);
    }

    /// The next of the fractions, 0 to 1, by which this thread spreads what would come at once.
    pub fn next_fraction(&self) -> f64 {
        self.spread.borrow_mut().next().unwrap_or_default()
    }

    /// Sets Envoy's timer for the first deadline; without one it stands still. A timer that fires
    /// too early finds nothing and is set again.
    fn arm(&self) {
        let next = self.queue.borrow().next();
        let period = match (next, self.tick.get()) {
            (Some(next), Some(tick)) if tick <= next => return,
            (Some(next), _) => {
                // To the nearest: a tick is taken for due half a period early.
                let left = next.since(now()) + TICK / 2;
                TICK.max(Duration::from_millis(left.as_millis() as u64))
            }
            (None, _) => Duration::ZERO,
        };
        self.tick.set(next);
        host::set_tick_period(period);
    }

    /// Whether no other HTTP filter follows the current stream already.
    pub fn follow_alone(&self) -> bool {
        // Whoever follows it has written the access log's first field.
        if host::property(access_log::OUTCOME).is_some() {
            if !self.warned.twice.replace(true) {
                warn!(
                    "the HTTP filter is attached more than once to this listener: only the one next to \
                     the router does anything"
                );
            }
            return false;
        }
        true
    }

    /// Counts a connection without the network filter.
    pub fn count_unpaired(&self) {
        self.stats.count(Counter::Unpaired);
        if !self.warned.unpaired.replace(true) {
            warn!(
                "a WebSocket's connection has no network filter: it will close a second late. Attach the \
                 module to this listener's filter chain with {{\"attach\": \"network\"}} too. Logged once; \
                 the counter websocket.unpaired goes on"
            );
        }
    }

    /// Counts a WebSocket whose upstream ended without the filter being shown it.
    pub fn count_end_unseen(&self) {
        self.stats.count(Counter::EndUnseen);
        if !self.warned.end_unseen.replace(true) {
            warn!(
                "a WebSocket's upstream ended and this filter was not shown it: another filter between it \
                 and the router holds response data (bandwidth_limit, a response rate limit of fault, \
                 ext_proc). The close counts as a failure of the upstream. Place this filter next to the \
                 router. Logged once; the counter websocket.end_unseen goes on"
            );
        }
    }
}

/// The time that has passed since this VM first asked.
pub fn now() -> Instant {
    static EPOCH: OnceLock<std::time::Instant> = OnceLock::new();
    Instant::after_epoch(EPOCH.get_or_init(std::time::Instant::now).elapsed())
}

/// A random number.
pub fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
