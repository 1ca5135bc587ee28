//! The closing handshake: whatever happens in whatever order, it ends at most once, waits only where
//! somebody has to answer, and owes only what may be sent.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ws_clean_close::frame::{Chunk, Close, CloseCode, Event as FrameEvent, Scanner, Status};
use ws_clean_close::handshake::{Decision, Event, Handshake, Outcome, Side, State};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step<'a> {
    Close(bool, &'a [u8]),
    Own(bool, u16),
    Fault,
    ServerEnd,
    ServerCut,
    Timeout,
}

fn side(server: bool) -> Side {
    if server {
        Side::Server
    } else {
        Side::Client
    }
}

/// A Close frame as it comes off the wire.
fn close(payload: &[u8]) -> Option<Close> {
    let payload = &payload[..payload.len().min(125)];
    let frame = [&[0x88, payload.len() as u8], payload].concat();
    let mut close = None;
    let mut chunk = &frame[..];
    assert_eq!(Chunk::len(&chunk), frame.len());
    Scanner::new()
        .scan(&mut chunk, |event| {
            if let FrameEvent::Close(frame) = event {
                close = Some(frame);
            }
        })
        .expect("a good frame");
    close
}

fuzz_target!(|steps: Vec<Step>| {
    let mut handshake = Handshake::new();
    let (mut passed, mut own) = ([false, false], None);
    for step in steps {
        let before = handshake.state();
        let decision = match step {
            Step::Close(server, payload) => {
                let Some(close) = close(payload) else { continue };
                let tracked = !matches!(before, State::Untracked | State::Ended);
                passed[usize::from(server)] |= tracked;
                handshake.on_close(side(server), close)
            }
            // The filter sends its own only on an open WebSocket.
            Step::Own(..) if before != State::Open => continue,
            Step::Own(server, code) => {
                let Some(close) = CloseCode::new(code).and_then(|c| Close::new(c, "")) else {
                    continue;
                };
                own = Some(server);
                handshake.on_own_close(side(server), close)
            }
            Step::Fault => handshake.on(Event::Fault),
            Step::ServerEnd => handshake.on(Event::ServerEnd),
            Step::ServerCut => handshake.on(Event::ServerCut),
            Step::Timeout => handshake.on(Event::Timeout),
        };
        let after = handshake.state();
        if before == State::Ended {
            assert_eq!((after, decision), (State::Ended, Decision::Pass), "it ends once");
        }
        let ends = matches!(
            decision,
            Decision::Finish | Decision::Drop | Decision::Answer | Decision::Abandon
        );
        assert_eq!(ends, before != State::Ended && after == State::Ended);
        match decision {
            Decision::AwaitTcpClose => assert_eq!(after, State::Closed),
            Decision::Abandon => assert!(passed == [false, false] && own.is_none()),
            Decision::Answer => {
                let owed = handshake.owed_answer().expect("somebody is owed something");
                assert!(!matches!(owed.status(), Status::Invalid), "{owed:?}");
            }
            _ => {}
        }
        assert_eq!(handshake.has_closed(Side::Server), passed[1]);
        assert_eq!(handshake.has_closed(Side::Client), passed[0]);
        assert_eq!(handshake.muted(), own.map(|to| side(!to)));
        let stands_for = |server: bool| passed[usize::from(server)] || own == Some(!server);
        let outcome = match (stands_for(true), stands_for(false)) {
            (true, true) => Outcome::Clean,
            (true, false) => Outcome::ServerOnly,
            (false, true) => Outcome::ClientOnly,
            (false, false) => Outcome::Abnormal,
        };
        assert_eq!(handshake.outcome(), outcome);
        assert_eq!(handshake.initiator().is_some(), handshake.first_close().is_some());
    }
});
