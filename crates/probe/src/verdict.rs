//! The judgement of one close, in words.

use std::fmt;
use std::time::Duration;

/// How TCP ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Rst,
    /// Not within the time that was given.
    Never,
}

/// Judgement of one close.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Clean(Duration),
    Delayed(Duration),
    Reset(Duration),
    NoClose,
    StillOpen(Duration),
}

/// What takes longer is delayed; Envoy's delay is a second.
const IMMEDIATE: Duration = Duration::from_millis(500);

impl Verdict {
    /// Every [`name`](Self::name).
    pub const NAMES: [&str; 5] = ["clean", "delayed", "reset", "no_close", "still_open"];

    /// `after`: from the Close exchange to the end of TCP, or to the end of patience.
    pub fn of(has_close: bool, end: End, after: Duration) -> Self {
        match (has_close, end) {
            (_, End::Never) => Self::StillOpen(after),
            (false, _) => Self::NoClose,
            (true, End::Rst) => Self::Reset(after),
            (true, End::Fin) if after < IMMEDIATE => Self::Clean(after),
            (true, End::Fin) => Self::Delayed(after),
        }
    }

    pub fn is_clean(self) -> bool {
        matches!(self, Self::Clean(_))
    }

    /// One word, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean(_) => "clean",
            Self::Delayed(_) => "delayed",
            Self::Reset(_) => "reset",
            Self::NoClose => "no_close",
            Self::StillOpen(_) => "still_open",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean(after) => write!(f, "clean in {:.0} ms", after.as_secs_f64() * 1000.0),
            Self::Delayed(after) => {
                let seconds = after.as_secs_f64();
                write!(f, "delayed by {seconds:.1} s: ")?;
                let whole = seconds.round();
                match whole as u32 {
                    1.. if (seconds - whole).abs() > 0.2 => {
                        f.write_str("a slow server, or a proxy with a delayed close of its own")
                    }
                    1 => f.write_str("one proxy with a delayed close"),
                    2 => f.write_str("two proxies; older Chrome reports 1006"),
                    n => write!(f, "{n} proxies; older Chrome reports 1006"),
                }
            }
            Self::Reset(after) => {
                let seconds = after.as_secs_f64();
                f.write_str("reset after the Close frame")?;
                if *after >= IMMEDIATE {
                    write!(f, ", delayed by {seconds:.1} s")?;
                }
                f.write_str(": browsers report wasClean=false")
            }
            Self::NoClose => f.write_str("no Close frame: browsers report 1006"),
            Self::StillOpen(after) => write!(
                f,
                "TCP still open after {:.0} s: nobody ends this closing handshake",
                after.as_secs_f64()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The operator's page explains each of them.
    #[test]
    fn in_the_page() {
        let page = include_str!("../../../docs/operate.md");
        for (close, end, ms) in [
            (true, End::Fin, 1),
            (true, End::Fin, 1000),
            (true, End::Rst, 1),
            (false, End::Fin, 0),
            (true, End::Never, 15_000),
        ] {
            let verdict = Verdict::of(close, end, Duration::from_millis(ms));
            assert!(page.contains(&format!("| `{verdict}` |")), "{verdict}");
        }
    }

    #[test]
    fn in_words() {
        let say = |close, end, ms| Verdict::of(close, end, Duration::from_millis(ms)).to_string();
        for (close, end, ms, words) in [
            (true, End::Fin, 3, "clean in 3 ms"),
            (true, End::Fin, 1004, "delayed by 1.0 s: one proxy with a delayed close"),
            (true, End::Fin, 1998, "delayed by 2.0 s: two proxies; older Chrome reports 1006"),
            (true, End::Fin, 3010, "delayed by 3.0 s: 3 proxies; older Chrome reports 1006"),
            (
                true,
                End::Fin,
                1500,
                "delayed by 1.5 s: a slow server, or a proxy with a delayed close of its own",
            ),
            (true, End::Rst, 2, "reset after the Close frame: browsers report wasClean=false"),
            (
                true,
                End::Rst,
                1001,
                "reset after the Close frame, delayed by 1.0 s: browsers report wasClean=false",
            ),
            (false, End::Fin, 0, "no Close frame: browsers report 1006"),
            (false, End::Rst, 0, "no Close frame: browsers report 1006"),
            (
                true,
                End::Never,
                15_000,
                "TCP still open after 15 s: nobody ends this closing handshake",
            ),
        ] {
            assert_eq!(say(close, end, ms), words);
        }
    }
}
