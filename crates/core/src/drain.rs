//! Closing a WebSocket with a Close frame of the filter's own (`drain`, `maxAge`): [`cut`] is the rule
//! of where in the traffic, [`Spread`] that of when.

use std::time::Duration;

use crate::handshake::Side;
use crate::scanner::Boundaries;

/// How long a message that has begun may take to be finished; and how long the server, behind whose
/// messages the Close frame goes to the client, may be silent before one goes to the server instead,
/// behind the client's messages.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Where a chunk that comes from `side` is cut off, because a Close frame goes there instead of the
/// rest; an offset in it, 0 to its length. `waited` is how long the WebSocket has been due. `None`: the
/// chunk passes as it is.
pub fn cut(side: Side, boundaries: Boundaries, waited: Duration) -> Option<usize> {
    let waited = match side {
        Side::Server => waited,
        Side::Client => waited.checked_sub(PATIENCE)?,
    };
    // Between two fragments, where a control frame may stand too, if the last one does not come.
    let anywhere = boundaries.frame.filter(|_| waited >= PATIENCE);
    boundaries.message.or(anywhere)
}

/// How long a token whose claim `exp` is this many seconds after 1970 (RFC 7519 §4.1.4) is valid at `now`,
/// which is counted from 1970 too: zero if it has expired, a year at the most, `None` if `exp` is no
/// number.
pub fn token_valid_for(exp: f64, now: Duration) -> Option<Duration> {
    const YEAR: f64 = 366.0 * 24.0 * 3600.0;
    let left = exp - now.as_secs_f64();
    // The bounds leave nothing that a Duration refuses.
    (!left.is_nan()).then(|| Duration::from_secs_f64(left.clamp(0.0, YEAR)))
}

/// Spreads what would come at once: fractions from 0 to 1 of which each is as far as can be from
/// those before it, however many there are (the golden ratio's multiples).
#[derive(Clone, Debug)]
pub struct Spread(f64);

impl Spread {
    const GOLDEN_RATIO: f64 = 0.618_033_988_749_894_9;

    /// Begins somewhere: threads of one process are spread among each other only if they begin at
    /// different places.
    pub fn new(seed: u32) -> Self {
        Self(f64::from(seed) / (f64::from(u32::MAX) + 1.0))
    }
}

impl Iterator for Spread {
    type Item = f64;

    /// The next fraction, at least 0 and less than 1.
    fn next(&mut self) -> Option<f64> {
        self.0 = (self.0 + Self::GOLDEN_RATIO).fract();
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Boundaries = Boundaries { frame: Some(20), message: Some(10) };
    const INSIDE: Boundaries = Boundaries { frame: Some(20), message: None };
    const NOWHERE: Boundaries = Boundaries { frame: None, message: None };

    #[test]
    fn where_to_cut() {
        let cut = |side, boundaries, ms| cut(side, boundaries, Duration::from_millis(ms));
        assert_eq!(cut(Side::Server, AT, 0), Some(10));
        assert_eq!(cut(Side::Server, AT, 5000), Some(10));
        assert_eq!(cut(Side::Server, INSIDE, 999), None);
        assert_eq!(cut(Side::Server, INSIDE, 1000), Some(20));
        assert_eq!(cut(Side::Client, AT, 999), None);
        assert_eq!(cut(Side::Client, AT, 1000), Some(10));
        assert_eq!(cut(Side::Client, INSIDE, 1999), None);
        assert_eq!(cut(Side::Client, INSIDE, 2000), Some(20));
        assert_eq!(cut(Side::Server, NOWHERE, 5000), None);
    }

    #[test]
    fn tokens() {
        let now = Duration::from_secs(1_800_000_000);
        for (exp, expected) in [
            (1_800_000_060.0, Some(60)),
            (1_800_000_000.0, Some(0)),
            (1_700_000_000.0, Some(0)),
            (-1.0, Some(0)),
            (f64::NEG_INFINITY, Some(0)),
            (f64::INFINITY, Some(366 * 24 * 3600)),
            (1e300, Some(366 * 24 * 3600)),
            (f64::NAN, None),
        ] {
            assert_eq!(token_valid_for(exp, now), expected.map(Duration::from_secs), "{exp}");
        }
    }

    /// However many there are, every tenth of the whole has its share.
    #[test]
    fn fractions_are_spread() {
        for seed in [0, 1, 12_345_678, u32::MAX] {
            for n in [10, 100, 1000] {
                let mut tenths = [0_usize; 10];
                for fraction in Spread::new(seed).take(n) {
                    tenths[(fraction * 10.0) as usize] += 1;
                }
                let share = n / 10;
                assert!(tenths.iter().all(|&t| t.abs_diff(share) <= 1 + share / 10), "{tenths:?}");
            }
        }
    }
}
