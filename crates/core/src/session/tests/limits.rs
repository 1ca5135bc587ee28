//! `closeHandshakeTimeout` and `tcpCloseTimeout`.

use super::*;

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
    assert_eq!(life.server_ends(), passed(&server_close(1000)), "the answer is still to come");
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
