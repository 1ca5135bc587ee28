//! Every rule, in virtual time. A life is told in the order in which it happens.

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

#[test]
fn the_end_of_the_upstream_comes_once() {
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP1);
    assert_eq!(life.server_ends(), passed(&server_close(1012)));
    assert_eq!(life.server_ends(), passed(b""));
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

#[test]
fn an_answer_that_does_not_come() {
    for (begins, frame) in [(Server, server_close(1000)), (Client, client_close(1000))] {
        let mut life = Life::open("", HTTP1);
        life.until(500).data(begins, &frame, false, true);
        assert!(!life.until(10_499).reset);
        assert!(life.until(10_500).reset);
        assert_eq!(life.counted, [Counter::TimeoutHandshake]);
        assert!(life.closes_connection());
        let mut life = Life::open(r#", "closeHandshakeTimeout": "0s""#, HTTP1);
        life.data(begins, &frame, false, true);
        assert_eq!(life.session.next_timeout(), None);
    }
}

#[test]
fn a_server_that_does_not_close_tcp() {
    let mut life = Life::open("", HTTP1);
    life.server(&server_close(1000));
    life.until(300).client(&client_close(1000));
    assert!(!life.until(1299).reset);
    assert!(life.until(1300).reset);
    assert_eq!(life.counted, [Counter::TimeoutTcp]);
    let mut life = Life::open(r#", "tcpCloseTimeout": "0s""#, HTTP1);
    life.server(&server_close(1000));
    life.client(&client_close(1000));
    assert_eq!(life.session.next_timeout(), None);
}

/// The client closes, and the server works off what it has been sent before.
#[test]
fn live_traffic_of_the_server_is_not_cut() {
    let mut life = Life::open("", HTTP1);
    life.client(&client_close(1000));
    for i in 1..=400 {
        assert_eq!(life.until(i * 35).server(FROM_SERVER), passed(FROM_SERVER));
    }
    assert_eq!((life.reset, &life.counted[..]), (false, &[][..]));
    // From its last bytes on.
    assert!(!life.until(14_000 + 9_999).reset);
    assert!(life.until(14_000 + 10_000).reset);
}

/// The server closes, and the client has messages of its own to send before it answers.
#[test]
fn live_traffic_of_the_client_is_not_cut() {
    let mut life = Life::open("", HTTP1);
    life.server(&server_close(1000));
    for i in 1..=13 {
        assert_eq!(life.until(i * 1000).client(FROM_CLIENT), passed(FROM_CLIENT));
    }
    assert!(!life.until(22_999).reset);
    assert!(life.until(23_000).reset);
    // The other side's bytes do not count.
    let mut life = Life::open("", HTTP1);
    life.server(&server_close(1000));
    life.until(9_000).server(b"behind its Close frame");
    assert!(life.until(10_000).reset);
}

/// HTTP/2 downstream, or `enforce: false`: counted, and nothing else is different afterwards.
#[test]
fn a_limit_that_may_not_act() {
    for (keys, link) in [("", HTTP2_DOWNSTREAM), (r#", "enforce": false"#, HTTP1)] {
        let mut life = Life::open(keys, link);
        life.client(&client_close(1000));
        assert!(!life.until(12_000).reset);
        assert_eq!(life.counted, [Counter::TimeoutHandshake]);
        // It ends well after all.
        life.server(&server_close(1000));
        assert_eq!(life.server_ends().reset, keys.is_empty());
        assert_eq!(life.end().counters[0], Some(Counter::ClosedClean));
        assert!(!life.closes_connection());
    }
    let mut life = Life::open("", HTTP2_DOWNSTREAM);
    life.client(&client_close(1000));
    life.until(12_000);
    assert_eq!(life.server_ends(), passed(&server_close(1000)), "the answer is still owed");
}

/// `allow_multiplexed_upstream_half_close`: the stream lives on behind END_STREAM.
#[test]
fn the_limits_hold_until_the_stream_is_gone() {
    let mut life = Life::open("", HTTP2_UPSTREAM);
    life.client(&client_close(1000));
    assert_eq!(life.end_stream(&server_close(1000)), passed(&server_close(1000)));
    assert!(life.until(1000).reset);
}

// HTTP/2.

#[test]
fn an_empty_data_frame_is_not_the_end() {
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP2_UPSTREAM);
    assert_eq!(life.server(FROM_SERVER), passed(FROM_SERVER));
    assert_eq!(life.server(b""), passed(b""));
    life.client(&client_close(1000));
    assert_eq!(life.server(b""), passed(b""));
    assert_eq!(life.server(FROM_SERVER), passed(FROM_SERVER));
    assert_eq!(life.counted, []);
}

#[test]
fn a_frame_goes_behind_the_last_message() {
    let mut life = Life::open("", HTTP2_UPSTREAM);
    life.client(&client_close(4000));
    let expected = [FROM_SERVER, &server_close(4000)].concat();
    assert_eq!(life.end_stream(FROM_SERVER), passed(&expected));
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP2_UPSTREAM);
    let expected = [FROM_SERVER, &server_close(1012)].concat();
    assert_eq!(life.end_stream(FROM_SERVER), passed(&expected));
    // And in an end without a message.
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP2_UPSTREAM);
    assert_eq!(life.end_stream(b""), passed(&server_close(1012)));
}

/// What the 101 does not show, the first chunk does.
#[test]
fn an_upstream_that_is_not_known() {
    let unknown = Link { upstream: Upstream::Unknown, ..HTTP1 };
    let mut life = Life::open("", unknown);
    life.client(&client_close(1000));
    assert_eq!(life.server_ends(), passed(&server_close(1000)));
    // Bytes behind the head: it may be HTTP/2, whose empty frame means nothing.
    let opening = Opening { link: unknown, fraction: 0.0, token_valid_for: None, early: None };
    let config = Rc::new(HttpConfig::default());
    let (mut session, _) = Session::open(config, opening, at(0));
    let mut first = FROM_SERVER;
    assert_eq!(session.on_data(Server, &mut first, false, || at(0)), Actions::default());
    let _ = session.on_data(Client, &mut &client_close(1000)[..], false, || at(0));
    assert_eq!(session.on_data(Server, &mut &b""[..], false, || at(0)), Actions::default());
    assert!(!session.end(at(0)).end_unseen);
}

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
fn a_client_that_asked_and_is_refused_is_closed_at_once() {
    let mut life = Life::open("", HTTP1);
    life.client(FROM_CLIENT);
    life.until(1).server(&server_close(4403));
    life.server_ends();
    assert!(life.closes_connection());
}

#[test]
fn a_client_that_goes_on_sending_is_left_to_envoy() {
    // Inside a frame, however long ago.
    let mut life = Life::open("", HTTP1);
    life.client(&FROM_CLIENT[..4]);
    life.until(5000).server(&server_close(1000));
    life.server_ends();
    assert!(!life.closes_connection());
    // Between two fragments.
    let mut life = Life::open("", HTTP1);
    life.client(b"\x01\x80\0\0\0\0");
    assert!(!life.until(5000).closes_connection());
    // In a rhythm, until it is broken; or until it has closed.
    let mut life = Life::open("", HTTP1);
    for i in 0..10 {
        life.until(i * 10).client(FROM_CLIENT);
    }
    assert!(!life.until(100).closes_connection());
    assert!(life.until(200).closes_connection());
    life.client(FROM_CLIENT);
    life.client(&client_close(1000));
    assert!(life.closes_connection());
}

/// For whom a limit has expired has been silent for long.
#[test]
fn a_limit_closes_the_connection_inside_a_frame_too() {
    let mut life = Life::open("", HTTP1);
    life.client(&FROM_CLIENT[..4]);
    life.server(&server_close(1000));
    assert!(life.until(10_000).reset && life.closes_connection());
}

#[test]
fn a_connection_with_other_streams_is_not_closed() {
    let mut life = Life::open("", HTTP2_DOWNSTREAM);
    life.server(&server_close(1000));
    assert!(life.server_ends().reset);
    assert!(!life.closes_connection());
}

/// Another filter holds data between this one and the router, or the client ended it.
#[test]
fn an_end_that_is_not_shown() {
    assert!(Life::open("", HTTP1).end().end_unseen);
    assert!(!Life::open("", HTTP2_UPSTREAM).end().end_unseen);
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

const AGE: &str = r#", "maxAge": {"after": "1s", "jitter": 0.2, "code": 1001, "reason": "old"}"#;

#[test]
fn an_old_websocket_is_closed_behind_a_message_of_the_server() {
    let mut life = Life::open(AGE, HTTP1);
    // Half of the jitter.
    let begun = [FROM_SERVER, &FROM_SERVER[..2]].concat();
    assert_eq!(life.until(1099).server(&begun), passed(&begun));
    life.until(1100);
    let own = close(1001, "old").to_server_frame();
    let chunk = [&FROM_SERVER[2..], FROM_SERVER, &FROM_SERVER[..1]].concat();
    let expected = [&FROM_SERVER[2..], FROM_SERVER, &own[..]].concat();
    assert_eq!(life.server(&chunk), passed(&expected));
    assert_eq!(life.counted, [Counter::SentMaxAge]);
    assert_eq!(life.session.closed_by(), Some((Initiator::Filter, Some(&close(1001, "old")))));
    // Nothing of the server's goes on; the client's answer does, and the server's end is no failure.
    assert_eq!(life.server(&FROM_SERVER[1..]), passed(b""));
    assert_eq!(life.client(&client_close(1001)), passed(&client_close(1001)));
    assert!(life.server_ends().reset);
    assert_eq!(life.end().counters, [Some(Counter::ClosedClean), None, Some(Counter::Code1001)]);
}

#[test]
fn a_silent_server_is_asked_through_the_client() {
    let mut life = Life::open(AGE, HTTP1);
    assert_eq!(life.until(2099).client(FROM_CLIENT), passed(FROM_CLIENT));
    let own = close(1001, "old").to_client_frame([0; 4]);
    let expected = [FROM_CLIENT, &own[..]].concat();
    assert_eq!(life.until(2100).client(FROM_CLIENT), passed(&expected));
    assert_eq!(life.client(FROM_CLIENT), passed(b""));
    // It is answered, even if `answerClientClose` has nothing to say: the filter asked.
    assert_eq!(life.server_ends(), passed(&close(1001, "old").to_server_frame()));
    assert_eq!(life.counted, [Counter::SentMaxAge, Counter::SentAnswer]);
}

#[test]
fn a_host_that_refuses_is_asked_again() {
    let mut life = Life::open(AGE, HTTP1);
    life.until(1100);
    assert_eq!(life.data(Server, FROM_SERVER, false, false), passed(FROM_SERVER));
    let expected = [FROM_SERVER, &close(1001, "old").to_server_frame()].concat();
    assert_eq!(life.server(FROM_SERVER), passed(&expected));
}

#[test]
fn who_is_closing_already_is_not_told() {
    let mut life = Life::open(AGE, HTTP1);
    life.client(&client_close(1000));
    assert_eq!(life.until(1100).server(FROM_SERVER), passed(FROM_SERVER));
    assert_eq!(life.counted, []);
}

#[test]
fn a_token_ends_a_websocket_too() {
    let opening = |ms: Option<u64>| Opening {
        link: HTTP1,
        fraction: 0.0,
        token_valid_for: ms.map(Duration::from_millis),
        early: None,
    };
    let next = |keys, ms| Life::open_with(keys, opening(ms)).session.next_timeout();
    let both = r#", "maxAge": {"after": "1s", "claim": "exp"}"#;
    let claim = r#", "maxAge": {"claim": "exp", "code": 1008}"#;
    assert_eq!(next(both, Some(700)), Some(at(700)));
    assert_eq!(next(both, Some(5000)), Some(at(1000)));
    assert_eq!(next(both, None), Some(at(1000)));
    assert_eq!(next(claim, Some(0)), Some(at(0)));
    assert_eq!(next(claim, None), None);
    // Asked for only by configuration.
    assert_eq!(next(AGE, Some(700)), Some(at(1000)));
}

#[test]
fn a_drain_and_its_end() {
    let mut life = Life::open("", HTTP1);
    life.session.drain(at(500), close(1012, ""), None);
    assert_eq!(life.session.next_timeout(), Some(at(500)));
    life.session.stop_draining();
    assert_eq!(life.session.next_timeout(), None);
    life.session.drain(at(500), close(1012, ""), None);
    life.until(600);
    // Due, but called off before anybody spoke.
    life.session.stop_draining();
    assert_eq!(life.server(FROM_SERVER), passed(FROM_SERVER));
    life.session.drain(at(700), close(1012, ""), None);
    let expected = [FROM_SERVER, &server_close(1012)].concat();
    assert_eq!(life.until(700).server(FROM_SERVER), passed(&expected));
    assert_eq!(life.counted, [Counter::SentDrain]);
}

/// The age outlasts a drain that is called off.
#[test]
fn age_and_drain() {
    let mut life = Life::open(&format!(r#"{AGE}, "drain": {{"within": "1s"}}"#), HTTP1);
    life.until(1200);
    life.session.stop_draining();
    let expected = [FROM_SERVER, &close(1001, "old").to_server_frame()].concat();
    assert_eq!(life.server(FROM_SERVER), passed(&expected));
    assert_eq!(life.counted, [Counter::SentMaxAge]);
}

#[test]
fn a_silent_websocket_is_ended() {
    for link in [HTTP1, HTTP2_DOWNSTREAM] {
        let mut life = Life::open(r#", "drain": {"within": "1s", "endSilentAfter": "10s"}"#, link);
        assert!(!life.until(10_999).reset);
        assert!(life.until(11_000).reset);
        assert_eq!(life.counted, [Counter::EndedSilent]);
        assert_eq!(life.session.outcome(), "ended_silent");
        assert_eq!(life.session.closed_by(), Some((Initiator::Filter, None)));
        assert_eq!(life.end().counters, [Some(Counter::ClosedAbnormal), None, None]);
        assert_eq!(life.closes_connection(), link.owns_connection);
    }
    // Told in time, it is not; told at the last moment, it has a second to answer.
    for (told, ends) in [(5_000, 11_000), (10_900, 11_900)] {
        let keys = r#", "drain": {"within": "1s", "endSilentAfter": "10s"}"#;
        let mut life = Life::open(keys, HTTP1);
        life.until(told).server(FROM_SERVER);
        assert!(!life.until(ends - 1).reset);
        assert!(life.until(ends).reset, "it does not answer");
        assert_eq!(life.counted, [Counter::SentDrain, Counter::TimeoutHandshake]);
        assert_eq!(life.session.outcome(), "server_only");
    }
    // Called off, it stays.
    let mut life = Life::open(r#", "drain": {"within": "1s", "endSilentAfter": "10s"}"#, HTTP1);
    life.until(2_000).session.stop_draining();
    assert!(!life.until(20_000).reset);
    // By age as well.
    let keys = r#", "maxAge": {"after": "1s", "jitter": 0, "endSilentAfter": "0s"}"#;
    assert!(Life::open(keys, HTTP1).until(1_000).reset);
}

// What the caller is told.

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

/// A client that has closed sends nothing that counts.
#[test]
fn what_comes_behind_a_close_frame_is_no_activity() {
    let mut life = Life::open("", HTTP1);
    life.client(&client_close(1000));
    for i in 1..10 {
        life.until(i * 10).client(FROM_CLIENT);
    }
    assert!(!life.session.client_activity.in_rhythm(at(90)));
}

/// Large chunks of the server may be unread; however many small ones are not looked at.
#[test]
fn what_a_client_may_not_have_read() {
    // A frame of this length in all.
    let frame = |len: usize| {
        let payload = (len - 4) as u16;
        [&b"\x82\x7e"[..], &payload.to_be_bytes(), &vec![0; len - 4]].concat()
    };
    let after = |len: usize| {
        let mut life = Life::open("", HTTP1);
        life.server(&frame(len));
        life
    };
    assert!(!after(16 * 1024).until(5000).closes_connection());
    assert!(after(16 * 1024).until(5001).closes_connection());
    assert!(after(16 * 1024 - 1).closes_connection());
    let mut life = Life::open("", HTTP1);
    for _ in 0..100 {
        life.server(&frame(1023));
    }
    assert!(life.closes_connection(), "small chunks");
    for _ in 0..16 {
        life.server(&frame(1024));
    }
    assert!(!life.closes_connection());
}

/// A server that does not read may hold up what a client has sent.
#[test]
fn what_a_server_may_not_have_read() {
    let after = |payload: u64| {
        let mut life = Life::open("", HTTP1);
        let header = [&b"\x82\xff"[..], &payload.to_be_bytes(), &[0; 4]].concat();
        life.client(&[header, vec![0; payload as usize]].concat());
        life
    };
    assert!(!after(64 * 1024 - 14).until(60_000).closes_connection());
    assert!(after(64 * 1024 - 14).until(60_001).closes_connection());
    assert!(after(64 * 1024 - 15).closes_connection());
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
