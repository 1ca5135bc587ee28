//! The header of a frame and the payload of a Close frame, as bytes (RFC 6455 §5.2, §5.5.1, §7.4).

use crate::handshake::Side;

/// Shortest frame header: two bytes, no extended payload length, no masking key.
pub(crate) const MIN_HEADER_LEN: usize = 2;
/// Longest frame header: two bytes, a 64-bit payload length and a masking key.
pub const MAX_HEADER_LEN: usize = 14;
/// Longest payload of a control frame in bytes (RFC 6455 §5.5).
pub const MAX_CONTROL_PAYLOAD_LEN: usize = 125;

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
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

/// Why the bytes cannot be followed as frames any more (RFC 6455 §5.1, §5.2 and §5.5). Judging them
/// is the endpoints' business: what breaks the rules passes, and may be no WebSocket at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A reserved opcode: 3 to 7 or 11 to 15.
    ReservedOpcode(u8),
    /// A control frame without the FIN bit.
    FragmentedControl,
    /// A control frame with a payload of more than 125 bytes.
    OversizedControl,
    /// A frame of a client without a masking key, or one of a server with one.
    Masking,
    /// A Close frame with an RSV bit set: no extension defines one for it.
    ReservedBits,
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
            Self::Masking => f.write_str("a mask where none belongs, or none where one does"),
            Self::ReservedBits => f.write_str("a Close frame with RSV bits"),
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

/// Decodes the frame header at the beginning of `bytes`, which come from `side` (RFC 6455 §5.2). What
/// follows the header is not looked at.
///
/// # Errors
/// A [`Fault`] as soon as the bytes at hand show it.
// The scanner's inner loop, in a module that is otherwise built for size.
#[inline(always)]
pub fn decode_header(side: Side, bytes: &[u8]) -> Result<Parsing, Fault> {
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
        if opcode == Opcode::Close && first & RSV != 0 {
            return Err(Fault::ReservedBits);
        }
    }
    // A client masks every frame and a server none (RFC 6455 §5.1).
    let key_len = match side {
        Side::Client => 4,
        Side::Server => 0,
    };
    if (second & MASK != 0) != (key_len != 0) {
        return Err(Fault::Masking);
    }
    // Branch instead of computing: predictable, and it breaks the dependency on the previous length.
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
    Ok(Parsing::Done(Header { fin, opcode, mask, payload_len }, header_len))
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
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        for (to, from) in self.payload.iter_mut().skip(usize::from(self.len)).zip(bytes) {
            *to = *from;
            self.len += 1;
        }
    }

    /// Unmasks the payload, or masks it, which is the same (RFC 6455 §5.3).
    pub(crate) fn unmask(&mut self, mask: [u8; 4]) {
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
