//! `maxAge`, `drain` and `endSilentAfter`.

use super::*;

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
