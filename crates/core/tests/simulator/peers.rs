//! Client and server: what they do is drawn before a life begins, and the same in each mode.

use fastrand::Rng;
use ws_clean_close_core::frame::{Close, CloseCode};
use ws_clean_close_core::scanner::{Event, Scanner};
use ws_clean_close_core::Side as Peer;

use crate::world::{Side, Sign, Time, World};

const MS: Time = 1000;

/// How one of the two goes about closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As RFC 6455 has it: both Close frames; then the server closes TCP.
    Waits,
    /// Its Close frame, or none as an answer, and FIN this much later; reads on.
    Fin(Time),
    /// The same, but `close(2)`.
    Closes(Time),
    /// Both Close frames, and TCP stays open.
    StaysOpen,
    /// Never answers.
    Ignores,
    /// FIN between two frames, no Close frame.
    NoClose,
    /// FIN inside a frame.
    InsideFrame,
    /// RST, no Close frame.
    Resets,
    /// As `Waits`, but RST instead of FIN.
    WaitsAndResets,
}

/// What a peer does.
#[derive(Clone, Debug)]
pub struct Script {
    /// When it begins to close; `None`: the other one does.
    pub closes_at: Option<Time>,
    pub manner: Manner,
    /// Sends a message so often, of so many bytes, so many times.
    pub every: Time,
    pub size: usize,
    pub messages: usize,
    /// Looks for input only after so many messages, as long as it sends.
    pub looks_after: usize,
    /// Does not read from then on, for so long.
    pub pause: Option<(Time, Time)>,
    /// How long it takes to answer a Close frame, and how many messages it still sends meanwhile.
    pub answers_after: Time,
    pub backlog: usize,
    /// Sends a message behind its Close frame.
    pub data_after_close: bool,
}

impl Script {
    pub fn draw(rng: &mut Rng, peer: Peer, closes: bool) -> Self {
        let server = [
            Manner::Waits,
            Manner::Waits,
            Manner::Fin(0),
            Manner::Fin(rng.u64(0..5 * MS)),
            Manner::Closes(0),
            Manner::Closes(rng.u64(0..5 * MS)),
            Manner::StaysOpen,
            Manner::Ignores,
            Manner::NoClose,
            Manner::InsideFrame,
            Manner::Resets,
            Manner::WaitsAndResets,
        ];
        let client =
            [Manner::Waits, Manner::Waits, Manner::Waits, Manner::Ignores, Manner::Closes(0)];
        let manner = match peer {
            Peer::Server => server[rng.usize(..server.len())],
            Peer::Client => client[rng.usize(..client.len())],
        };
        let every = [MS / 5, MS, 20 * MS, 60 * MS, 120 * MS, 250 * MS][rng.usize(..6)];
        Self {
            closes_at: closes.then(|| rng.u64(0..1500 * MS)),
            manner,
            every,
            size: [0, 5, 125, 126, 1000, 5000][rng.usize(..6)],
            messages: [0, 1, 2, 3, 10, 60][rng.usize(..6)],
            looks_after: if rng.u8(..4) == 0 { 3 } else { 1 },
            pause: (rng.u8(..4) == 0).then(|| (rng.u64(0..1000 * MS), rng.u64(0..3000 * MS))),
            answers_after: if rng.u8(..4) == 0 { rng.u64(0..5000 * MS) } else { 0 },
            backlog: if rng.u8(..6) == 0 { rng.usize(..30) } else { 0 },
            data_after_close: rng.u8(..6) == 0,
        }
    }
}

/// How a peer has seen it end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Fin,
    Rst,
    /// It gave up: a write failed.
    Broken,
}

/// A client or a server, and what it has seen.
pub struct Endpoint {
    pub peer: Peer,
    pub script: Script,
    node: usize,
    conn: usize,
    side: Side,
    scanner: Scanner,
    /// Everything that it has written, and read.
    pub sent: Vec<u8>,
    pub received: Vec<u8>,
    /// Written, and not taken by the kernel.
    pending: Vec<u8>,
    said: usize,
    next_message: Time,
    pub closed: bool,
    /// The peer's Close frame, and when it was read.
    pub close: Option<(Option<u16>, Time)>,
    answer_at: Option<Time>,
    fin_at: Option<Time>,
    done: bool,
    pub ending: Option<(Ending, Time)>,
}

impl Endpoint {
    pub fn new(peer: Peer, script: Script, node: usize) -> Self {
        let (conn, side, from) = match peer {
            Peer::Client => (0, Side::Near, Peer::Server),
            Peer::Server => (node - 1, Side::Far, Peer::Client),
        };
        Self {
            peer,
            script,
            node,
            conn,
            side,
            scanner: Scanner::new(from),
            sent: Vec::new(),
            received: Vec::new(),
            pending: Vec::new(),
            said: 0,
            next_message: 0,
            closed: false,
            close: None,
            answer_at: None,
            fin_at: None,
            done: false,
            ending: None,
        }
    }

    /// Its own Close frame, or the answer to its peer's, which has the same code (RFC 6455 §5.5.1).
    fn close_frame(&self) -> Vec<u8> {
        let own = if self.peer == Peer::Server { 4321 } else { 4000 };
        let code = self.close.and_then(|(code, _)| code).unwrap_or(own);
        let close = CloseCode::new(code).and_then(|code| Close::new(code, "")).expect("a frame");
        match self.peer {
            Peer::Server => close.to_server_frame(),
            Peer::Client => close.to_client_frame([1, 2, 3, 4]),
        }
    }

    fn message(&self) -> Vec<u8> {
        let size = self.script.size;
        let mask = if self.peer == Peer::Client { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match size {
            0..126 => frame.push(mask | size as u8),
            _ => {
                frame.push(mask | 126);
                frame.extend((size as u16).to_be_bytes());
            }
        }
        if mask != 0 {
            frame.extend([0; 4]);
        }
        // Which of them arrived can be told from their bytes.
        frame.resize(frame.len() + size, self.said as u8);
        frame
    }

    fn say(&mut self, bytes: &[u8]) {
        self.sent.extend(bytes);
        self.pending.extend(bytes);
    }

    /// Something has happened, or its time has come.
    pub fn run(&mut self, world: &mut World) {
        if self.done {
            return;
        }
        let now = world.now;
        self.speak(now);
        if !self.pending.is_empty() {
            match world.write(self.conn, self.side, &self.pending) {
                Ok(len) => drop(self.pending.drain(..len)),
                // A client gives up then, whatever it could still read.
                Err(()) => return self.finish(world, Ending::Broken),
            }
        }
        if self.looks(now) {
            self.look(world);
        }
        if self.done {
            return;
        }
        if self.fin_at.is_some_and(|at| at <= now) && self.pending.is_empty() {
            self.fin_at = None;
            match self.script.manner {
                Manner::Fin(_) | Manner::NoClose | Manner::InsideFrame | Manner::Waits => {
                    world.shut(self.conn, self.side)
                }
                Manner::Resets | Manner::WaitsAndResets => {
                    world.abort(self.conn, self.side);
                    self.done = true;
                    return;
                }
                _ => {
                    world.close(self.conn, self.side);
                    self.done = true;
                    return;
                }
            }
        }
        self.plan(world);
    }

    fn sending(&self) -> bool {
        !self.closed && self.said < self.script.messages
    }

    fn looks(&self, now: Time) -> bool {
        let pausing =
            self.script.pause.is_some_and(|(from, time)| (from..from + time).contains(&now));
        !pausing && (!self.sending() || self.said.is_multiple_of(self.script.looks_after))
    }

    fn speak(&mut self, now: Time) {
        if self.sending() && self.next_message <= now && self.pending.len() < 100_000 {
            let message = self.message();
            self.say(&message);
            self.said += 1;
            self.next_message = now + self.script.every;
        }
        if !self.closed && self.close.is_none() && self.script.closes_at.is_some_and(|at| at <= now)
        {
            self.begin(now);
        }
        if self.answer_at.is_some_and(|at| at <= now) {
            if self.script.backlog > 0 && !self.closed {
                self.script.backlog -= 1;
                let message = self.message();
                self.say(&message);
                self.answer_at = Some(now + 300 * MS);
            } else {
                self.answer_at = None;
                self.answer(now);
            }
        }
    }

    fn begin(&mut self, now: Time) {
        self.closed = true;
        match self.script.manner {
            Manner::NoClose | Manner::Resets => self.fin_at = Some(now),
            Manner::InsideFrame => {
                self.say(&[0x82, 10, 1, 2]);
                self.fin_at = Some(now);
            }
            manner => {
                let frame = self.close_frame();
                self.say(&frame);
                if self.script.data_after_close {
                    let message = self.message();
                    self.say(&message);
                }
                if let Manner::Fin(gap) | Manner::Closes(gap) = manner {
                    self.fin_at = Some(now + gap);
                }
            }
        }
    }

    fn answer(&mut self, now: Time) {
        let was_closed = std::mem::replace(&mut self.closed, true);
        match self.script.manner {
            Manner::Waits | Manner::StaysOpen | Manner::WaitsAndResets if !was_closed => {
                let frame = self.close_frame();
                self.say(&frame);
            }
            Manner::InsideFrame if !was_closed => self.say(&[0x82, 10, 1, 2]),
            _ => {}
        }
        let ends = !matches!(self.script.manner, Manner::StaysOpen | Manner::Ignores);
        // The server closes TCP first (RFC 6455 §7.1.1); a client that closes at once is impatient.
        let first = self.peer == Peer::Server || matches!(self.script.manner, Manner::Closes(_));
        if ends && first && self.fin_at.is_none() {
            self.fin_at = Some(now);
        }
    }

    fn look(&mut self, world: &mut World) {
        let bytes = world.read(self.conn, self.side, usize::MAX);
        self.received.extend(&bytes);
        let mut close = None;
        let result = self.scanner.scan(&mut &bytes[..], |event| {
            if let Event::Close(frame) = event {
                close = Some(frame);
            }
        });
        assert_eq!(result, Ok(()), "the {:?} receives what is no frame", self.peer);
        if let Some(frame) = close {
            let code = match frame.payload() {
                [high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
                _ => None,
            };
            self.close = Some((code, world.now));
            self.answer_at =
                Some(world.now + if self.closed { 0 } else { self.script.answers_after });
            world.note(|| format!("{:?} reads Close {code:?}", self.peer));
        }
        match world.socket(self.conn, self.side).ended {
            Some(Sign::Fin) => self.finish(world, Ending::Fin),
            Some(Sign::Rst) => self.finish(world, Ending::Rst),
            None => {}
        }
    }

    fn finish(&mut self, world: &mut World, ending: Ending) {
        world.note(|| format!("{:?} sees the end: {ending:?}", self.peer));
        self.done = true;
        self.ending = Some((ending, world.now));
        world.close(self.conn, self.side);
    }

    /// Asks to be called when it has something to do.
    fn plan(&mut self, world: &mut World) {
        let now = world.now;
        let mut times = vec![];
        times.extend(self.answer_at);
        times.extend(self.fin_at);
        if self.sending() {
            times.push(self.next_message);
        }
        if !self.closed {
            times.extend(self.script.closes_at);
        }
        times.extend(self.script.pause.map(|(from, time)| from + time));
        // A time that has come, and waits for something else, is not asked for again.
        if let Some(at) = times.into_iter().filter(|&at| at > now).min() {
            world.wake(self.node, at);
        } else if self.answer_at.or(self.fin_at).is_some() {
            world.wake(self.node, now + MS);
        }
    }
}
