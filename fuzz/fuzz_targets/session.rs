//! The session: whatever happens in whatever order, it asks for what a host can do, adds at most one
//! frame, acts only if it may, and comes to rest.
#![no_main]

use std::rc::Rc;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ws_clean_close_core::config::{Config, HttpConfig};
use ws_clean_close_core::counter::Counter;
use ws_clean_close_core::frame::{Close, CloseCode};
use ws_clean_close_core::time::Instant;
use ws_clean_close_core::{
    Actions, ChunkAction, EarlyData, Link, Opening, Session, Side, Upstream,
};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step<'a> {
    Data { client: bool, bytes: &'a [u8], end_of_stream: bool, host_refuses: bool },
    Time(u16),
    Drain { within: u16, end_silent_after: Option<u16> },
    StopDraining,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    config: u8,
    owns_connection: bool,
    upstream: u8,
    token: Option<u16>,
    early: Option<&'a [u8]>,
    steps: Vec<Step<'a>>,
}

const CONFIGS: [&str; 6] = [
    r#"{"attach": "http"}"#,
    r#"{"attach": "http", "enforce": false, "maxAge": {"after": "1s"}, "drain": {}}"#,
    r#"{"attach": "http", "abnormalClose": {"code": 1012}, "missingCloseIsFailure": false}"#,
    r#"{"attach": "http", "maxAge": {"after": "2s", "claim": "exp", "endSilentAfter": "3s"}}"#,
    r#"{"attach": "http", "drain": {"within": "1s", "endSilentAfter": "0s"}}"#,
    r#"{"attach": "http", "closeHandshakeTimeout": "0s", "tcpCloseTimeout": "0s"}"#,
];

fn ms(ms: u16) -> Duration {
    Duration::from_millis(ms.into())
}

fuzz_target!(|input: Input| {
    let json = CONFIGS[usize::from(input.config) % CONFIGS.len()];
    let Ok(Config::Http(config)) = Config::parse(json.as_bytes()) else { panic!("{json}") };
    let config: Rc<HttpConfig> = Rc::from(config);
    let upstream = [Upstream::Http1, Upstream::Multiplexed, Upstream::Unknown];
    let link = Link {
        owns_connection: input.owns_connection,
        upstream: upstream[usize::from(input.upstream) % 3],
    };
    let early = input.early.map(|mut bytes| {
        let mut early = EarlyData::default();
        early.on_data(&mut bytes);
        early
    });
    let opening = Opening { link, fraction: 0.5, token_valid_for: input.token.map(ms), early };
    let mut now = Instant::ZERO;
    let (mut session, actions) = Session::open(Rc::clone(&config), opening, now);
    assert_eq!((actions.chunk, actions.reset), (ChunkAction::Pass, false));
    let mut own = 0;
    for step in input.steps {
        match step {
            Step::Data { client, mut bytes, end_of_stream, host_refuses } => {
                let side = if client { Side::Client } else { Side::Server };
                let len = bytes.len();
                let actions = session.on_data(side, &mut bytes, end_of_stream, || now);
                match actions.chunk {
                    ChunkAction::Pass => {}
                    ChunkAction::Discard => assert!(config.enforce && own > 0),
                    ChunkAction::Inject(at) => {
                        assert!(config.enforce && at <= len && !actions.reset);
                        let frame = session.injection(|| [1, 2, 3, 4]);
                        assert!((2..=131).contains(&frame.len()) && frame[0] == 0x88);
                        if !host_refuses {
                            own += 1;
                            let injected = session.on_injected(now);
                            assert!(injected.count.is_some() && !injected.reset);
                        }
                    }
                }
                assert!(!actions.reset || config.enforce && side == Side::Server);
                // One of its own; and behind it the answer that the server never gave the client, if that
                // went to the server.
                assert!(own <= 2, "{own}");
                if end_of_stream && !client {
                    break;
                }
            }
            Step::Time(time) => now = now + ms(time),
            Step::Drain { within, end_silent_after } => {
                let close = CloseCode::new(1001).and_then(|code| Close::new(code, ""));
                if let (Some(close), true) = (close, config.enforce) {
                    session.drain(now + ms(within), close, end_silent_after.map(ms));
                }
            }
            Step::StopDraining => session.stop_draining(),
        }
        let mut turns = 0;
        while let Some(Actions { chunk, reset, count, .. }) = session.on_timeout(now) {
            assert_eq!(chunk, ChunkAction::Pass);
            assert!(!reset || config.enforce);
            assert!(input.owns_connection || !reset || count != Some(Counter::TimeoutTcp));
            turns += 1;
            assert!(turns < 10, "it comes to rest");
        }
        assert!(session.next_timeout().is_none_or(|at| at > now));
        let end = session.end(now);
        assert!(!end.close_connection || config.enforce && input.owns_connection);
        assert_eq!(end.handshake.is_some(), end.counters[2].is_some());
    }
});
