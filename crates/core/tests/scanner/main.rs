//! The frame scanner against tungstenite, with every chunking.

mod chunks;
mod faults;

use std::io::Cursor;

use proptest::collection::vec;
use proptest::prelude::*;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};
use ws_clean_close_core::frame::{
    decode_header, Close, CloseCode, Fault, Header, Opcode, Parsing, Status,
};
use ws_clean_close_core::scanner::{Boundaries, Chunk, Event, Scanner};
use ws_clean_close_core::Side;

/// A frame as tungstenite writes it.
#[derive(Clone, Debug)]
struct Sent {
    opcode: OpCode,
    fin: bool,
    mask: Option<[u8; 4]>,
    rsv1: bool,
    payload: Vec<u8>,
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let header = FrameHeader {
            is_final: self.fin,
            rsv1: self.rsv1,
            opcode: self.opcode,
            mask: self.mask,
            ..FrameHeader::default()
        };
        let mut bytes = Vec::new();
        Frame::from_payload(header, self.payload.clone().into()).format(&mut bytes).unwrap();
        bytes
    }

    /// What the scanner must say of it.
    fn header(&self) -> Header {
        let opcode = match self.opcode {
            OpCode::Data(Data::Continue) => Opcode::Continuation,
            OpCode::Data(Data::Text) => Opcode::Text,
            OpCode::Data(Data::Binary) => Opcode::Binary,
            OpCode::Control(Control::Close) => Opcode::Close,
            OpCode::Control(Control::Ping) => Opcode::Ping,
            OpCode::Control(Control::Pong) => Opcode::Pong,
            other => panic!("{other:?} is not sent here"),
        };
        Header { fin: self.fin, opcode, mask: self.mask, payload_len: self.payload.len() as u64 }
    }
}

/// Around the places where the length changes its form, and beyond.
fn payload_len() -> impl Strategy<Value = usize> {
    prop_oneof![0..200_usize, 120..135_usize, 65_530..65_545_usize, Just(70_000)]
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Server), Just(Side::Client)]
}

/// A client masks each of its frames, a server none (RFC 6455 §5.1).
fn mask(side: Side) -> impl Strategy<Value = Option<[u8; 4]>> {
    any::<[u8; 4]>().prop_map(move |mask| (side == Side::Client).then_some(mask))
}

fn data_frame(side: Side) -> impl Strategy<Value = Sent> {
    let opcode = prop_oneof![Just(Data::Continue), Just(Data::Text), Just(Data::Binary)];
    (opcode, any::<bool>(), mask(side), any::<bool>(), payload_len(), any::<u8>()).prop_map(
        |(opcode, fin, mask, rsv1, len, byte)| Sent {
            opcode: OpCode::Data(opcode),
            fin,
            mask,
            rsv1,
            payload: vec![byte; len],
        },
    )
}

fn control_frame(side: Side, opcode: Control) -> impl Strategy<Value = Sent> {
    (mask(side), vec(any::<u8>(), 0..=125)).prop_map(move |(mask, payload)| Sent {
        opcode: OpCode::Control(opcode),
        fin: true,
        mask,
        rsv1: false,
        payload,
    })
}

fn frame(side: Side) -> impl Strategy<Value = Sent> {
    prop_oneof![
        4 => data_frame(side),
        1 => control_frame(side, Control::Ping),
        1 => control_frame(side, Control::Pong),
    ]
}

/// Frames of one side, and its Close frame.
fn frames() -> impl Strategy<Value = (Side, Vec<Sent>, Option<Sent>)> {
    side().prop_flat_map(|side| {
        let close = proptest::option::of(control_frame(side, Control::Close));
        (Just(side), vec(frame(side), 0..8), close)
    })
}

/// A source that hands out what it was asked for and at most `spare` bytes more, and counts them.
struct Counting<'a> {
    bytes: &'a [u8],
    spare: usize,
    read: usize,
}

impl Chunk for Counting<'_> {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn read(&mut self, offset: usize, len: usize) -> Option<&[u8]> {
        let rest = self.bytes.get(offset..).filter(|rest| rest.len() >= len)?;
        let handed_out = &rest[..rest.len().min(len + self.spare)];
        self.read += handed_out.len();
        Some(handed_out)
    }
}

/// Feeds `bytes` in chunks of these lengths, over and over, 0 standing for an empty chunk. Each
/// chunk hands out more than it is asked for, or not.
fn scan(side: Side, bytes: &[u8], lens: &[usize]) -> (Vec<Event>, Result<(), Fault>, Scanner) {
    let mut scanner = Scanner::new(side);
    let mut events = Vec::new();
    let mut rest = bytes;
    let mut result = Ok(());
    let mut empties = 0;
    for &len in lens.iter().cycle() {
        empties = if len == 0 { empties + 1 } else { 0 };
        if rest.is_empty() || empties > lens.len() {
            break;
        }
        let (chunk, after) = rest.split_at(len.min(rest.len()));
        let mut chunk = Counting { bytes: chunk, spare: len % 4 * 100, read: 0 };
        result = result.and(scanner.scan(&mut chunk, |event| events.push(event)));
        rest = after;
    }
    (events, result, scanner)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What tungstenite writes, the scanner reads, however it is cut.
    #[test]
    fn agrees_with_tungstenite(
        (side, frames, close) in frames(),
        behind in vec(any::<u8>(), 0..40),
        lens in vec(prop_oneof![0..20_usize, 1..5000_usize], 1..8),
    ) {
        prop_assume!(lens.iter().any(|&len| len > 0));
        let mut bytes: Vec<u8> = frames.iter().flat_map(Sent::bytes).collect();
        let mut expected: Vec<Event> = frames.iter().map(|f| Event::Frame(f.header())).collect();
        if let Some(close) = &close {
            bytes.extend(close.bytes());
            // Nothing behind a Close frame is looked at, whatever it is.
            bytes.extend(&behind);
            expected.push(Event::Frame(close.header()));
        }
        let (events, result, scanner) = scan(side, &bytes, &lens);
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(scanner.is_scanning(), close.is_none());
        prop_assert_eq!(scanner.at_boundary(), close.is_none());
        match (close, events.split_last()) {
            (Some(close), Some((Event::Close(read), events))) => {
                prop_assert_eq!(read.payload(), &close.payload[..]);
                prop_assert_eq!(events, &expected[..]);
            }
            (None, _) => prop_assert_eq!(events, expected),
            (Some(_), last) => prop_assert!(false, "the Close frame was not seen: {:?}", last),
        }
    }

    /// The last places of each chunk where a frame could stand, told from the frames' lengths.
    #[test]
    fn boundaries(
        (side, frames, _) in frames(),
        lens in vec(prop_oneof![1..20_usize, 1..5000_usize, 1..80_000_usize], 1..8),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(Sent::bytes).collect();
        // Every boundary, and whether no message is open there.
        let mut expected = vec![(0, true)];
        for frame in &frames {
            let (at, mut between) = *expected.last().unwrap();
            if let OpCode::Data(_) = frame.opcode {
                between = frame.fin;
            }
            expected.push((at + frame.bytes().len(), between));
        }
        let mut scanner = Scanner::new(side);
        let (mut start, mut lens) = (0, lens.iter().cycle());
        while start < bytes.len() {
            let end = bytes.len().min(start + lens.next().unwrap());
            scanner.scan(&mut &bytes[start..end], |_| {}).unwrap();
            let last = |only_between: bool| {
                let inside = expected.iter().filter(|(at, between)| {
                    (start..=end).contains(at) && (*between || !only_between)
                });
                inside.map(|(at, _)| at - start).next_back()
            };
            let expected = Boundaries { frame: last(false), message: last(true) };
            prop_assert_eq!(scanner.boundaries(), expected);
            start = end;
        }
    }

    /// Any bytes at all: no panic, and no chunking changes what is found.
    #[test]
    fn chunking_changes_nothing(
        side in side(),
        bytes in vec(any::<u8>(), 0..400),
        lens in vec(0..20_usize, 1..8),
    ) {
        prop_assume!(lens.iter().any(|&len| len > 0));
        let whole = scan(side, &bytes, &[bytes.len().max(1)]);
        for lens in [&lens[..], &[1]] {
            let cut = scan(side, &bytes, lens);
            prop_assert_eq!(&whole.0, &cut.0);
            prop_assert_eq!(whole.1, cut.1);
            prop_assert_eq!(whole.2.at_boundary(), cut.2.at_boundary());
        }
    }

    /// Any header bytes: what one takes, the other takes, and as the same.
    #[test]
    fn headers_agree_with_tungstenite(side in side(), bytes in vec(any::<u8>(), 0..20)) {
        let mut cursor = Cursor::new(&bytes);
        let theirs = FrameHeader::parse(&mut cursor);
        match (decode_header(side, &bytes), theirs) {
            (Ok(Parsing::Done(ours, len)), Ok(Some((theirs, payload_len)))) => {
                prop_assert_eq!(len as u64, cursor.position());
                prop_assert_eq!(ours.fin, theirs.is_final);
                prop_assert_eq!(ours.mask, theirs.mask);
                prop_assert_eq!(ours.payload_len, payload_len);
                prop_assert_eq!(ours.opcode as u8, opcode_index(theirs.opcode));
            }
            (Ok(Parsing::NeedMore(len)), Ok(None)) => prop_assert!(len > bytes.len()),
            // tungstenite judges these in its reader, not in the header.
            (Err(Fault::FragmentedControl | Fault::OversizedControl | Fault::LengthOverflow), _) => {}
            (Err(Fault::ReservedOpcode(_)), Err(_) | Ok(None)) => {}
            (Err(Fault::ReservedOpcode(_)), Ok(Some((theirs, _)))) => {
                prop_assert!(matches!(
                    theirs.opcode,
                    OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_))
                ));
            }
            (Err(Fault::Masking), _) => {
                prop_assert_eq!(bytes[1] & 0x80 != 0, side == Side::Server);
            }
            (Err(Fault::ReservedBits), _) => prop_assert!(bytes[0] & 0x70 != 0 && bytes[0] & 15 == 8),
            (ours, theirs) => prop_assert!(false, "{:?}, tungstenite: {:?}", ours, theirs),
        }
    }

    /// A Close frame of the filter's own is one that tungstenite takes.
    #[test]
    fn own_close_frames_are_well_formed(code in any::<u16>(), reason in "\\PC{0,60}") {
        let Some(code) = CloseCode::new(code) else { return Ok(()) };
        let Some(close) = Close::new(code, &reason) else {
            prop_assert!(reason.len() > 123);
            return Ok(());
        };
        prop_assert_eq!(close.status(), Status::Code(code, &reason));
        for mask in [None, Some([1, 2, 3, 250])] {
            let bytes = mask.map_or_else(|| close.to_server_frame(), |m| close.to_client_frame(m));
            let payload = close.payload().to_vec();
            let sent = Sent {
                opcode: OpCode::Control(Control::Close), fin: true, mask, rsv1: false, payload,
            };
            prop_assert_eq!(bytes, sent.bytes());
        }
    }
}

fn opcode_index(opcode: OpCode) -> u8 {
    match opcode {
        OpCode::Data(Data::Continue) => 0,
        OpCode::Data(Data::Text) => 1,
        OpCode::Data(Data::Binary) => 2,
        OpCode::Control(Control::Close) => 3,
        OpCode::Control(Control::Ping) => 4,
        OpCode::Control(Control::Pong) => 5,
        _ => u8::MAX,
    }
}

#[test]
fn every_cut_of_a_short_stream() {
    let bytes: Vec<u8> = [
        Sent {
            opcode: OpCode::Data(Data::Text),
            fin: false,
            mask: Some([1, 2, 3, 4]),
            rsv1: true,
            payload: vec![7; 130],
        },
        Sent {
            opcode: OpCode::Control(Control::Ping),
            fin: true,
            mask: Some([0; 4]),
            rsv1: false,
            payload: vec![],
        },
        Sent {
            opcode: OpCode::Control(Control::Close),
            fin: true,
            mask: Some([9, 8, 7, 6]),
            rsv1: false,
            payload: b"\x10\xe1bye".to_vec(),
        },
    ]
    .iter()
    .flat_map(Sent::bytes)
    .collect();
    let whole = scan(Side::Client, &bytes, &[bytes.len()]).0;
    assert_eq!(whole.len(), 4);
    for first in 1..bytes.len() {
        for second in 0..=bytes.len() - first {
            let rest = bytes.len() - first - second;
            assert_eq!(
                scan(Side::Client, &bytes, &[first, second, rest]).0,
                whole,
                "{first}, {second}, {rest}"
            );
        }
    }
}
