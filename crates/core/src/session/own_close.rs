//! Close frames that the filter sends of its own accord: `drain` and `maxAge` say when one is due, and
//! the next chunk with a place for it takes it along. `endSilentAfter` ends a WebSocket without.

use std::rc::Rc;
use std::time::Duration;

use super::{Injection, Session};
use crate::actions::{Actions, ChunkAction};
use crate::counter::Counter;
use crate::drain;
use crate::frame::Close;
use crate::handshake::Side;
use crate::time::Instant;
use crate::timer::Timer;

/// The WebSocket is to be closed with a Close frame of the filter's at the next opportunity.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) close: Close,
    pub(super) counter: Counter,
    pub(super) since: Instant,
}

/// `drain`, as it concerns one session.
#[derive(Debug)]
pub(super) struct Draining {
    pub(super) close: Close,
    pub(super) end_silent_after: Option<Duration>,
}

impl Session {
    /// Sets the timers of `maxAge` and `drain`.
    pub(super) fn plan_closing(
        &mut self,
        fraction: f64,
        token_valid_for: Option<Duration>,
        now: Instant,
    ) {
        let config = Rc::clone(&self.config);
        if !config.enforce {
            return;
        }
        if let Some(max_age) = &config.max_age {
            let after = max_age.after.map(|age| age.mul_f64(1.0 + max_age.jitter * fraction));
            let token = token_valid_for.filter(|_| max_age.claim);
            if let Some(age) = after.into_iter().chain(token).min() {
                self.timers.set(Timer::Age, now + age);
            }
        }
        if let Some(drain) = &config.drain {
            self.drain(now + drain.within, drain.close, drain.end_silent_after);
        }
    }

    /// Closes it with `close` from `at` on. Ends it without, if it could not be told for
    /// `end_silent_after`.
    pub fn drain(&mut self, at: Instant, close: Close, end_silent_after: Option<Duration>) {
        self.stop_draining();
        self.draining = Some(Box::new(Draining { close, end_silent_after }));
        self.timers.set(Timer::Drain, at);
    }

    /// It stays open, if it has not yet been told otherwise.
    pub fn stop_draining(&mut self) {
        self.draining = None;
        self.timers.stop(Timer::Drain);
        if self.due.take_if(|due| due.counter == Counter::SentDrain).is_some() {
            self.timers.stop(Timer::Silent);
        }
    }

    /// If it is due, and the chunk in hand has a place for it, a Close frame of the filter's own goes
    /// there. Nobody else may be closing already.
    pub(super) fn place_own_close(
        &mut self,
        side: Side,
        now: &impl Fn() -> Instant,
        actions: &mut Actions,
    ) {
        let Some(since) = self.due.as_ref().map(|due| due.since) else {
            return;
        };
        if self.fault.is_some() || !self.handshake.is_open() {
            return;
        }
        let boundaries = self.scanner(side).boundaries();
        if let Some(at) = drain::cut(side, boundaries, now().since(since)) {
            self.injection = Some(Injection::Own(side.peer()));
            actions.chunk = ChunkAction::Inject(at);
        }
    }

    pub(super) fn close_for_age(&mut self, now: Instant) {
        let Some(max_age) = &self.config.max_age else {
            return;
        };
        // Instead of a drain too, which may be called off.
        let since = self.due.as_ref().map_or(now, |due| due.since);
        let due = Due { close: max_age.close, counter: Counter::SentMaxAge, since };
        let end_silent_after = max_age.end_silent_after;
        self.closes(due, end_silent_after);
    }

    pub(super) fn close_for_drain(&mut self, now: Instant) {
        if let (Some(draining), None) = (self.draining.take(), &self.due) {
            let due = Due { close: draining.close, counter: Counter::SentDrain, since: now };
            self.closes(due, draining.end_silent_after);
        }
    }

    fn closes(&mut self, due: Due, end_silent_after: Option<Duration>) {
        if let Some(time) = end_silent_after {
            self.timers.set(Timer::Silent, due.since + time);
        }
        self.due = Some(Box::new(due));
    }

    /// `endSilentAfter` is over: it ends, told or not.
    pub(super) fn end_silent(&mut self, actions: &mut Actions) {
        actions.reset = true;
        actions.changed = true;
        self.timed_out = true;
        if self.due.is_some() {
            self.ended_silent = true;
            actions.count = Some(Counter::EndedSilent);
        } else {
            actions.count = Some(Counter::TimeoutHandshake);
        }
    }
}
