//! What the streams of an HTTP half share on one worker thread: configuration, metrics, timer.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use log::warn;
use proxy_wasm::hostcalls;

use crate::config::HttpConfig;
use crate::courier::{Address, AT_ONCE};
use crate::deadlines::{Deadlines, Ticket};
use crate::letting_go::Spread;
use crate::metrics::{Counter, Metrics};

/// Resolution of Envoy's plugin timer.
pub const TICK: Duration = Duration::from_millis(1);
/// Stream state: an HTTP half follows this stream.
const FOLLOWED: &str = "ws_clean_close.followed";

/// What its streams share.
pub struct Shared {
    pub root: u32,
    pub config: HttpConfig,
    pub metrics: Metrics,
    /// The plugin's name in Envoy's configuration.
    pub plugin: String,
    spread: RefCell<Spread>,
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
    Close(Address),
    /// A stream is told.
    Wake(Alarm, Weak<dyn Sleeper>),
}

/// What a stream has waited for.
#[derive(Clone, Copy, Debug)]
pub enum Alarm {
    /// The server did not close TCP behind its Close frame: the client may have it.
    HoldIsOver,
    /// `closeHandshakeTimeout`.
    Handshake,
    /// `tcpCloseTimeout`.
    TcpClose,
    /// `maxAge`.
    MaxAge,
    /// `drain`.
    Drain,
}

/// A stream's waiting, which ends when this is dropped.
pub struct Wait {
    shared: Rc<Shared>,
    ticket: Ticket,
}

impl Wait {
    /// Whether it is one of this configuration's.
    pub fn is_of(&self, shared: &Rc<Shared>) -> bool {
        Rc::ptr_eq(&self.shared, shared)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.shared.due.borrow_mut().remove(self.ticket);
    }
}

/// A stream that waits.
pub trait Sleeper {
    /// Called from the root context's tick.
    fn wake(&self, alarm: Alarm);
}

impl Shared {
    /// For the streams of the root context `root`.
    pub fn new(root: u32, config: HttpConfig) -> Self {
        Self {
            root,
            config,
            metrics: Metrics::define(),
            plugin: plugin_name(),
            spread: RefCell::new(Spread::new(random())),
            due: RefCell::default(),
            tick: Cell::new(None),
            warned: Warned::default(),
        }
    }

    /// Something has become due.
    pub fn tick(&self) {
        self.tick.set(None);
        // Envoy counts from the beginning of its event loop's turn, so that it is early by less than
        // the time that turn took.
        let now = Instant::now() + TICK / 2;
        // Borrowed anew each time: who is woken may arm and disarm others. The rest has the next tick.
        for due in std::iter::from_fn(|| self.pop_due(now)).take(AT_ONCE) {
            match due {
                Due::Close(address) => address.ask_to_close(),
                Due::Wake(alarm, sleeper) => {
                    if let Some(sleeper) = sleeper.upgrade() {
                        sleeper.wake(alarm);
                    }
                }
            }
        }
        self.arm();
    }

    /// The root context ends and will have no tick any more: nobody is left waiting.
    pub fn shut_down(&self) {
        while let Some(due) = self.pop() {
            if let Due::Close(address) = due {
                address.ask_to_close();
            }
        }
    }

    fn pop_due(&self, now: Instant) -> Option<Due> {
        self.due.borrow_mut().pop_due(now)
    }

    fn pop(&self) -> Option<Due> {
        self.due.borrow_mut().pop()
    }

    /// Wakes `sleeper` in `time`.
    pub fn wake_in(
        self: &Rc<Self>,
        time: Duration,
        alarm: Alarm,
        sleeper: Weak<dyn Sleeper>,
    ) -> Wait {
        let ticket = self.insert(time, Due::Wake(alarm, sleeper));
        Wait { shared: Rc::clone(self), ticket }
    }

    /// Has the connection closed in `time`.
    pub fn close_in(&self, time: Duration, address: Address) {
        self.insert(time, Due::Close(address));
    }

    /// The next of the fractions, 0 to 1, by which this thread spreads what would come at once.
    pub fn next_fraction(&self) -> f64 {
        self.spread.borrow_mut().next().unwrap_or_default()
    }

    fn insert(&self, time: Duration, due: Due) -> Ticket {
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
    pub fn follow_alone(&self) -> bool {
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

    /// Counts a connection without the network half.
    pub fn count_unpaired(&self) {
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

fn plugin_name() -> String {
    let name = hostcalls::get_property(vec!["plugin_name"]).ok().flatten();
    String::from_utf8_lossy(&name.unwrap_or_default()).into_owned()
}

/// Some number, which nobody can foretell.
pub fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
