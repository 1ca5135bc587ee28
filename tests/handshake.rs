//! Random interleavings of the closing handshake: whatever happens in whatever order, what it
//! decides fits what has passed.

use proptest::collection::vec;
use proptest::prelude::*;
use ws_clean_close::frame::{Close, CloseCode};
use ws_clean_close::handshake::{Decision, Event, Handshake, Initiator, Outcome, Side, State};

#[derive(Clone, Debug)]
enum Happening {
    Close(Side, Close),
    /// The filter lets the WebSocket go, if it is open, with a Close frame to this side.
    Own(Side, Close),
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
        1 => close().prop_map(|close| Happening::Own(Side::Client, close)),
        1 => close().prop_map(|close| Happening::Own(Side::Server, close)),
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
    own: Option<(Side, Close)>,
    first: Option<(Initiator, Close)>,
    /// The frames were lost before any Close frame.
    blind: bool,
    ended: bool,
}

impl Witness {
    /// Whose Close frames there were: the server's, the client's. The filter's own stands for that of
    /// the side in whose name it was sent.
    fn closes(&self) -> (bool, bool) {
        let to = self.own.map(|(to, _)| to);
        (
            self.server.is_some() || to == Some(Side::Client),
            self.client.is_some() || to == Some(Side::Server),
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn decisions_fit_what_has_passed(happenings in vec(happening(), 0..12)) {
        let mut handshake = Handshake::new();
        let mut seen = Witness::default();
        for happening in happenings {
            let (before, had_own) = (seen.closes(), seen.own.is_some());
            let decision = match &happening {
                Happening::Close(side, close) => {
                    if !seen.blind && !seen.ended {
                        let (slot, who) = match side {
                            Side::Server => (&mut seen.server, Initiator::Server),
                            Side::Client => (&mut seen.client, Initiator::Client),
                        };
                        slot.get_or_insert(*close);
                        seen.first.get_or_insert((who, *close));
                    }
                    handshake.on_close(*side, *close)
                }
                Happening::Own(to, close) => {
                    if handshake.state() != State::Open {
                        continue;
                    }
                    seen.own = Some((*to, *close));
                    seen.first = Some((Initiator::Filter, *close));
                    handshake.on_own_close(*to, *close)
                }
                Happening::Event(event) => {
                    if *event == Event::Fault && before == (false, false) && !seen.ended {
                        seen.blind = true;
                    }
                    handshake.on(*event)
                }
            };
            let closes = seen.closes();
            let ends = matches!(
                decision,
                Decision::Finish | Decision::Drop | Decision::Answer | Decision::Abandon
            );
            let count = |(a, b): (bool, bool)| u8::from(a) + u8::from(b);
            let timeout = matches!(happening, Happening::Event(Event::Timeout));
            let end = matches!(happening, Happening::Event(Event::ServerEnd));
            prop_assert!(!(ends && seen.ended), "ended twice, the second time by {happening:?}");
            prop_assert!(!seen.ended || decision == Decision::Pass);
            match decision {
                Decision::Pass => {}
                // A time limit starts with each Close frame, and only then. An answer to the filter's
                // own opens the time for the other side's.
                Decision::AwaitAnswer => prop_assert!(
                    (count(before), count(closes)) == (0, 1)
                        || matches!(happening, Happening::Close(Side::Server, _)) && had_own
                ),
                Decision::AwaitTcpClose => prop_assert_eq!(count(closes), 2),
                // Nobody's failure: the server has said goodbye, or was told to by nobody but the
                // filter, or the filter's patience is over.
                Decision::Finish => prop_assert!(closes.0 || timeout),
                // A failure of the server, which has not said goodbye as far as could be seen.
                Decision::Drop => prop_assert!(seen.server.is_none()),
                Decision::Answer => {
                    prop_assert!(!closes.0 && closes.1 && end);
                    prop_assert!(handshake.owed_answer().is_some());
                }
                Decision::Abandon => {
                    prop_assert!(closes == (false, false) && !seen.blind && end);
                }
            }
            // The server's end is always the end.
            if matches!(happening, Happening::Event(Event::ServerEnd | Event::ServerCut)) {
                prop_assert!(ends || seen.ended);
            }
            seen.ended |= ends;
            prop_assert_eq!(handshake.state() == State::Ended, seen.ended);
            prop_assert_eq!(handshake.initiator(), seen.first.map(|(who, _)| who));
            prop_assert_eq!(handshake.first_close(), seen.first.as_ref().map(|(_, close)| close));
            prop_assert_eq!(handshake.outcome(), match closes {
                (true, true) => Outcome::Clean,
                (true, false) => Outcome::ServerOnly,
                (false, true) => Outcome::ClientOnly,
                (false, false) => Outcome::Abnormal,
            });
        }
    }
}
