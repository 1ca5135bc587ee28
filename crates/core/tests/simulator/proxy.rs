//! Envoy as far as a WebSocket meets it: /docs/how-it-works.md names the functions that this stands for.

use std::rc::Rc;
use std::time::Duration;

use ws_clean_close_core::config::HttpConfig;
use ws_clean_close_core::counter::Counter;
use ws_clean_close_core::time::Instant;
use ws_clean_close_core::{Actions, ChunkAction, Link, Opening, Session, Side as Peer, Upstream};

use crate::world::{Side, Time, World};

/// `delayed_close_timeout`.
const DELAY: Time = 1_000_000;
/// What Envoy reads at a time.
const CHUNK: usize = 16 * 1024;

/// How a proxy closes.
#[derive(Clone, Debug)]
pub enum Mode {
    Default,
    Baseline,
    Filter(Rc<HttpConfig>),
}

/// Of the downstream connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// `FlushWrite`: closed as soon as all is written.
    Flushing,
    /// `FlushWriteAndDelay`, and when the time is over.
    Delaying(Option<Time>),
    Closed,
}

/// What a proxy does at the upstream's end of a stream: HTTP/1.1 is the connection itself.
pub struct Proxy {
    node: usize,
    mode: Mode,
    pub session: Option<Session>,
    http2_upstream: bool,
    /// `per_connection_buffer_limit_bytes`.
    limit: usize,
    to_client: Vec<u8>,
    to_server: Vec<u8>,
    state: State,
    upstream_open: bool,
    pub counted: Vec<Counter>,
    /// When the server, and the client, last sent anything.
    last: [Time; 2],
    waited_at: Time,
    /// When the stream was over.
    pub ended_at: Option<Time>,
    /// The upstream was blamed.
    pub failed: bool,
    /// Own frames that were injected.
    pub injected: Vec<Peer>,
    /// A limit has ended it.
    pub timed_out: bool,
    /// The end was left to Envoy's delay although the filter could have closed the connection.
    pub stood_aside: bool,
    /// What the host refuses: every chunk that is to be changed.
    refuses: bool,
}

fn instant(now: Time) -> Instant {
    Instant::ZERO + Duration::from_micros(now)
}

impl Proxy {
    pub fn new(node: usize, mode: Mode, http2_upstream: bool, limit: usize, refuses: bool) -> Self {
        let mut proxy = Self {
            node,
            mode,
            session: None,
            http2_upstream,
            limit,
            to_client: Vec::new(),
            to_server: Vec::new(),
            state: State::Open,
            upstream_open: true,
            counted: Vec::new(),
            last: [0; 2],
            waited_at: Time::MAX,
            ended_at: None,
            failed: false,
            injected: Vec::new(),
            timed_out: false,
            stood_aside: false,
            refuses,
        };
        if let Mode::Filter(config) = &proxy.mode {
            let upstream = if http2_upstream { Upstream::Multiplexed } else { Upstream::Http1 };
            let link = Link { owns_connection: true, upstream };
            let opening = Opening { link, fraction: 0.5, token_valid_for: None, early: None };
            let (session, _) = Session::open(Rc::clone(config), opening, Instant::ZERO);
            proxy.session = Some(session);
            if !http2_upstream {
                // Nothing came behind the 101.
                let (bytes, actions) = proxy.filter(Peer::Server, Vec::new(), false, 0);
                assert!(bytes.is_empty() && !actions.reset);
            }
        }
        proxy
    }

    /// What the filter makes of a chunk.
    fn filter(&mut self, side: Peer, bytes: Vec<u8>, end: bool, now: Time) -> (Vec<u8>, Actions) {
        let Some(session) = &mut self.session else {
            return (bytes, Actions::default());
        };
        if !bytes.is_empty() {
            self.last[usize::from(side == Peer::Client)] = now;
        }
        let now = instant(now);
        let mut bytes = bytes;
        let actions = session.on_data(side, &mut &bytes[..], end, || now);
        self.counted.extend(actions.count);
        match actions.chunk {
            _ if self.refuses => {}
            ChunkAction::Pass => {}
            ChunkAction::Discard => bytes.clear(),
            ChunkAction::Inject(at) => {
                bytes.truncate(at);
                bytes.extend(session.injection(|| [9, 8, 7, 6]));
                self.counted.extend(session.on_injected(now).count);
                self.injected.push(match side {
                    Peer::Server => Peer::Client,
                    Peer::Client => Peer::Server,
                });
            }
        }
        (bytes, actions)
    }

    pub fn run(&mut self, world: &mut World) {
        let (now, down) = (world.now, self.node - 1);
        if self.state == State::Open {
            self.timers(world);
        }
        // The downstream's end: the stream is reset, and both connections are closed.
        let ended = world.socket(down, Side::Far).ended;
        if self.state != State::Closed && ended.is_some() && self.sees_end(world) {
            if self.state == State::Open {
                self.end(now);
            }
            self.close_upstream(world);
            world.close(down, Side::Far);
            self.state = State::Closed;
        }
        loop {
            let mut moved = false;
            if self.state == State::Open && self.to_server.len() <= self.limit {
                let bytes = world.read(down, Side::Far, CHUNK);
                if !bytes.is_empty() {
                    let (bytes, _) = self.filter(Peer::Client, bytes, false, now);
                    self.to_server.extend(bytes);
                    moved = true;
                }
            }
            if self.state == State::Open && self.to_client.len() <= self.limit {
                moved |= self.read_upstream(world);
            }
            moved |= self.flush(world);
            if !moved {
                break;
            }
        }
        self.close_downstream(world);
        self.plan(world);
    }

    /// Reads what the server sent, and its end. Whether there was anything.
    fn read_upstream(&mut self, world: &mut World) -> bool {
        let (now, up) = (world.now, self.node);
        // HTTP/2 has the last bytes and the end in one frame, if they come together.
        let waiting = world.socket(up, Side::Near).unread.len();
        if self.http2_upstream && waiting % 3 == 1 && now != self.waited_at {
            self.waited_at = now + 1;
            world.wake(self.node, now + 1);
            return false;
        }
        let bytes = world.read(up, Side::Near, CHUNK);
        let socket = world.socket(up, Side::Near);
        let ends = socket.ended.is_some() && socket.unread.is_empty();
        if self.http2_upstream {
            if bytes.is_empty() && !ends {
                return false;
            }
            // An empty DATA frame now and then; END_STREAM with the last bytes, or behind them.
            if world.rng.u8(..8) == 0 {
                let (bytes, actions) = self.filter(Peer::Server, Vec::new(), false, now);
                assert!(bytes.is_empty() && actions == Actions::default(), "an empty DATA frame");
            }
            let (bytes, actions) = self.filter(Peer::Server, bytes, ends, now);
            self.to_client.extend(bytes);
            assert!(!actions.reset || !ends);
            if ends {
                self.upstream_ended(world, true);
            }
            return true;
        }
        if !bytes.is_empty() {
            let (bytes, actions) = self.filter(Peer::Server, bytes, false, now);
            assert!(!actions.reset);
            self.to_client.extend(bytes);
            return true;
        }
        if ends {
            let (bytes, actions) = self.filter(Peer::Server, Vec::new(), false, now);
            assert!(!actions.reset || bytes.is_empty(), "what is added would be lost");
            self.to_client.extend(bytes);
            self.upstream_ended(world, actions.reset);
            return true;
        }
        false
    }

    fn upstream_ended(&mut self, world: &mut World, well: bool) {
        self.failed |= !well;
        world.note(|| format!("proxy {}: the upstream has ended, UC {}", self.node, !well));
        self.close_upstream(world);
        let at_once = self.end(world.now);
        self.state = match &self.mode {
            Mode::Baseline => State::Flushing,
            Mode::Filter(_) if at_once => State::Flushing,
            _ => State::Delaying(None),
        };
    }

    /// The stream is over; whether the filter closes the connection.
    fn end(&mut self, now: Time) -> bool {
        let Some(session) = self.session.take() else {
            return false;
        };
        self.ended_at = Some(now);
        let end = session.end(instant(now));
        self.counted.extend(end.counters.into_iter().flatten());
        let enforced = matches!(&self.mode, Mode::Filter(config) if config.enforce);
        self.stood_aside = enforced && !end.close_connection;
        assert!(enforced || !end.close_connection);
        end.close_connection
    }

    fn close_upstream(&mut self, world: &mut World) {
        if std::mem::replace(&mut self.upstream_open, false) {
            world.close(self.node, Side::Near);
        }
    }

    /// A delayed close reads nothing, but watches for the client's end; else it comes behind the bytes.
    fn sees_end(&self, world: &mut World) -> bool {
        let socket = world.socket(self.node - 1, Side::Far);
        match self.state {
            State::Open => {
                socket.unread.is_empty() || socket.ended == Some(crate::world::Sign::Rst)
            }
            _ => true,
        }
    }

    /// Writes what the sockets take. Whether they took anything.
    fn flush(&mut self, world: &mut World) -> bool {
        let mut moved = false;
        if !self.to_client.is_empty() && self.state != State::Closed {
            match world.write(self.node - 1, Side::Far, &self.to_client) {
                Ok(len) => {
                    self.to_client.drain(..len);
                    moved |= len > 0;
                }
                Err(()) => self.to_client.clear(),
            }
        }
        if !self.to_server.is_empty() && self.upstream_open {
            match world.write(self.node, Side::Near, &self.to_server) {
                Ok(len) => {
                    self.to_server.drain(..len);
                    moved |= len > 0;
                }
                Err(()) => self.to_server.clear(),
            }
        }
        moved
    }

    fn close_downstream(&mut self, world: &mut World) {
        let (now, down) = (world.now, self.node - 1);
        let flushed = self.to_client.is_empty();
        match self.state {
            State::Flushing if flushed => {
                world.close(down, Side::Far);
                self.state = State::Closed;
            }
            State::Delaying(None) if flushed => {
                self.state = State::Delaying(Some(now + DELAY));
            }
            State::Delaying(Some(at)) if at <= now => {
                world.close(down, Side::Far);
                self.state = State::Closed;
            }
            _ => {}
        }
    }

    fn timers(&mut self, world: &mut World) {
        let now = instant(world.now);
        let (mut reset, mut limits) = (false, Vec::new());
        while let Some(actions) = self.session.as_mut().and_then(|session| session.on_timeout(now))
        {
            self.counted.extend(actions.count);
            assert_eq!(actions.chunk, ChunkAction::Pass);
            reset |= actions.reset;
            limits.extend(actions.count);
        }
        self.assert_silence(&limits, world.now);
        if reset {
            world.note(|| format!("proxy {}: a limit ends it", self.node));
            self.timed_out = true;
            self.upstream_ended(world, true);
        }
    }

    /// Live traffic is not cut: whoever a limit has expired for has been silent for as long.
    fn assert_silence(&self, limits: &[Counter], now: Time) {
        let (Mode::Filter(config), Some(session)) = (&self.mode, &self.session) else { return };
        let server = usize::from(session.outcome() == "server_only");
        for limit in limits {
            let time = match limit {
                // A drain with an end has one for those it has told, too.
                Counter::TimeoutHandshake if self.injected.is_empty() => {
                    config.close_handshake_timeout
                }
                Counter::TimeoutTcp => config.tcp_close_timeout,
                _ => continue,
            };
            let silent = u128::from(now - self.last[server]);
            assert!(time.is_some_and(|time| silent >= time.as_micros()), "{limit:?}, {silent}");
        }
    }

    fn plan(&mut self, world: &mut World) {
        if let Some(at) = self.session.as_ref().and_then(Session::next_timeout) {
            let micros = at.since(Instant::ZERO).as_nanos().div_ceil(1000);
            let micros = u64::try_from(micros).expect("a time that is reached");
            if micros > world.now {
                world.wake(self.node, micros);
            }
        }
        if let State::Delaying(Some(at)) = self.state {
            world.wake(self.node, at);
        }
    }

    pub fn is_over(&self) -> bool {
        self.session.is_none()
    }
}
