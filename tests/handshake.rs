//! Random interleavings of the closing handshake: whatever happens in whatever order, what it
//! decides fits what has passed.

use proptest::collection::vec;
use proptest::prelude::*;
use ws_clean_close::frame::{Close, CloseCode};
use ws_clean_close::handshake::{Decision, Event, Handshake, Outcome, Side, State};

#[derive(Clone, Debug)]
enum Happening {
    Close(Side, Close),
    Event(Event),
}

fn close() -> impl Strategy<Value = Close> {
    prop_oneof![
        Just(Close::empty()),
        (3000..5000_u16, "[a-z]{0,20}").prop_map(|(code, reason)| {
            Close::new(CloseCode::new(code).unwrap(), &reason).unwrap()
        }),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => close().prop_map(|close| Happening::Close(Side::Server, close)),
        3 => close().prop_map(|close| Happening::Close(Side::Client, close)),
        1 => Just(Happening::Event(Event::Fault)),
        1 => Just(Happening::Event(Event::ServerEnd)),
        1 => Just(Happening::Event(Event::ServerCut)),
        1 => Just(Happening::Event(Event::Timeout)),
    ]
}

/// What has passed, told without a state machine.
#[derive(Default)]
struct Witness {
    server: Option<Close>,
    client: Option<Close>,
    first: Option<Side>,
    /// The frames were lost before any Close frame.
    blind: bool,
    ended: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn decisions_fit_what_has_passed(happenings in vec(happening(), 0..12)) {
        let mut handshake = Handshake::new();
        let mut seen = Witness::default();
        for happening in happenings {
            let closes_before = (seen.server.is_some(), seen.client.is_some());
            let decision = match &happening {
                Happening::Close(side, close) => {
                    if !seen.blind && !seen.ended {
                        let slot = match side {
                            Side::Server => &mut seen.server,
                            Side::Client => &mut seen.client,
                        };
                        slot.get_or_insert(*close);
                        seen.first.get_or_insert(*side);
                    }
                    handshake.on_close(*side, *close)
                }
                Happening::Event(event) => {
                    if *event == Event::Fault && closes_before == (false, false) && !seen.ended {
                        seen.blind = true;
                    }
                    handshake.on(*event)
                }
            };
            let closes = (seen.server.is_some(), seen.client.is_some());
            let count = |(a, b): (bool, bool)| u8::from(a) + u8::from(b);
            let ends = matches!(
                decision,
                Decision::Finish | Decision::Drop | Decision::Answer | Decision::Abandon
            );
            prop_assert!(!(ends && seen.ended), "ended twice, the second time by {happening:?}");
            prop_assert!(!seen.ended || decision == Decision::Pass);
            match decision {
                Decision::Pass => {}
                // A time limit starts with each Close frame, and only then.
                Decision::AwaitAnswer => prop_assert_eq!((count(closes_before), count(closes)), (0, 1)),
                Decision::AwaitTcpClose => prop_assert_eq!((count(closes_before), count(closes)), (1, 2)),
                // Nobody's failure: the server has said goodbye, or the filter's patience is over.
                Decision::Finish => prop_assert!(
                    closes.0 || matches!(happening, Happening::Event(Event::Timeout))
                ),
                // A failure of the server, which has not said goodbye as far as could be seen.
                Decision::Drop => prop_assert!(!closes.0),
                Decision::Answer => {
                    prop_assert_eq!(closes, (false, true));
                    prop_assert!(matches!(happening, Happening::Event(Event::ServerEnd)));
                    prop_assert!(handshake.owed_answer().is_some());
                }
                Decision::Abandon => {
                    prop_assert_eq!(closes, (false, false));
                    prop_assert!(!seen.blind);
                    prop_assert!(matches!(happening, Happening::Event(Event::ServerEnd)));
                }
            }
            // The server's end is always the end.
            if matches!(happening, Happening::Event(Event::ServerEnd | Event::ServerCut)) {
                prop_assert!(ends || seen.ended);
            }
            seen.ended |= ends;
            prop_assert_eq!(handshake.state() == State::Ended, seen.ended);
            prop_assert_eq!(handshake.initiator(), seen.first);
            prop_assert_eq!(handshake.outcome(), match closes {
                (true, true) => Outcome::Clean,
                (true, false) => Outcome::ServerOnly,
                (false, true) => Outcome::ClientOnly,
                (false, false) => Outcome::Abnormal,
            });
            let first = match seen.first {
                Some(Side::Server) => seen.server.as_ref(),
                Some(Side::Client) => seen.client.as_ref(),
                None => None,
            };
            prop_assert_eq!(handshake.first_close(), first);
        }
    }
}
