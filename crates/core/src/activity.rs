//! Whether bytes are likely to be on their way, as far as the last chunks of a side tell.
//!
//! It matters at the end, if the client has not closed. Envoy no longer reads it once the upstream has
//! ended, and a connection that is closed over bytes which nobody has read, or which are still to come,
//! is reset. A client whose write fails may never read the Close frame; a kernel that is reset drops what
//! the client has not taken yet. Such a connection is left to Envoy's own delayed close, which gives the
//! client `delayed_close_timeout` to read.

use std::time::Duration;

use crate::time::Instant;

/// Chunks further apart than this are not of one run.
const RUN_GAP: Duration = Duration::from_millis(500);
/// From this many intervals on a run has a rhythm. A request or two in front of a refusal have none.
const RHYTHM: u8 = 3;
/// How many of its longest recent intervals a client with a rhythm may be silent, and [`SLACK`].
const INTERVALS: u32 = 4;
/// Delays on the way that have nothing to do with the rhythm.
const SLACK: Duration = Duration::from_millis(5);
/// From this length on a run may be held up by a receiver that does not read: no buffer between the two
/// is smaller.
const BULK: u64 = 64 * 1024;

/// The last run of chunks of one side.
#[derive(Debug)]
pub struct Activity {
    last: Instant,
    /// The longest interval of the run, halved with each that is shorter.
    interval: Duration,
    /// How many intervals the run has; stops counting at [`RHYTHM`].
    intervals: u8,
    bytes: u64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { last: Instant::ZERO, interval: Duration::ZERO, intervals: 0, bytes: 0 }
    }
}

impl Activity {
    /// A chunk of `len` bytes came at `now`.
    pub fn on_chunk(&mut self, len: usize, now: Instant) {
        let interval = now.since(self.last);
        if self.bytes > 0 && interval <= RUN_GAP {
            self.interval = interval.max(self.interval / 2);
            self.intervals = RHYTHM.min(self.intervals + 1);
            self.bytes = self.bytes.saturating_add(len as u64);
        } else {
            *self = Self { bytes: len as u64, ..Self::default() };
        }
        self.last = now;
    }

    /// Whether the next chunk is likely to come soon: the run has a rhythm, which goes on.
    pub fn in_rhythm(&self, now: Instant) -> bool {
        let silence = now.since(self.last);
        self.intervals >= RHYTHM && silence <= self.interval * INTERVALS + SLACK
    }

    /// Whether much has come, the last of it no longer ago than `within`: bytes of it, or behind it, may
    /// be held up.
    pub fn in_bulk(&self, now: Instant, within: Duration) -> bool {
        self.bytes >= BULK && now.since(self.last) <= within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn after(chunks: &[(u64, usize)]) -> Activity {
        let mut activity = Activity::default();
        for &(ms, len) in chunks {
            activity.on_chunk(len, at(ms));
        }
        activity
    }

    #[test]
    fn a_client_that_has_sent_nothing() {
        for now in [at(0), at(5000)] {
            assert!(!Activity::default().in_rhythm(now));
            assert!(!Activity::default().in_bulk(now, Duration::from_secs(60)));
        }
    }

    /// A request, or a login and a request, in front of a refusal.
    #[test]
    fn requests_have_no_rhythm() {
        assert!(!after(&[(0, 50)]).in_rhythm(at(0)));
        assert!(!after(&[(0, 50), (20, 50)]).in_rhythm(at(20)));
        assert!(!after(&[(0, 50), (20, 50), (40, 50)]).in_rhythm(at(40)));
        // Far apart, each is a run of its own.
        assert!(!after(&[(0, 50), (501, 50), (1002, 50), (1503, 50)]).in_rhythm(at(1503)));
    }

    #[test]
    fn a_rhythm_in_rhythm_for_four_intervals() {
        let activity = after(&[(0, 9), (120, 9), (240, 9), (360, 9)]);
        assert!(activity.in_rhythm(at(360 + 4 * 120 + 5)));
        assert!(!activity.in_rhythm(at(360 + 4 * 120 + 6)));
        // Three at once, and a pause: the pause counts, not what came last.
        let bursts = after(&[(0, 9), (0, 9), (0, 9), (100, 9), (100, 9), (100, 9)]);
        assert!(bursts.in_rhythm(at(200)));
        assert!(!bursts.in_rhythm(at(206)));
        // At the longest interval of a run, and at one that is too long.
        assert!(after(&[(0, 9), (500, 9), (1000, 9), (1500, 9)]).in_rhythm(at(3505)));
    }

    /// A receiver that does not read holds up all that is behind the buffers.
    #[test]
    fn much_at_once_may_be_held_up() {
        let len = BULK as usize;
        let in_bulk =
            |chunks: &[(u64, usize)], ms| after(chunks).in_bulk(at(ms), Duration::from_secs(60));
        assert!(!in_bulk(&[(0, len - 1)], 0));
        assert!(in_bulk(&[(0, len)], 60_000));
        assert!(!in_bulk(&[(0, len)], 60_001));
        assert!(in_bulk(&[(0, len - 1), (400, 1)], 50_000));
        assert!(!in_bulk(&[(0, len - 1), (501, 1)], 501));
    }
}
