//! What the scanner asks of a chunk, and chunks that do not keep their word.

use super::*;

/// Payload is skipped: of 64 frames of 16 KiB only the headers are read.
#[test]
fn payload_is_not_read() {
    let frame = Sent {
        opcode: OpCode::Data(Data::Binary),
        fin: true,
        mask: None,
        rsv1: false,
        payload: vec![0; 16 * 1024],
    };
    let bytes = frame.bytes().repeat(64);
    let mut chunk = Counting { bytes: &bytes, spare: 0, read: 0 };
    let mut frames = 0;
    Scanner::new(Side::Server).scan(&mut chunk, |_| frames += 1).unwrap();
    assert_eq!(frames, 64);
    assert!(chunk.read <= 64 * 14, "{} bytes were read", chunk.read);
}

/// A host that does not hand out what it announced is a fault and no panic.
#[test]
fn an_unreadable_chunk_is_a_fault() {
    struct Nothing;
    impl Chunk for Nothing {
        fn len(&self) -> usize {
            10
        }
        fn read(&mut self, _: usize, _: usize) -> Option<&[u8]> {
            None
        }
    }
    let mut scanner = Scanner::new(Side::Server);
    assert_eq!(scanner.scan(&mut Nothing, |_| {}), Err(Fault::Unreadable));
    assert!(!scanner.is_scanning());
}

/// A host that hands out more than there is: nothing behind the chunk is looked at.
#[test]
fn a_chunk_that_is_longer_than_it_says() {
    struct Long<'a>(&'a [u8]);
    impl Chunk for Long<'_> {
        fn len(&self) -> usize {
            2
        }
        fn read(&mut self, _: usize, _: usize) -> Option<&[u8]> {
            Some(self.0)
        }
    }
    for frames in [&b"\x81\x00\x81\x00\x88\x00"[..], b"\x81\x05", b"\x88\x05abcdefgh", b"\x81"] {
        let mut scanner = Scanner::new(Side::Server);
        let mut events = 0;
        let _ = scanner.scan(&mut Long(frames), |_| events += 1);
        assert!(events <= 2, "{frames:?}: {events}");
    }
}

/// A chunk that ends right behind a header: the frame is open, and its end is no boundary of this chunk.
#[test]
fn a_chunk_that_ends_behind_a_header() {
    for len in 1..=4_u8 {
        let mut scanner = Scanner::new(Side::Server);
        scanner.scan(&mut &[0x81, len][..], |_| {}).unwrap();
        assert_eq!(scanner.boundaries(), Boundaries { frame: Some(0), message: Some(0) });
        assert!(!scanner.at_boundary(), "{len}");
        scanner.scan(&mut &vec![0x88; usize::from(len)][..], |event| panic!("{event:?}")).unwrap();
        assert!(scanner.at_message_boundary(), "{len}");
    }
}
