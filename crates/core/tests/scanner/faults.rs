//! Bytes that are no frames, and Close frames that are none.

use super::*;

#[test]
fn faults() {
    use Side::{Client, Server};
    for (side, bytes, fault) in [
        (Server, &[0x83, 0x00][..], Fault::ReservedOpcode(3)),
        (Client, &[0x8f, 0x80], Fault::ReservedOpcode(15)),
        (Server, &[0x08, 0x00], Fault::FragmentedControl),
        (Client, &[0x09, 0x80], Fault::FragmentedControl),
        (Server, &[0x88, 126], Fault::OversizedControl),
        (Client, &[0x8a, 0x80 | 127], Fault::OversizedControl),
        (Server, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], Fault::LengthOverflow),
        (Server, &[0x82, 0x81], Fault::Masking),
        (Client, &[0x82, 0x01], Fault::Masking),
        (Client, &[0xc8, 0x80], Fault::ReservedBits),
        (Server, &[0xa8, 0x00], Fault::ReservedBits),
        (Server, &[0x98, 0x00], Fault::ReservedBits),
    ] {
        for lens in [&[bytes.len()][..], &[1]] {
            let (events, result, scanner) = scan(side, bytes, lens);
            assert_eq!((events, result), (vec![], Err(fault)), "{bytes:x?}");
            assert!(!scanner.is_scanning() && !scanner.at_boundary());
        }
    }
    // An extension may use them on other frames (RFC 7692 §6).
    assert_eq!(scan(Server, &[0xc2, 0x00, 0xc9, 0x00], &[4]).1, Ok(()));
    // Long, but possible: nothing is allocated for it, and nothing is found behind it.
    let (events, result, scanner) =
        scan(Server, &[0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255, 0x88, 0], &[12]);
    assert_eq!((events.len(), result, scanner.at_boundary()), (1, Ok(()), false));
}

#[test]
fn a_status_is_checked() {
    let status = |payload: &[u8]| {
        let sent = Sent {
            opcode: OpCode::Control(Control::Close),
            fin: true,
            mask: Some([0xaa; 4]),
            rsv1: false,
            payload: payload.to_vec(),
        };
        match scan(Side::Client, &sent.bytes(), &[3]).0.last() {
            Some(Event::Close(close)) => match close.status() {
                Status::None => "none".to_owned(),
                Status::Invalid => "invalid".to_owned(),
                Status::Code(code, reason) => format!("{} {reason}", code.get()),
            },
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(status(b""), "none");
    assert_eq!(status(b"\x03"), "invalid");
    assert_eq!(status(b"\x03\xe8"), "1000 ");
    assert_eq!(status(b"\x03\xf3wei\xc3\x9f"), "1011 weiß");
    assert_eq!(status(b"\x03\xf3wei\xc3"), "invalid");
    assert_eq!(status(b"\x10\xe1bye"), "4321 bye");
    assert_eq!(status(b"\x10\xe1\xff"), "invalid");
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        assert_eq!(status(&code.to_be_bytes()), "invalid", "{code}");
    }
}

/// What the log says, and what tests compare.
#[test]
fn closes_and_faults_in_words() {
    let close = |reason| Close::new(CloseCode::new(4000).unwrap(), reason).unwrap();
    assert_eq!(close("a"), close("a"));
    assert_ne!(close("a"), close("b"));
    assert_ne!(close(""), Close::empty());
    assert_eq!(format!("{:?}", close("a")), "Close([15, 160, 97])");
    assert_eq!(Fault::ReservedOpcode(3).to_string(), "reserved opcode 0x3");
    assert_eq!(Fault::Unreadable.to_string(), "the host did not hand out the bytes of a frame");
    assert!(Chunk::is_empty(&&b""[..]) && !Chunk::is_empty(&&b"x"[..]));
    // FIN and the opcode, the length.
    assert_eq!(close("a").to_server_frame(), b"\x88\x03\x0f\xa0a");
    assert_eq!(close("a").to_client_frame([0; 4]), b"\x88\x83\0\0\0\0\x0f\xa0a");
}
