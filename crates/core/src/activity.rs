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
/// Chunks less than this apart make one step of a run: one message may come in several.
const STEP: Duration = Duration::from_millis(5);
/// From this many steps behind the first on a run has a rhythm. A request or two in front of a refusal
/// have none.
const RHYTHM: u8 = 3;
/// How many of its longest recent intervals a side with a rhythm may be silent, and one [`STEP`].
const INTERVALS: u32 = 4;

/// The last run of chunks of one side.
#[derive(Debug)]
pub struct Activity {
    last: Instant,
    /// When the last step began.
    step: Instant,
    /// The longest interval between two steps, halved with each that is shorter.
    interval: Duration,
    /// How many intervals the run has; stops counting at [`RHYTHM`].
    intervals: u8,
    bytes: u64,
}

impl Default for Activity {
    fn default() -> Self {
        let (last, step) = (Instant::ZERO, Instant::ZERO);
        Self { last, step, interval: Duration::ZERO, intervals: 0, bytes: 0 }
    }
}

impl Activity {
    /// A chunk of `len` bytes came at `now`.
    pub fn on_chunk(&mut self, len: usize, now: Instant) {
        let len = len as u64;
        if self.bytes == 0 || now.since(self.last) > RUN_GAP {
            *self = Self { last: now, step: now, bytes: len, ..Self::default() };
            return;
        }
        self.last = now;
        self.bytes = self.bytes.saturating_add(len);
        let interval = now.since(self.step);
        if interval >= STEP {
            self.step = now;
            self.interval = interval.max(self.interval / 2);
            self.intervals = RHYTHM.min(self.intervals + 1);
        }
    }

    /// Whether the next chunk is likely to come soon: the run has a rhythm, which goes on.
    pub fn in_rhythm(&self, now: Instant) -> bool {
        let silence = now.since(self.last);
        self.intervals >= RHYTHM && silence <= self.interval * INTERVALS + STEP
    }

    /// Whether its run has at least `len` bytes, and the last of them came no longer ago than `within`.
    pub fn in_bulk(&self, now: Instant, len: u64, within: Duration) -> bool {
        self.bytes >= len && now.since(self.last) <= within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn after(times: &[u64]) -> Activity {
        let mut activity = Activity::default();
        for &ms in times {
            activity.on_chunk(50, at(ms));
        }
        activity
    }

    /// A request, or a login and a request, in front of a refusal.
    #[test]
    fn requests_have_no_rhythm() {
        assert!(!after(&[]).in_rhythm(at(0)));
        assert!(!after(&[0]).in_rhythm(at(0)));
        assert!(!after(&[0, 20]).in_rhythm(at(20)));
        assert!(!after(&[0, 20, 40]).in_rhythm(at(40)));
        // However many chunks one comes in.
        assert!(!after(&[0, 1, 2, 3, 4, 20, 21, 22, 23, 24]).in_rhythm(at(24)));
        // Far apart, each is a run of its own.
        assert!(!after(&[0, 501, 1002, 1503]).in_rhythm(at(1503)));
    }

    #[test]
    fn a_rhythm_goes_on_for_four_intervals() {
        let activity = after(&[0, 120, 240, 360]);
        assert!(activity.in_rhythm(at(360 + 4 * 120 + 5)));
        assert!(!activity.in_rhythm(at(360 + 4 * 120 + 6)));
        // At any time.
        let late = after(&[10_000, 10_120, 10_240, 10_360]);
        assert!(late.in_rhythm(at(10_360 + 485)) && !late.in_rhythm(at(10_360 + 486)));
        // Three at once, and a pause: the pause counts, not what came last.
        let bursts = after(&[0, 0, 0, 100, 101, 102, 200, 201, 202, 300, 301, 302]);
        assert!(bursts.in_rhythm(at(302 + 405)));
        assert!(!bursts.in_rhythm(at(302 + 406)));
        // A pause that was long fades.
        assert!(after(&[0, 400, 420, 440]).in_rhythm(at(440 + 4 * 100 + 5)));
        assert!(!after(&[0, 400, 420, 440]).in_rhythm(at(440 + 4 * 100 + 6)));
        // The longest interval of a run.
        assert!(after(&[0, 500, 1000, 1500]).in_rhythm(at(3505)));
    }

    /// A message each millisecond.
    #[test]
    fn a_stream_has_a_rhythm() {
        let times: Vec<_> = (0..100).collect();
        assert!(after(&times).in_rhythm(at(99 + 25)));
        assert!(!after(&times).in_rhythm(at(99 + 26)));
        assert!(!after(&times[..15]).in_rhythm(at(14)));
        assert!(after(&times[..16]).in_rhythm(at(15)));
    }

    #[test]
    fn bulk_is_counted_over_a_run() {
        let minute = Duration::from_secs(60);
        assert!(!after(&[]).in_bulk(at(0), 1, minute));
        assert!(!after(&[0, 400]).in_bulk(at(400), 101, minute));
        assert!(after(&[0, 400]).in_bulk(at(60_400), 100, minute));
        assert!(!after(&[0, 400]).in_bulk(at(60_401), 100, minute));
        assert!(!after(&[0, 501]).in_bulk(at(501), 51, minute));
        assert!(after(&[0, 500]).in_bulk(at(500), 100, minute));
    }
}
