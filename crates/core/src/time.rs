//! Moments, as the caller's clock counts them.

use std::ops::Add;
use std::time::Duration;

/// A moment: nanoseconds since an epoch of the caller's choice, the same for all it hands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// The epoch.
    pub const ZERO: Self = Self(0);
    /// Later than every other moment.
    pub const NEVER: Self = Self(u64::MAX);

    /// `elapsed` after the epoch; at the most some 584 years.
    pub fn after_epoch(elapsed: Duration) -> Self {
        Self::ZERO + elapsed
    }

    /// The time from `earlier` to this moment; zero where `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}
