//! Incremental WebSocket frame scanner (RFC 6455 §5.2): bytes in, frame events out.
//!
//! A proxy does not need the messages, only the places where frames begin and the Close frame
//! that ends them. So the scanner reads the 2 to 14 bytes of each header and the payload of a
//! Close frame (at most 125 bytes), and skips every other payload by count, without looking at it.
//! It knows no proxy: a [`Chunk`] is whatever can hand out a few of its bytes.

/// Shortest frame header: two bytes, no extended payload length, no masking key.
const MIN_HEADER_LEN: usize = 2;
/// Longest frame header: two bytes, a 64-bit payload length and a masking key.
pub const MAX_HEADER_LEN: usize = 14;
/// Longest payload of a control frame in bytes (RFC 6455 §5.5).
pub const MAX_CONTROL_PAYLOAD_LEN: usize = 125;

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const MASK: u8 = 0x80;
const PAYLOAD_LEN: u8 = 0x7f;
/// Value of the 7-bit payload length that announces a 16-bit one.
const LEN_16: u8 = 126;
/// Value of the 7-bit payload length that announces a 64-bit one.
const LEN_64: u8 = 127;

/// Opcode of a frame (RFC 6455 §5.2). Reserved opcodes have no value here: a frame that carries
/// one is a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment of a message, %x0.
    Continuation,
    /// The first fragment of a text message, %x1.
    Text,
    /// The first fragment of a binary message, %x2.
    Binary,
    /// A Close frame, %x8.
    Close,
    /// A Ping frame, %x9.
    Ping,
    /// A Pong frame, %xA.
    Pong,
}

impl Opcode {
    #[inline(always)]
    fn new(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Whether this is a control frame (RFC 6455 §5.5).
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// What a frame header says. The RSV bits are not kept: they belong to extensions and pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The FIN bit: last fragment of its message.
    pub fin: bool,
    /// The opcode.
    pub opcode: Opcode,
    /// The masking key, where the MASK bit is set.
    pub mask: Option<[u8; 4]>,
    /// Payload length in bytes, 0 to 2^63 - 1.
    pub payload_len: u64,
}

impl Header {
    /// Keeps track of whether a message is open behind this frame (RFC 6455 §5.4). A control frame
    /// may stand in the middle of one.
    #[inline(always)]
    fn begin(&self, in_message: &mut bool) {
        if !self.opcode.is_control() {
            *in_message = !self.fin;
        }
    }
}

/// Why the bytes cannot be followed as frames any more (RFC 6455 §5.2 and §5.5). Judging them is
/// the endpoints' business; the scanner only says that it has lost the frame boundaries, or would
/// have to guess them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A reserved opcode: 3 to 7 or 11 to 15.
    ReservedOpcode(u8),
    /// A control frame without the FIN bit.
    FragmentedControl,
    /// A control frame with a payload of more than 125 bytes.
    OversizedControl,
    /// A 64-bit payload length with its most significant bit set.
    LengthOverflow,
    /// The chunk did not hand out bytes that it said it had.
    Unreadable,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ReservedOpcode(opcode) => write!(f, "reserved opcode {opcode:#x}"),
            Self::FragmentedControl => f.write_str("fragmented control frame"),
            Self::OversizedControl => f.write_str("control frame longer than 125 bytes"),
            Self::LengthOverflow => f.write_str("payload length with its top bit set"),
            Self::Unreadable => f.write_str("the host did not hand out the bytes of a frame"),
        }
    }
}

/// Result of [`decode_header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsing {
    /// A whole header and how many bytes it took, 2 to 14.
    Done(Header, usize),
    /// The header is this many bytes long, as far as can be told; there are fewer.
    NeedMore(usize),
}

/// Decodes the frame header at the beginning of `bytes` (RFC 6455 §5.2). What follows the header
/// is not looked at.
///
/// # Errors
/// A [`Fault`] as soon as the bytes at hand show it.
// The scanner's inner loop, in a module that is otherwise built for size.
#[inline(always)]
pub fn decode_header(bytes: &[u8]) -> Result<Parsing, Fault> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(Parsing::NeedMore(MIN_HEADER_LEN));
    };
    let fin = first & FIN != 0;
    let opcode = Opcode::new(first & OPCODE).ok_or(Fault::ReservedOpcode(first & OPCODE))?;
    let short_len = second & PAYLOAD_LEN;
    if opcode.is_control() {
        if !fin {
            return Err(Fault::FragmentedControl);
        }
        if usize::from(short_len) > MAX_CONTROL_PAYLOAD_LEN {
            return Err(Fault::OversizedControl);
        }
    }
    let key_len = if second & MASK != 0 { 4 } else { 0 };
    // Branches, which a processor foresees where it would wait for sums: the next header's place
    // hangs on this one's length.
    let (payload_len, extended) = match short_len {
        LEN_16 => (rest.first_chunk().map(|len| u16::from_be_bytes(*len).into()), 2),
        LEN_64 => (rest.first_chunk().map(|len| u64::from_be_bytes(*len)), 8),
        short => (Some(u64::from(short)), 0),
    };
    let header_len = MIN_HEADER_LEN + extended + key_len;
    let Some(payload_len) = payload_len else {
        return Ok(Parsing::NeedMore(header_len));
    };
    if payload_len > i64::MAX as u64 {
        return Err(Fault::LengthOverflow);
    }
    let mask = match (key_len, rest.get(extended..).and_then(|rest| rest.first_chunk())) {
        (0, _) => None,
        (_, Some(mask)) => Some(*mask),
        (_, None) => return Ok(Parsing::NeedMore(header_len)),
    };
    let header = Header { fin, opcode, mask, payload_len };
    Ok(Parsing::Done(header, header_len))
}

/// The status code of a Close frame that may be on the wire (RFC 6455 §7.4): 1000 to 1003, 1007
/// to 1014 and 3000 to 4999. It cannot hold 1005, 1006 or 1015, which say that there was no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1001, going away.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002, protocol error.
    pub const PROTOCOL_ERROR: Self = Self(1002);

    /// `None` where `code` may not be on the wire.
    pub fn new(code: u16) -> Option<Self> {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(Self(code))
    }

    /// The code as a number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// What the payload of a Close frame says (RFC 6455 §5.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status<'a> {
    /// An empty payload: no status code was present (1005).
    None,
    /// A code and a reason, which may be empty.
    Code(CloseCode, &'a str),
    /// One byte, a code that may not be on the wire, or a reason that is not UTF-8.
    Invalid,
}

impl std::fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("no code"),
            Self::Code(code, "") => write!(f, "code {}", code.get()),
            Self::Code(code, reason) => write!(f, "code {} {reason:?}", code.get()),
            Self::Invalid => f.write_str("an invalid payload"),
        }
    }
}

/// A Close frame: its payload, unmasked, 0 to 125 bytes.
#[derive(Clone, Copy)]
pub struct Close {
    payload: [u8; MAX_CONTROL_PAYLOAD_LEN],
    len: u8,
}

impl Close {
    const EMPTY: Self = Self { payload: [0; MAX_CONTROL_PAYLOAD_LEN], len: 0 };

    /// A Close frame without a status code.
    pub fn empty() -> Self {
        Self::EMPTY
    }

    /// A Close frame with `code` and `reason`; `None` where the reason is longer than 123 bytes.
    pub fn new(code: CloseCode, reason: &str) -> Option<Self> {
        let mut close = Self::EMPTY;
        close.extend(&code.get().to_be_bytes());
        let end = close.payload.get_mut(2..2 + reason.len())?;
        end.copy_from_slice(reason.as_bytes());
        close.len = u8::try_from(2 + reason.len()).ok()?;
        Some(close)
    }

    /// The payload, unmasked.
    pub fn payload(&self) -> &[u8] {
        self.payload.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The payload, read and checked.
    pub fn status(&self) -> Status<'_> {
        match *self.payload() {
            [] => Status::None,
            [high, low, ref reason @ ..] => {
                match (CloseCode::new(u16::from_be_bytes([high, low])), std::str::from_utf8(reason))
                {
                    (Some(code), Ok(reason)) => Status::Code(code, reason),
                    _ => Status::Invalid,
                }
            }
            [_] => Status::Invalid,
        }
    }

    /// The frame as a server sends it: not masked, at most 127 bytes.
    pub fn to_server_frame(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(MIN_HEADER_LEN + usize::from(self.len));
        frame.extend([FIN | 0x8, self.len]);
        frame.extend(self.payload());
        frame
    }

    /// The frame as a client sends it, masked with `mask` (RFC 6455 §5.3): at most 131 bytes.
    pub fn to_client_frame(&self, mask: [u8; 4]) -> Vec<u8> {
        let mut masked = *self;
        masked.unmask(mask);
        let mut frame = vec![FIN | 0x8, MASK | self.len];
        frame.extend(mask);
        frame.extend(masked.payload());
        frame
    }

    /// Appends as much of `bytes` as fits; the header has promised that all of it does.
    fn extend(&mut self, bytes: &[u8]) {
        for (to, from) in self.payload.iter_mut().skip(usize::from(self.len)).zip(bytes) {
            *to = *from;
            self.len += 1;
        }
    }

    /// Unmasks the payload, or masks it, which is the same (RFC 6455 §5.3).
    fn unmask(&mut self, mask: [u8; 4]) {
        for (byte, key) in self.payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
    }
}

impl std::fmt::Debug for Close {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Close").field(&self.payload()).finish()
    }
}

impl PartialEq for Close {
    fn eq(&self, other: &Self) -> bool {
        self.payload() == other.payload()
    }
}

impl Eq for Close {}

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

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before a frame (`len` 0) or inside its header, of which `len` bytes are kept.
    Header { bytes: [u8; MAX_HEADER_LEN], len: u8 },
    /// Inside a payload that is of no interest.
    Payload { left: u64 },
    /// Inside the payload of a Close frame.
    ClosePayload { left: usize, mask: Option<[u8; 4]>, close: Close },
    /// A Close frame has passed, or the frames were lost.
    End,
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

/// Follows the frames of one direction through chunks of any size. Bounded state, a few hundred
/// bytes.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// Fragments of a message have passed, or begun, and its last one has not.
    in_message: bool,
    boundaries: Boundaries,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner that stands before the first frame.
    pub fn new() -> Self {
        Self { state: BOUNDARY, in_message: false, boundaries: Boundaries::default() }
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
                State::ClosePayload { left, mask, close } => {
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
                        pass_frames(at_hand, self.in_message, on_event)?;
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
                    match decode_header(bytes.get(..kept + more).unwrap_or_default())? {
                        Parsing::Done(header, header_len) => {
                            on_event(Event::Frame(header));
                            header.begin(&mut self.in_message);
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

fn read(chunk: &mut impl Chunk, offset: usize, len: usize) -> Result<&[u8], Fault> {
    chunk.read(offset, len).ok_or(Fault::Unreadable)
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
    bytes: &[u8],
    mut in_message: bool,
    on_event: &mut impl FnMut(Event),
) -> Result<Passed, Fault> {
    let mut len = 0;
    let mut message = (!in_message).then_some(0);
    loop {
        let rest = bytes.get(len..).unwrap_or_default();
        let Parsing::Done(header, header_len) = decode_header(rest)? else {
            return Ok(Passed { len, message, in_message, open: None });
        };
        on_event(Event::Frame(header));
        header.begin(&mut in_message);
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

/// Where the scanner stands behind `header`.
fn after(header: Header) -> State {
    match header {
        Header { opcode: Opcode::Close, mask, payload_len, .. } => State::ClosePayload {
            // decode_header lets no control frame of more than 125 bytes through.
            left: payload_len as usize,
            mask,
            close: Close::EMPTY,
        },
        Header { payload_len: 0, .. } => BOUNDARY,
        Header { payload_len, .. } => State::Payload { left: payload_len },
    }
}
