//! Timers: the few that a session has, and the queue of all that a worker thread has to wait for.

use crate::time::Instant;
use std::collections::BTreeMap;

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// `closeHandshakeTimeout` or `tcpCloseTimeout`, whichever the closing handshake has come to.
    Limit,
    /// `maxAge`.
    Age,
    /// `drain`.
    Drain,
    /// `endSilentAfter` of either.
    Silent,
}

/// The timers of one session.
#[derive(Clone, Debug)]
pub struct Timers([Instant; 4]);

impl Default for Timers {
    fn default() -> Self {
        Self([Instant::NEVER; 4])
    }
}

impl Timers {
    const ALL: [Timer; 4] = [Timer::Limit, Timer::Age, Timer::Drain, Timer::Silent];

    /// Sets a timer, for the first time or anew.
    pub fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = at;
        }
    }

    /// Stops a timer.
    pub fn stop(&mut self, timer: Timer) {
        self.set(timer, Instant::NEVER);
    }

    /// Moves a timer that is set to `at`, if that is later.
    pub fn postpone(&mut self, timer: Timer, at: Instant) {
        match self.0.get_mut(timer as usize) {
            Some(slot) if *slot < at => *slot = at,
            _ => {}
        }
    }

    /// When the first of them fires; `None` if none is set.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().copied().min().filter(|&at| at < Instant::NEVER)
    }

    /// Stops one that has fired by `now`, and returns it; the earliest first.
    pub fn pop_expired(&mut self, now: Instant) -> Option<Timer> {
        let next = self.next().filter(|&at| at <= now)?;
        let timer = Self::ALL.into_iter().zip(self.0).find(|(_, at)| *at == next)?.0;
        self.stop(timer);
        Some(timer)
    }
}

/// Names one entry of a [`Queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    at: Instant,
    // Entries for the same instant are told apart, and kept in order, by this.
    serial: u64,
}

/// Values that become due at a time. Insertion and removal take O(log n).
#[derive(Debug)]
pub struct Queue<T> {
    entries: BTreeMap<Ticket, T>,
    serial: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), serial: 0 }
    }
}

impl<T> Queue<T> {
    /// Adds `value`, due at `at`.
    pub fn insert(&mut self, at: Instant, value: T) -> Ticket {
        self.serial += 1;
        let ticket = Ticket { at, serial: self.serial };
        self.entries.insert(ticket, value);
        ticket
    }

    /// Takes an entry back; `None` where it has already become due or been taken.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.entries.remove(&ticket)
    }

    /// The first entry that is due at `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.pop()
    }

    /// The first entry, due or not.
    pub fn pop(&mut self) -> Option<T> {
        self.entries.pop_first().map(|(_, value)| value)
    }

    /// When the first entry becomes due.
    pub fn next(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|(ticket, _)| ticket.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn entries_become_due_in_order() {
        let mut queue = Queue::default();
        assert_eq!(queue.next(), None);
        let late = queue.insert(at(30), "late");
        let early = queue.insert(at(10), "early");
        queue.insert(at(20), "first of two");
        queue.insert(at(20), "second of two");
        assert_eq!(queue.next(), Some(at(10)));
        assert_eq!(queue.pop_due(at(9)), None);
        assert_eq!(queue.remove(early), Some("early"));
        assert_eq!(queue.remove(early), None);
        assert_eq!(queue.pop_due(at(20)), Some("first of two"));
        assert_eq!(queue.pop_due(at(20)), Some("second of two"));
        assert_eq!(queue.pop_due(at(20)), None);
        assert_eq!(queue.remove(late), Some("late"));
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn timers_fire_once_and_in_order() {
        let mut timers = Timers::default();
        assert_eq!((timers.next(), timers.pop_expired(Instant::NEVER)), (None, None));
        timers.set(Timer::Age, at(30));
        timers.set(Timer::Limit, at(20));
        timers.set(Timer::Drain, at(10));
        timers.set(Timer::Silent, at(40));
        timers.stop(Timer::Drain);
        assert_eq!(timers.next(), Some(at(20)));
        assert_eq!(timers.pop_expired(at(19)), None);
        assert_eq!(timers.pop_expired(at(35)), Some(Timer::Limit));
        assert_eq!(timers.pop_expired(at(35)), Some(Timer::Age));
        assert_eq!(timers.pop_expired(at(35)), None);
        timers.set(Timer::Silent, at(50));
        timers.postpone(Timer::Silent, at(45));
        assert_eq!(timers.next(), Some(at(50)));
        timers.postpone(Timer::Silent, at(55));
        assert_eq!(timers.next(), Some(at(55)));
        timers.postpone(Timer::Age, at(60));
        timers.stop(Timer::Silent);
        assert_eq!(timers.next(), None, "one that is not set is not postponed");
    }
}
