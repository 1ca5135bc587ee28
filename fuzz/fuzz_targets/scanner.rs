//! The frame scanner: any bytes in any chunks give the events and boundaries of one chunk, and what
//! tungstenite finds; its state is bounded.
#![no_main]

use std::io::Cursor;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::FrameHeader;
use ws_clean_close_core::frame::{Fault, Opcode};
use ws_clean_close_core::scanner::{Chunk, Event, Scanner};
use ws_clean_close_core::Side;

/// The filter promises a few hundred bytes a stream.
const _: () = assert!(size_of::<Scanner>() < 256);

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// Lengths of the chunks, over and over.
    lens: [u8; 4],
    /// How much more than it is asked for a chunk hands out.
    spare: u8,
    client: bool,
    bytes: &'a [u8],
}

/// A chunk that hands out what it was asked for, and a little more.
struct Spare<'a> {
    bytes: &'a [u8],
    spare: usize,
}

impl Chunk for Spare<'_> {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn read(&mut self, offset: usize, len: usize) -> Option<&[u8]> {
        assert!(offset + len <= self.bytes.len(), "asked for bytes that are not there");
        self.bytes[offset..].get(..(len + self.spare).min(self.bytes.len() - offset))
    }
}

struct Seen {
    events: Vec<Event>,
    result: Result<(), Fault>,
    /// Last places for a frame, and between two messages, from the beginning of all the bytes.
    frame: Option<usize>,
    message: Option<usize>,
    scanner: Scanner,
}

fn scan(side: Side, bytes: &[u8], lens: &[u8], spare: usize) -> Seen {
    let mut scanner = Scanner::new(side);
    let mut events = Vec::new();
    let (mut result, mut frame, mut message) = (Ok(()), None, None);
    let mut at = 0;
    let mut lens = lens.iter().cycle();
    while at < bytes.len() && result.is_ok() {
        let len = lens.next().map_or(0, |&len| usize::from(len)).max(1).min(bytes.len() - at);
        let mut chunk = Spare { bytes: &bytes[at..at + len], spare };
        result = scanner.scan(&mut chunk, |event| events.push(event));
        let boundaries = scanner.boundaries();
        for (last, here) in [(&mut frame, boundaries.frame), (&mut message, boundaries.message)] {
            assert!(here.is_none_or(|here| here <= len));
            *last = here.map(|here| at + here).or(*last);
        }
        at += len;
    }
    Seen { events, result, frame, message, scanner }
}

/// The headers that tungstenite finds, up to the first Close frame or what it refuses.
fn oracle(side: Side, bytes: &[u8]) -> Vec<(Opcode, bool, Option<[u8; 4]>, u64)> {
    let mut headers = Vec::new();
    let mut at = 0_u64;
    while at < bytes.len() as u64 {
        let mut rest = Cursor::new(&bytes[at as usize..]);
        let Ok(Some((header, len))) = FrameHeader::parse(&mut rest) else { break };
        let opcode = match header.opcode {
            OpCode::Data(Data::Continue) => Opcode::Continuation,
            OpCode::Data(Data::Text) => Opcode::Text,
            OpCode::Data(Data::Binary) => Opcode::Binary,
            OpCode::Control(Control::Close) => Opcode::Close,
            OpCode::Control(Control::Ping) => Opcode::Ping,
            OpCode::Control(Control::Pong) => Opcode::Pong,
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => break,
        };
        // Announced by 16 bits, a length is more than 125 (RFC 6455 §5.2), whatever they say.
        let announced = bytes[at as usize + 1] & 0x7f;
        let rsv = opcode == Opcode::Close && bytes[at as usize] & 0x70 != 0;
        let bad = rsv
            || header.mask.is_some() != (side == Side::Client)
            || opcode.is_control() && (!header.is_final || announced > 125);
        if bad || len > i64::MAX as u64 {
            break;
        }
        headers.push((opcode, header.is_final, header.mask, len));
        if opcode == Opcode::Close {
            break;
        }
        at = at.saturating_add(rest.position()).saturating_add(len);
    }
    headers
}

fuzz_target!(|input: Input| {
    let side = if input.client { Side::Client } else { Side::Server };
    let whole = scan(side, input.bytes, &[u8::MAX], 1 << 20);
    let chunked = scan(side, input.bytes, &input.lens, input.spare.into());
    assert_eq!(whole.events, chunked.events);
    assert_eq!(whole.result, chunked.result);
    assert_eq!(whole.scanner.at_boundary(), chunked.scanner.at_boundary());
    assert_eq!(whole.scanner.is_scanning(), chunked.scanner.is_scanning());
    if whole.result.is_ok() {
        assert_eq!((whole.frame, whole.message), (chunked.frame, chunked.message));
    }
    let headers: Vec<_> = whole
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Frame(h) => Some((h.opcode, h.fin, h.mask, h.payload_len)),
            Event::Close(_) => None,
        })
        .collect();
    assert_eq!(headers, oracle(side, input.bytes));
});
