//! Whether a client goes on sending, as far as its last chunks tell.
//!
//! It matters at the end: Envoy reads a client no longer once the upstream has ended. A connection
//! that is closed over bytes which nobody has read, or which are still to come, is reset, and a client
//! whose write fails may never read the Close frame in front of it. Such a client is left to Envoy's
//! own delayed close, which gives it `delayed_close_timeout` to read.

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
/// From this length on a run may be held up by a server that does not read: no buffer between the two
/// is that small. The bytes behind it are not seen before the server reads on.
const HELD_UP_LEN: u64 = 64 * 1024;
/// How long a run may be held up.
const HELD_UP: Duration = Duration::from_secs(60);

/// The client's last run of chunks.
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

    /// Whether more is likely to come, or on its way already.
    pub fn goes_on(&self, now: Instant) -> bool {
        let silence = now.since(self.last);
        let in_rhythm = self.intervals >= RHYTHM && silence <= self.interval * INTERVALS + SLACK;
        let held_up = self.bytes >= HELD_UP_LEN && silence <= HELD_UP;
        in_rhythm || held_up
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
        assert!(!Activity::default().goes_on(at(0)));
        assert!(!Activity::default().goes_on(at(5000)));
    }

    /// A request, or a login and a request, in front of a refusal.
    #[test]
    fn requests_have_no_rhythm() {
        assert!(!after(&[(0, 50)]).goes_on(at(0)));
        assert!(!after(&[(0, 50), (20, 50)]).goes_on(at(20)));
        assert!(!after(&[(0, 50), (20, 50), (40, 50)]).goes_on(at(40)));
        // Far apart, each is a run of its own.
        assert!(!after(&[(0, 50), (501, 50), (1002, 50), (1503, 50)]).goes_on(at(1503)));
    }

    #[test]
    fn a_rhythm_goes_on_for_four_intervals() {
        let activity = after(&[(0, 9), (120, 9), (240, 9), (360, 9)]);
        assert!(activity.goes_on(at(360 + 4 * 120 + 5)));
        assert!(!activity.goes_on(at(360 + 4 * 120 + 6)));
        // Three at once, and a pause: the pause counts, not what came last.
        let bursts = after(&[(0, 9), (0, 9), (0, 9), (100, 9), (100, 9), (100, 9)]);
        assert!(bursts.goes_on(at(200)));
        assert!(!bursts.goes_on(at(206)));
        // At the longest interval of a run, and at one that is too long.
        assert!(after(&[(0, 9), (500, 9), (1000, 9), (1500, 9)]).goes_on(at(3505)));
    }

    /// A server that does not read holds up all that is behind its buffers.
    #[test]
    fn much_at_once_may_be_held_up() {
        let len = HELD_UP_LEN as usize;
        assert!(!after(&[(0, len - 1)]).goes_on(at(0)));
        assert!(after(&[(0, len)]).goes_on(at(60_000)));
        assert!(!after(&[(0, len)]).goes_on(at(60_001)));
        assert!(after(&[(0, len - 1), (400, 1)]).goes_on(at(50_000)));
        assert!(!after(&[(0, len - 1), (501, 1)]).goes_on(at(501)));
    }
}
