//! What is done on which way, and what is seen of it.

use std::collections::BTreeMap;
use std::fmt;

use testbed::browser::Closed;
use testbed::Mode;

use crate::peers::{BEHIND_NGINX, TUNGSTENITE};

/// The shortest time after which a library ends a closing handshake that hangs, less a second, in seconds.
pub(crate) const GIVES_UP: u64 = 4;

/// Who closes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    ServerCloses,
    ServerHalfCloses,
    ServerDoesNotWait,
    ServerIsStopped,
    ServerReloads,
    ClientCloses,
}

impl Scenario {
    pub(crate) fn of(server: &str) -> &'static [Self] {
        match server {
            "gorilla/websocket" | "Netty" | TUNGSTENITE | BEHIND_NGINX => {
                &[Self::ServerCloses, Self::ServerDoesNotWait, Self::ClientCloses]
            }
            "websocket-node" => {
                &[Self::ServerHalfCloses, Self::ServerDoesNotWait, Self::ClientCloses]
            }
            "Jetty" | "Undertow" | "Hypercorn over HTTP/2" => {
                &[Self::ServerHalfCloses, Self::ClientCloses]
            }
            // They have no closing handshake, or reset TCP behind their Close frame.
            "gobwas/ws" | "x/net" | "Daphne" => &[Self::ServerDoesNotWait, Self::ClientCloses],
            _ => &[Self::ServerCloses, Self::ClientCloses],
        }
    }

    /// Whether the server ends TCP right behind its Close frame, as a stopped uvicorn does.
    pub(crate) fn ends_tcp(self) -> bool {
        !matches!(self, Self::ServerCloses | Self::ClientCloses)
    }

    /// The server's path, and the client's code.
    pub(crate) fn job(self) -> (&'static str, Option<u16>) {
        match self {
            Self::ServerCloses | Self::ServerHalfCloses => ("/server", None),
            Self::ServerDoesNotWait => ("/fin-without-waiting", None),
            Self::ServerIsStopped | Self::ServerReloads => ("/client", None),
            Self::ClientCloses => ("/client", Some(4000)),
        }
    }

    /// What the client should see.
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::ServerCloses | Self::ServerHalfCloses | Self::ServerDoesNotWait => 4321,
            Self::ServerIsStopped | Self::ServerReloads => 1012,
            Self::ClientCloses => 4000,
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::ServerCloses => "closes, 4321",
            Self::ServerHalfCloses => "closes and half-closes, 4321",
            Self::ServerDoesNotWait => "closes and does not wait, 4321",
            Self::ServerIsStopped => "is stopped, 1012",
            Self::ServerReloads => "reloads its source, 1012",
            Self::ClientCloses => "is closed, 4000",
        }
    }
}

/// A way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    /// `None`: no proxy.
    pub(crate) mode: Option<ModeName>,
    pub(crate) hops: usize,
    pub(crate) tls: bool,
}

pub(crate) type ModeName = &'static str;

impl Way {
    pub(crate) fn direct(tls: bool) -> Self {
        Self { mode: None, hops: 0, tls }
    }

    pub(crate) fn is_filter(self) -> bool {
        self.mode == Some(Mode::Filter.name())
    }

    /// What was seen without a proxy, as this way is, or without TLS if this server has none.
    pub(crate) fn direct_of(self, cells: &BTreeMap<Self, Cell>) -> Option<&Cell> {
        cells.get(&Self::direct(self.tls)).or_else(|| cells.get(&Self::direct(false)))
    }
}

/// What a client saw of some closes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    /// How many with which code.
    pub(crate) codes: BTreeMap<u16, usize>,
    pub(crate) clean: usize,
    /// The median.
    pub(crate) seconds_late: u64,
}

impl Cell {
    pub(crate) fn new(mut closes: Vec<Closed>) -> Self {
        let mut cell = Self::default();
        for close in &closes {
            *cell.codes.entry(close.code).or_default() += 1;
            cell.clean += usize::from(close.was_clean);
        }
        closes.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        cell.seconds_late = (closes[closes.len() / 2].ms / 1000.0).round() as u64;
        cell
    }

    /// Its codes, if up to so many that are 1006 would be `right`.
    ///
    /// websocket-node's client ends its direction of TCP behind its Close frame. Envoy then closes the connection to the
    /// server, whose answer may find it closed: RST. A websocket-node that has answered reports 1006 for any error of its
    /// socket (`handleSocketError`). 400 closes each on a busy machine: 10 with the default, 16 with the baseline, 11 with
    /// the filter, none without a proxy.
    pub(crate) fn codes_but_for(&self, right: u16, forgotten: usize) -> BTreeMap<u16, usize> {
        let mut codes = self.codes.clone();
        if let Some(failed) = codes.remove(&1006) {
            let code = if failed <= forgotten { right } else { 1006 };
            *codes.entry(code).or_default() += failed;
        }
        codes
    }

    /// As good as `other`, or better. Whether a close was late is not asked here, unless it was so late that somebody
    /// gave up: a busy machine is late as well, and `timers` tell.
    pub(crate) fn equals_or_betters(&self, other: &Self, scenario: Scenario) -> bool {
        // A library may have another idea of the right code, but never 1006.
        let right = |cell: &Self| -> usize {
            let right = |code: u16| {
                code == scenario.code() || code != 1006 && other.codes.contains_key(&code)
            };
            cell.codes.iter().filter(|(&code, _)| right(code)).map(|(_, n)| n).sum()
        };
        // A server that ends TCP behind its Close frame: microseconds decide whether a client of the same machine sees
        // FIN or RST, and a half-close is more than Envoy passes on.
        let clean = |cell: &Self| if scenario.ends_tcp() { 0 } else { cell.clean };
        right(self) >= right(other)
            && clean(self) >= clean(other)
            && self.seconds_late <= other.seconds_late.max(GIVES_UP)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: usize = self.codes.values().sum();
        let codes: Vec<_> = self
            .codes
            .iter()
            .map(
                |(code, &n)| {
                    if n == all {
                        code.to_string()
                    } else {
                        format!("{code} in {n} of {all}")
                    }
                },
            )
            .collect();
        f.write_str(&codes.join(", "))?;
        let closed = all - self.codes.get(&1006).unwrap_or(&0);
        match closed - self.clean {
            0 => {}
            n if n == all => f.write_str(", not clean")?,
            n => write!(f, ", {n} of {all} not clean")?,
        }
        match self.seconds_late {
            0 => Ok(()),
            seconds => write!(f, ", {seconds} s late"),
        }
    }
}
