//! Frames on the wire, for peers that must control every byte. Encoding and decoding of headers
//! is tungstenite's, so that the testbed does not share the filter's mistakes.

use std::io::{self, Cursor};
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
#[cfg(feature = "tls")]
use tokio_rustls::{client, server};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

/// TCP, or TLS over it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// The connection, for what its socket can do besides.
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

#[cfg(feature = "tls")]
impl Stream for client::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

#[cfg(feature = "tls")]
impl Stream for server::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// The status code of an empty Close frame.
pub const NO_STATUS: u16 = 1005;

/// A frame; masked where a client sends it.
pub fn frame(opcode: OpCode, fin: bool, payload: &[u8], masked: bool) -> Vec<u8> {
    let header = FrameHeader {
        is_final: fin,
        opcode,
        mask: masked.then_some([0x37, 0xfa, 0x21, 0x3d]),
        ..FrameHeader::default()
    };
    let mut bytes = Vec::new();
    Frame::from_payload(header, payload.to_vec().into())
        .format(&mut bytes)
        .expect("a Vec takes every byte");
    bytes
}

/// A binary message in one frame.
pub fn message(payload: &[u8], masked: bool) -> Vec<u8> {
    frame(OpCode::Data(Data::Binary), true, payload, masked)
}

/// A Close frame; without a payload where the code is [`NO_STATUS`].
pub fn close(code: u16, reason: &str, masked: bool) -> Vec<u8> {
    let mut payload = Vec::new();
    if code != NO_STATUS {
        payload.extend(code.to_be_bytes());
        payload.extend(reason.as_bytes());
    }
    frame(OpCode::Control(Control::Close), true, &payload, masked)
}

/// What a Close frame's payload says: code and reason.
pub fn read_close(payload: &[u8]) -> (u16, String) {
    match payload {
        [high, low, reason @ ..] => {
            (u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned())
        }
        _ => (NO_STATUS, String::new()),
    }
}

/// A frame as it came.
#[derive(Debug)]
pub struct Received {
    pub opcode: OpCode,
    pub payload: Vec<u8>,
}

impl Received {
    pub fn is_close(&self) -> bool {
        self.opcode == OpCode::Control(Control::Close)
    }
}

/// Takes frames off a stream.
#[derive(Default)]
pub struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    pub fn new(begun: &[u8]) -> Self {
        Self { buffer: begun.to_vec() }
    }

    /// Adds bytes that were read elsewhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// Bytes of a frame that is not whole.
    pub fn left_over(&self) -> usize {
        self.buffer.len()
    }

    /// The next frame, where all of it is there. Bytes that are no frame stay where they are.
    pub fn pop(&mut self) -> Option<Received> {
        let mut cursor = Cursor::new(&self.buffer[..]);
        let (header, len) = FrameHeader::parse(&mut cursor).ok()??;
        let start = cursor.position() as usize;
        let end = start + len as usize;
        let mut payload = self.buffer.get(start..end)?.to_vec();
        if let Some(mask) = header.mask {
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        }
        self.buffer.drain(..end);
        Some(Received { opcode: header.opcode, payload })
    }

    /// Reads until there is a whole frame; `None` at the end of the stream.
    pub async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<Received>> {
        loop {
            if let Some(frame) = self.pop() {
                return Ok(Some(frame));
            }
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// The request that opens a WebSocket (RFC 6455 §4.1), with the RFC's own key.
pub fn opening_handshake(path: &str) -> String {
    opening_handshake_at("localhost", path)
}

/// The same, to one of many hosts.
pub fn opening_handshake_at(host: &str, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nupgrade: websocket\r\n\
         connection: Upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The status of a plain request over a connection of its own.
///
/// # Errors
/// Where there is no response.
pub async fn status(address: SocketAddr, path: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (head, _) = read_head(&mut stream).await?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::other(format!("no status: {head}")))
}

/// Reads the head of an HTTP message: its text, and the bytes that came behind it.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no HTTP head"));
        }
    }
}
