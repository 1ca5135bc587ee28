//! TCP in virtual time: connections in a row, from the client over the proxies to the server.
//!
//! Bytes arrive in order, in segments of any size, after the link's delay; a receiver that does not read
//! holds up its sender; a socket that is closed over bytes which nobody has read, or which are still to
//! come, answers with RST.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fastrand::Rng;

/// Microseconds.
pub type Time = u64;

/// What a socket's owner sees of its peer's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    Fin,
    Rst,
}

/// One end of a connection.
#[derive(Debug, Default)]
pub struct Socket {
    /// Arrived, and not read.
    pub unread: Vec<u8>,
    /// What has been seen of the peer's end: FIN behind what is unread, or RST.
    pub ended: Option<Sign>,
    /// Written, and not sent.
    unsent: Vec<u8>,
    in_flight: usize,
    shut: bool,
    fin_sent: bool,
    /// Nobody owns it any more.
    closed: bool,
    /// When the last segment arrives at the peer.
    last_arrival: Time,
}

#[derive(Debug)]
enum Segment {
    Data(Vec<u8>),
    Fin,
    Rst,
}

#[derive(Debug)]
enum Event {
    Arrive { conn: usize, at: Side, segment: Segment },
    Wake(usize),
}

/// The end of a connection that is nearer to the client, or to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Near,
    Far,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

#[derive(Debug)]
struct Conn {
    near: Socket,
    far: Socket,
    delay: Time,
}

/// All connections, and what is going to happen. Connection `i` joins node `i` and node `i + 1`.
pub struct World {
    pub now: Time,
    pub rng: Rng,
    conns: Vec<Conn>,
    /// Ordered by time, then by when they were scheduled.
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: Vec<Option<Event>>,
    /// When each node is called next, so that it is called once.
    alarms: Vec<Time>,
    /// Bytes that a kernel takes for one that does not read.
    buffer: usize,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, delays: &[Time], buffer: usize, traced: bool) -> Self {
        let conn = |&delay| Conn { near: Socket::default(), far: Socket::default(), delay };
        Self {
            now: 0,
            rng: Rng::with_seed(seed),
            conns: delays.iter().map(conn).collect(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            alarms: vec![Time::MAX; delays.len() + 1],
            buffer,
            trace: traced.then(Vec::new),
        }
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} µs  {}", self.now, line()));
        }
    }

    fn schedule(&mut self, at: Time, event: Event) {
        self.queue.push(Reverse((at, self.events.len() as u64)));
        self.events.push(Some(event));
    }

    /// Calls a node at `at`, or earlier if it has asked for that.
    pub fn wake(&mut self, node: usize, at: Time) {
        if at < self.alarms[node] {
            self.alarms[node] = at;
            self.schedule(at, Event::Wake(node));
        }
    }

    /// Lets the next thing happen; the node that it concerns. `None` at the end.
    pub fn next(&mut self, horizon: Time) -> Option<usize> {
        let Reverse((at, number)) = self.queue.pop()?;
        if at > horizon {
            return None;
        }
        self.now = at;
        Some(match self.events[number as usize].take().expect("it happens once") {
            Event::Wake(node) => {
                if self.alarms[node] <= at {
                    self.alarms[node] = Time::MAX;
                }
                node
            }
            Event::Arrive { conn, at, segment } => {
                self.arrive(conn, at, segment);
                if at == Side::Near {
                    conn
                } else {
                    conn + 1
                }
            }
        })
    }

    pub fn socket(&mut self, conn: usize, side: Side) -> &mut Socket {
        let conn = &mut self.conns[conn];
        match side {
            Side::Near => &mut conn.near,
            Side::Far => &mut conn.far,
        }
    }

    fn arrive(&mut self, conn: usize, at: Side, segment: Segment) {
        let data = if let Segment::Data(bytes) = &segment { bytes.len() } else { 0 };
        self.socket(conn, at.other()).in_flight -= data;
        let socket = self.socket(conn, at);
        match segment {
            Segment::Rst => {
                socket.unsent.clear();
                socket.ended = Some(Sign::Rst);
            }
            Segment::Data(_) if socket.closed => self.send(conn, at, Segment::Rst),
            Segment::Data(bytes) if socket.ended.is_none() => socket.unread.extend(bytes),
            Segment::Fin if socket.ended.is_none() => socket.ended = Some(Sign::Fin),
            Segment::Data(_) | Segment::Fin => {}
        }
    }

    /// Puts a segment on the way to the peer of `from`.
    fn send(&mut self, conn: usize, from: Side, segment: Segment) {
        let at = self.now + self.conns[conn].delay;
        let socket = self.socket(conn, from);
        let at = at.max(socket.last_arrival);
        socket.last_arrival = at;
        self.schedule(at, Event::Arrive { conn, at: from.other(), segment });
    }

    /// Sends what the peer has room for.
    fn pump(&mut self, conn: usize, side: Side) {
        let was_full = self.socket(conn, side).unsent.len() >= self.buffer;
        loop {
            let room = {
                let waiting = self.socket(conn, side.other()).unread.len();
                self.buffer.saturating_sub(waiting + self.socket(conn, side).in_flight)
            };
            let len = self.socket(conn, side).unsent.len().min(room);
            if len == 0 {
                break;
            }
            let longest = if self.rng.bool() { 16 * 1024 } else { self.rng.usize(1..1500) };
            let len = len.min(longest);
            let socket = self.socket(conn, side);
            let bytes: Vec<u8> = socket.unsent.drain(..len).collect();
            socket.in_flight += len;
            self.send(conn, side, Segment::Data(bytes));
        }
        if was_full && self.socket(conn, side).unsent.len() < self.buffer {
            // It can be written to again.
            let owner = if side == Side::Near { conn } else { conn + 1 };
            self.wake(owner, self.now);
        }
        let socket = self.socket(conn, side);
        if socket.shut && !socket.fin_sent && socket.unsent.is_empty() {
            socket.fin_sent = true;
            self.send(conn, side, Segment::Fin);
        }
    }

    /// Writes as much as the kernel takes; `Err` behind a reset.
    pub fn write(&mut self, conn: usize, side: Side, bytes: &[u8]) -> Result<usize, ()> {
        let buffer = self.buffer;
        let socket = self.socket(conn, side);
        if socket.closed || socket.shut || socket.ended == Some(Sign::Rst) {
            return Err(());
        }
        let len = bytes.len().min(buffer.saturating_sub(socket.unsent.len()));
        socket.unsent.extend(&bytes[..len]);
        self.pump(conn, side);
        Ok(len)
    }

    /// Reads at most so much.
    pub fn read(&mut self, conn: usize, side: Side, most: usize) -> Vec<u8> {
        let socket = self.socket(conn, side);
        let len = socket.unread.len().min(most);
        let bytes = socket.unread.drain(..len).collect();
        self.pump(conn, side.other());
        bytes
    }

    /// `shutdown(SHUT_WR)`.
    pub fn shut(&mut self, conn: usize, side: Side) {
        self.socket(conn, side).shut = true;
        self.pump(conn, side);
    }

    /// `close(2)`.
    pub fn close(&mut self, conn: usize, side: Side) {
        let socket = self.socket(conn, side);
        if socket.closed {
            return;
        }
        socket.closed = true;
        if socket.unread.is_empty() {
            self.shut(conn, side);
        } else {
            self.abort(conn, side);
        }
    }

    /// `close(2)` with a linger time of zero.
    pub fn abort(&mut self, conn: usize, side: Side) {
        let socket = self.socket(conn, side);
        socket.closed = true;
        socket.unsent.clear();
        if socket.ended != Some(Sign::Rst) {
            self.send(conn, side, Segment::Rst);
        }
    }
}
