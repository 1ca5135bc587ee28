//! Every rule, in virtual time. A life is told in the order in which it happens.

mod in_flight;
mod limits;
mod own_close;
mod upstream;

use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::frame::CloseCode;
use crate::opening::Upstream;
use Side::{Client, Server};

const HTTP1: Link = Link { owns_connection: true, upstream: Upstream::Http1 };
const HTTP2_UPSTREAM: Link = Link { owns_connection: true, upstream: Upstream::Multiplexed };
const HTTP2_DOWNSTREAM: Link = Link { owns_connection: false, upstream: Upstream::Http1 };

/// A session and the time.
struct Life {
    session: Session,
    ms: u64,
    counted: Vec<Counter>,
    reset: bool,
}

/// What came out where a chunk went in.
#[derive(Debug, PartialEq)]
struct Out {
    bytes: Vec<u8>,
    reset: bool,
}

impl Life {
    /// `keys` as in the configuration, behind `"attach": "http"`.
    fn open(keys: &str, link: Link) -> Self {
        let early = None;
        Self::open_with(keys, Opening { link, fraction: 0.5, token_valid_for: None, early })
    }

    fn open_with(keys: &str, opening: Opening) -> Self {
        let json = format!(r#"{{"attach": "http"{keys}}}"#);
        let Ok(Config::Http(config)) = Config::parse(json.as_bytes()) else { panic!("{json}") };
        let (session, actions) = Session::open(Rc::from(config), opening, at(0));
        let mut life = Self { session, ms: 0, counted: vec![], reset: false };
        life.counted.extend(actions.count);
        // The chunk behind the 101.
        if life.session.link.upstream != Upstream::Multiplexed {
            assert_eq!(life.server(b""), Out { bytes: vec![], reset: false });
        }
        life
    }

    fn data(&mut self, side: Side, bytes: &[u8], end_of_stream: bool, host_takes: bool) -> Out {
        let now = at(self.ms);
        let actions = self.session.on_data(side, &mut &bytes[..], end_of_stream, || now);
        let mut out = Out { bytes: bytes.to_vec(), reset: actions.reset };
        match actions.chunk {
            ChunkAction::Pass => {}
            ChunkAction::Discard => out.bytes.clear(),
            ChunkAction::Inject(cut) => {
                let frame = self.session.injection(|| [0; 4]);
                if host_takes {
                    out.bytes.truncate(cut);
                    out.bytes.extend(frame);
                    self.counted.extend(self.session.on_injected(now).count);
                }
            }
        }
        self.counted.extend(actions.count);
        self.reset |= actions.reset;
        out
    }

    fn server(&mut self, bytes: &[u8]) -> Out {
        self.data(Server, bytes, false, true)
    }

    fn client(&mut self, bytes: &[u8]) -> Out {
        self.data(Client, bytes, false, true)
    }

    /// The upstream ends in HTTP/1.1's way.
    fn server_ends(&mut self) -> Out {
        self.data(Server, b"", false, true)
    }

    /// The upstream ends in HTTP/2's way, with a last DATA frame.
    fn end_stream(&mut self, bytes: &[u8]) -> Out {
        self.data(Server, bytes, true, true)
    }

    /// Time passes, to `ms` from the beginning; what the timers ask for is noted.
    fn until(&mut self, ms: u64) -> &mut Self {
        while let Some(next) = self.session.next_timeout().filter(|&next| next <= at(ms)) {
            while let Some(actions) = self.session.on_timeout(next) {
                self.counted.extend(actions.count);
                self.reset |= actions.reset;
            }
        }
        self.ms = ms;
        self
    }

    fn end(&self) -> End {
        self.session.end(at(self.ms))
    }

    fn closes_connection(&self) -> bool {
        self.end().close_connection
    }
}

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

fn close(code: u16, reason: &str) -> Close {
    Close::new(CloseCode::new(code).unwrap(), reason).unwrap()
}

fn server_close(code: u16) -> Vec<u8> {
    close(code, "").to_server_frame()
}

fn client_close(code: u16) -> Vec<u8> {
    close(code, "").to_client_frame([0; 4])
}

/// A message of the server's, and one of the client's.
const FROM_SERVER: &[u8] = b"\x81\x02hi";
const FROM_CLIENT: &[u8] = b"\x81\x82\0\0\0\0hi";

fn passed(bytes: &[u8]) -> Out {
    Out { bytes: bytes.to_vec(), reset: false }
}

// The closing handshake as RFC 6455 has it.

#[test]
fn the_server_closes_and_the_client_answers() {
    let mut life = Life::open("", HTTP1);
    assert_eq!(life.server(&server_close(4321)), passed(&server_close(4321)));
    assert_eq!(life.client(&client_close(4321)), passed(&client_close(4321)));
    assert_eq!(life.server_ends(), Out { bytes: vec![], reset: true });
    let End { counters, handshake, close_connection, end_unseen } = life.until(7).end();
    assert_eq!(
        counters,
        [Counter::ClosedClean, Counter::InitiatorServer, Counter::CodePrivate].map(Some)
    );
    assert_eq!(
        (handshake, close_connection, end_unseen),
        (Some(Duration::from_millis(7)), true, false)
    );
}

#[test]
fn the_client_closes_and_the_server_answers() {
    let mut life = Life::open("", HTTP1);
    assert_eq!(life.client(&client_close(1000)), passed(&client_close(1000)));
    assert_eq!(life.server(&server_close(1000)), passed(&server_close(1000)));
    assert!(life.server_ends().reset);
    assert_eq!(
        life.end().counters,
        [Counter::ClosedClean, Counter::InitiatorClient, Counter::Code1000].map(Some)
    );
}

#[test]
fn a_server_that_does_not_wait_has_not_failed() {
    let mut life = Life::open("", HTTP1);
    assert_eq!(life.server(&server_close(1001)), passed(&server_close(1001)));
    assert!(life.server_ends().reset);
    assert!(life.closes_connection());
}

#[test]
fn what_begins_after_a_close_frame_passes() {
    let mut life = Life::open("", HTTP1);
    let bytes = [&server_close(1000)[..], b"anything at all"].concat();
    assert_eq!(life.server(&bytes), passed(&bytes));
    assert_eq!(life.server(b"\xff\xff"), passed(b"\xff\xff"));
    assert_eq!(life.counted, []);
}

// A server that ends without its Close frame.

#[test]
fn a_client_is_answered_if_the_server_did_not() {
    let mut life = Life::open("", HTTP1);
    life.client(&client_close(4000));
    assert_eq!(life.server_ends(), passed(&server_close(4000)));
    assert_eq!(life.counted, [Counter::SentAnswer]);
    // Inside a frame of the server's there is no place for it; nor where the host refuses.
    let mut life = Life::open("", HTTP1);
    life.client(&client_close(4000));
    life.server(&FROM_SERVER[..3]);
    assert_eq!(life.server_ends(), passed(b""));
    let mut life = Life::open("", HTTP1);
    life.client(&client_close(4000));
    assert_eq!(life.data(Server, b"", false, false), passed(b""));
    assert_eq!(life.counted, []);
    let mut life = Life::open(r#", "answerClientClose": false"#, HTTP1);
    life.client(&client_close(4000));
    assert_eq!(life.server_ends(), passed(b""));
}

#[test]
fn abnormal_close() {
    let keys = r#", "abnormalClose": {"code": 1012, "reason": "restart"}"#;
    let mut life = Life::open(keys, HTTP1);
    life.server(FROM_SERVER);
    assert_eq!(life.server_ends(), passed(&close(1012, "restart").to_server_frame()));
    assert_eq!(life.counted, [Counter::SentAbnormal]);
    assert_eq!(life.session.closed_by(), Some((Initiator::Filter, Some(&close(1012, "restart")))));
    assert_eq!(life.end().counters, [Some(Counter::ClosedAbnormal), None, None]);
    // Not inside a frame, and not with the default configuration.
    let mut life = Life::open(keys, HTTP1);
    life.server(&FROM_SERVER[..1]);
    assert_eq!(life.server_ends(), passed(b""));
    let mut life = Life::open("", HTTP1);
    assert_eq!(life.server_ends(), passed(b""));
    assert_eq!(life.session.closed_by(), None);
}

/// Issue: servers that by design end without a Close frame.
#[test]
fn a_missing_close_frame_is_no_failure_if_the_operator_says_so() {
    let keys = r#", "missingCloseIsFailure": false"#;
    let mut life = Life::open(keys, HTTP1);
    life.server(FROM_SERVER);
    assert!(life.server_ends().reset);
    assert_eq!(life.end().counters[0], Some(Counter::ClosedAbnormal));
    // Inside a frame it is; and so it is by default.
    let mut life = Life::open(keys, HTTP1);
    life.server(&FROM_SERVER[..3]);
    assert!(!life.server_ends().reset);
    let mut life = Life::open("", HTTP1);
    assert!(!life.server_ends().reset);
    // Bytes that are no frames: nobody knows where they end.
    let mut life = Life::open(keys, HTTP1);
    life.server(b"raw");
    assert!(!life.server_ends().reset);
    // A frame that is sent instead needs the stream to end by itself.
    let mut life = Life::open(&format!(r#"{keys}, "abnormalClose": {{"code": 1012}}"#), HTTP1);
    assert_eq!(life.server_ends(), passed(&server_close(1012)));
}

// Limits.

// Bytes that are no WebSocket's.

#[test]
fn a_raw_tunnel_is_left_alone() {
    // What looks like a client's Close frame, and is echoed.
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP1);
    let odd = client_close(1000);
    assert_eq!(life.client(&odd), passed(&odd));
    assert!(life.session.next_timeout().is_some());
    assert_eq!(life.server(&odd), passed(&odd));
    assert_eq!(life.counted, [Counter::Untracked]);
    assert_eq!(life.session.fault(), Some(Fault::Masking));
    assert_eq!(life.session.next_timeout(), None);
    assert_eq!(life.client(b"more"), passed(b"more"));
    assert_eq!(life.server_ends(), passed(b""), "nobody is answered");
    assert_eq!(life.counted, [Counter::Untracked]);
}

#[test]
fn the_end_is_not_told_without_a_reason() {
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP1);
    life.client(b"raw");
    assert_eq!(life.server_ends(), passed(b""));
    assert!(life.closes_connection());
}

// Bytes in front of the 101.

#[test]
fn early_data_is_followed() {
    let early = |chunks: &[&[u8]]| {
        let mut early = EarlyData::default();
        for mut chunk in chunks.iter().copied() {
            early.on_data(&mut chunk);
        }
        Opening { link: HTTP1, fraction: 0.0, token_valid_for: None, early: Some(early) }
    };
    // A message, and half of a Close frame, of which the rest comes behind the 101.
    let close = client_close(4000);
    let mut life = Life::open_with("", early(&[FROM_CLIENT, &close[..3]]));
    life.client(&close[3..]);
    assert_eq!(life.server_ends(), passed(&server_close(4000)));
    // All of it.
    let mut life = Life::open_with("", early(&[&[FROM_CLIENT, &close].concat()]));
    assert_eq!(life.session.next_timeout(), Some(at(10_000)));
    assert_eq!(life.server_ends(), passed(&server_close(4000)));
    // No frames.
    let life = Life::open_with("", early(&[b"POST"]));
    assert_eq!(life.counted, [Counter::Untracked]);
    let mut upload = EarlyData::default();
    assert!(!upload.on_data(&mut &b"{\"json\": 1}"[..]));
    assert!(EarlyData::default().on_data(&mut &FROM_CLIENT[..]));
}

// A client that goes on sending.

#[test]
fn a_connection_with_other_streams_is_not_closed() {
    let mut life = Life::open("", HTTP2_DOWNSTREAM);
    life.server(&server_close(1000));
    assert!(life.server_ends().reset);
    assert!(!life.closes_connection());
}

// `enforce: false`.

#[test]
fn nothing_is_changed_that_is_not_enforced() {
    let keys = r#", "enforce": false, "abnormalClose": {"code": 1012}, "maxAge": {"after": "1s"},
                  "drain": {"within": "0s", "endSilentAfter": "0s"}, "missingCloseIsFailure": false"#;
    let mut life = Life::open(keys, HTTP1);
    assert_eq!(life.session.next_timeout(), None);
    assert_eq!(life.server(FROM_SERVER), passed(FROM_SERVER));
    assert_eq!(life.server_ends(), passed(b""));
    let mut life = Life::open(keys, HTTP1);
    life.client(&client_close(1000));
    assert_eq!(life.server_ends(), passed(b""));
    let mut life = Life::open(keys, HTTP1);
    life.server(&server_close(1000));
    assert_eq!(life.server_ends(), passed(b""));
    assert!(!life.closes_connection());
    assert_eq!(life.counted, []);
}

// `maxAge` and `drain`.

/// The deadline and the access log's fields are set anew if `changed` says so, and only then.
#[test]
fn what_has_changed() {
    let opening = Opening { link: HTTP1, fraction: 0.0, token_valid_for: None, early: None };
    let config =
        Rc::new(HttpConfig { abnormal_close: Some(close(1012, "")), ..Default::default() });
    let (mut session, actions) = Session::open(config, opening, at(0));
    assert!(actions.changed);
    for (side, bytes, changed) in [
        (Server, b"".to_vec(), false),
        (Server, FROM_SERVER.to_vec(), false),
        (Client, FROM_CLIENT.to_vec(), false),
        (Client, client_close(1000), true),
        (Client, FROM_CLIENT.to_vec(), false),
        (Server, b"\xff\xff".to_vec(), true),
    ] {
        let actions = session.on_data(side, &mut &bytes[..], false, || at(0));
        assert_eq!(actions.changed, changed, "{side:?} {bytes:?}");
    }
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP1);
    let _ = life.session.on_data(Server, &mut &b""[..], false, || at(0));
    assert!(life.session.on_injected(at(0)).changed);
}

/// Behind bytes that are no frames nothing counts as a Close frame, on either side.
#[test]
fn what_looks_like_a_close_frame_behind_raw_bytes() {
    for (raw, other, close) in
        [(Client, Server, server_close(1000)), (Server, Client, client_close(1000))]
    {
        let mut life = Life::open("", HTTP1);
        life.data(raw, b"\xff\xff", false, true);
        assert_eq!(life.data(other, &close, false, true), passed(&close));
        assert_eq!(life.session.next_timeout(), None);
        assert_eq!(life.end().counters[0], Some(Counter::ClosedAbnormal));
    }
}
