//! What waits for a time, in the order of the times: one ordered structure however many wait.

use std::collections::BTreeMap;
use std::time::Instant;

/// Names one entry of [`Deadlines`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    at: Instant,
    // Entries for the same instant are told apart, and kept in order, by this.
    serial: u64,
}

/// Values that become due at a time. Insertion and removal take O(log n).
#[derive(Debug)]
pub struct Deadlines<T> {
    entries: BTreeMap<Ticket, T>,
    serial: u64,
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), serial: 0 }
    }
}

impl<T> Deadlines<T> {
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

    #[test]
    fn entries_come_due_in_order() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.next(), None);
        let late = deadlines.insert(at(30), "late");
        let early = deadlines.insert(at(10), "early");
        deadlines.insert(at(20), "first of two");
        deadlines.insert(at(20), "second of two");
        assert_eq!(deadlines.next(), Some(at(10)));
        assert_eq!(deadlines.pop_due(at(9)), None);
        assert_eq!(deadlines.remove(early), Some("early"));
        assert_eq!(deadlines.remove(early), None);
        assert_eq!(deadlines.pop_due(at(20)), Some("first of two"));
        assert_eq!(deadlines.pop_due(at(20)), Some("second of two"));
        assert_eq!(deadlines.pop_due(at(20)), None);
        assert_eq!(deadlines.remove(late), Some("late"));
        assert_eq!(deadlines.next(), None);
    }
}
