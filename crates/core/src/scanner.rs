//! Follows the frames of one direction: bytes in, frame events out.
//!
//! A proxy does not need the messages, only the places where frames begin and the Close frame
//! that ends them. So the scanner reads the 2 to 14 bytes of each header and the payload of a
//! Close frame (at most 125 bytes), and skips every other payload by count, without looking at it.
//! A [`Chunk`] is whatever can hand out a few of its bytes.

use crate::frame::{decode_header, Close, Fault, Header, Opcode, Parsing, MAX_HEADER_LEN};
use crate::handshake::Side;

/// A piece of one direction of a WebSocket, of which a few bytes can be read.
pub trait Chunk {
    /// Its length in bytes.
    fn len(&self) -> usize;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At least `len` bytes at `offset`, and what follows them where it is at hand: one read may then
    /// serve many frames. The scanner asks only for bytes inside the chunk. `None` where they cannot
    /// be had.
    fn read(&mut self, offset: usize, len: usize) -> Option<&[u8]>;
}

impl Chunk for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn read(&mut self, offset: usize, len: usize) -> Option<&[u8]> {
        self.get(offset..).filter(|rest| rest.len() >= len)
    }
}

/// What the scanner found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A frame begins.
    Frame(Header),
    /// A Close frame is complete. The last event of a direction: what follows a Close frame is not
    /// looked at (RFC 6455 §5.5.1).
    Close(Close),
}

#[derive(Clone, Debug)]
enum State {
    /// Before a frame (`len` 0) or inside its header, of which `len` bytes are kept.
    Header { bytes: [u8; MAX_HEADER_LEN], len: u8 },
    /// Inside a payload that is of no interest.
    Payload { left: u64 },
    /// Inside the payload of a Close frame. In a box: few scanners are ever there.
    ClosePayload(Box<ClosePayload>),
    /// A Close frame has passed, or the frames were lost.
    End,
}

#[derive(Clone, Debug)]
struct ClosePayload {
    left: usize,
    mask: Option<[u8; 4]>,
    close: Close,
}

const BOUNDARY: State = State::Header { bytes: [0; MAX_HEADER_LEN], len: 0 };

/// Where in the last chunk a frame of somebody else's could stand: the last places, as offsets from
/// the chunk's beginning, 0 to its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundaries {
    /// Between two frames.
    pub frame: Option<usize>,
    /// Between two messages: between two frames, and no message is open of which a fragment has
    /// passed (RFC 6455 §5.4).
    pub message: Option<usize>,
}

/// Follows the frames of one direction through chunks of any size. Bounded state, some 64 bytes;
/// inside a Close frame 150 more.
#[derive(Debug)]
pub struct Scanner {
    side: Side,
    state: State,
    /// Fragments of a message have passed, or begun, and its last one has not.
    in_message: bool,
    boundaries: Boundaries,
}

impl Scanner {
    /// A scanner that stands before the first frame of `side`.
    pub fn new(side: Side) -> Self {
        Self { side, state: BOUNDARY, in_message: false, boundaries: Boundaries::default() }
    }

    /// The boundaries of the chunk that was scanned last.
    pub fn boundaries(&self) -> Boundaries {
        self.boundaries
    }

    /// Whether a frame may begin here: no frame has begun and is not yet complete, no Close frame
    /// has passed, and the frames are not lost.
    pub fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { len: 0, .. })
    }

    /// Whether a message may begin here: a frame may, and no message is open of which a fragment has
    /// passed (RFC 6455 §5.4).
    pub fn at_message_boundary(&self) -> bool {
        self.at_boundary() && !self.in_message
    }

    /// Whether a further chunk can still tell anything: false after a Close frame or a [`Fault`].
    pub fn is_scanning(&self) -> bool {
        !matches!(self.state, State::End)
    }

    /// Takes the next chunk of this direction and calls `on_event` for what begins or ends in it.
    ///
    /// # Errors
    /// A [`Fault`], after which the scanner takes every chunk and finds nothing.
    pub fn scan(
        &mut self,
        chunk: &mut impl Chunk,
        mut on_event: impl FnMut(Event),
    ) -> Result<(), Fault> {
        let result = self.advance(chunk, &mut on_event);
        if result.is_err() {
            self.state = State::End;
        }
        result
    }

    /// As [`Scanner::scan`], for those who look for the Close frame alone.
    pub fn find_close(&mut self, chunk: &mut impl Chunk) -> (Option<Box<Close>>, Option<Fault>) {
        let mut close = None;
        let result = self.scan(chunk, |event| {
            if let Event::Close(frame) = event {
                close = Some(Box::new(frame));
            }
        });
        (close, result.err())
    }

    fn advance(
        &mut self,
        chunk: &mut impl Chunk,
        on_event: &mut impl FnMut(Event),
    ) -> Result<(), Fault> {
        let mut offset = 0;
        self.boundaries = Boundaries::default();
        loop {
            let available = chunk.len().saturating_sub(offset);
            match &mut self.state {
                State::End => return Ok(()),
                State::Payload { left } => {
                    // A payload of more than usize::MAX bytes is longer than any chunk.
                    let skip = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
                    offset += skip;
                    *left -= skip as u64;
                    if *left > 0 {
                        return Ok(());
                    }
                    self.state = BOUNDARY;
                }
                State::ClosePayload(payload) => {
                    let ClosePayload { left, mask, close } = payload.as_mut();
                    let take = (*left).min(available);
                    close.extend(read(chunk, offset, take)?.get(..take).unwrap_or_default());
                    *left -= take;
                    if *left > 0 {
                        return Ok(());
                    }
                    if let Some(mask) = *mask {
                        close.unmask(mask);
                    }
                    on_event(Event::Close(*close));
                    self.state = State::End;
                }
                State::Header { bytes, len: len @ 0 } => {
                    let at_hand = read(chunk, offset, available.min(MAX_HEADER_LEN))?;
                    let Passed { len: passed, message, in_message, open } =
                        pass_frames(self.side, at_hand, self.in_message, on_event)?;
                    self.in_message = in_message;
                    self.boundaries.frame = Some(offset + passed);
                    if let Some(message) = message {
                        self.boundaries.message = Some(offset + message);
                    }
                    offset += passed;
                    let rest = at_hand.get(passed..).unwrap_or_default();
                    if let Some((header, header_len)) = open {
                        offset += header_len;
                        self.state = after(header);
                    } else if rest.len() == available - passed {
                        // The chunk ends inside a header, of which at most 13 bytes are there.
                        store(bytes, 0, rest);
                        *len = rest.len() as u8;
                        return Ok(());
                    }
                }
                State::Header { bytes, len } => {
                    let kept = usize::from(*len);
                    let more = available.min(MAX_HEADER_LEN - kept);
                    store(bytes, kept, read(chunk, offset, more)?.get(..more).unwrap_or_default());
                    match decode_header(self.side, bytes.get(..kept + more).unwrap_or_default())? {
                        Parsing::Done(header, header_len) => {
                            on_event(Event::Frame(header));
                            begin(header, &mut self.in_message);
                            offset += header_len.saturating_sub(kept);
                            self.state = after(header);
                        }
                        Parsing::NeedMore(_) => {
                            // At most 13 of 14: with 14 bytes a header is always whole.
                            *len += more as u8;
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// At least `len` bytes; never more than there are, whatever the chunk hands out. Fewer than `len`
/// are a fault: the scanner would never come to the rest.
fn read(chunk: &mut impl Chunk, offset: usize, len: usize) -> Result<&[u8], Fault> {
    let available = chunk.len().saturating_sub(offset);
    let bytes = chunk.read(offset, len).filter(|bytes| bytes.len() >= len);
    let bytes = bytes.ok_or(Fault::Unreadable)?;
    Ok(bytes.get(..available).unwrap_or(bytes))
}

/// What [`pass_frames`] has passed.
struct Passed {
    /// The length of the frames.
    len: usize,
    /// The last place between two messages.
    message: Option<usize>,
    /// Whether a message is open behind them, or, where there is one, behind `open`'s header.
    in_message: bool,
    /// The header behind them, and its length, where its payload is not at hand; or is that of a
    /// Close frame, which is wanted.
    open: Option<(Header, usize)>,
}

/// Passes over the frames in `bytes`, of which the first begins there.
#[inline]
fn pass_frames(
    side: Side,
    bytes: &[u8],
    mut in_message: bool,
    on_event: &mut impl FnMut(Event),
) -> Result<Passed, Fault> {
    let mut len = 0;
    let mut message = (!in_message).then_some(0);
    loop {
        let rest = bytes.get(len..).unwrap_or_default();
        let Parsing::Done(header, header_len) = decode_header(side, rest)? else {
            return Ok(Passed { len, message, in_message, open: None });
        };
        on_event(Event::Frame(header));
        begin(header, &mut in_message);
        let left = (rest.len() - header_len) as u64;
        if header.opcode == Opcode::Close || header.payload_len > left {
            return Ok(Passed { len, message, in_message, open: Some((header, header_len)) });
        }
        len += header_len + header.payload_len as usize;
        if !in_message {
            message = Some(len);
        }
    }
}

/// Writes `from` into `to` from `at` on, as far as it fits.
fn store(to: &mut [u8], at: usize, from: &[u8]) {
    for (to, from) in to.iter_mut().skip(at).zip(from) {
        *to = *from;
    }
}

/// Keeps track of whether a message is open behind `header` (RFC 6455 §5.4). A control frame may
/// stand in the middle of one.
#[inline(always)]
fn begin(header: Header, in_message: &mut bool) {
    if !header.opcode.is_control() {
        *in_message = !header.fin;
    }
}

/// Where the scanner stands behind `header`.
fn after(header: Header) -> State {
    match header {
        Header { opcode: Opcode::Close, mask, payload_len, .. } => {
            // decode_header lets no control frame of more than 125 bytes through.
            let left = payload_len as usize;
            State::ClosePayload(Box::new(ClosePayload { left, mask, close: Close::empty() }))
        }
        Header { payload_len: 0, .. } => BOUNDARY,
        Header { payload_len, .. } => State::Payload { left: payload_len },
    }
}
