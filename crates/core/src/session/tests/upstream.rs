//! How the end of the upstream shows.

use super::*;

#[test]
fn the_end_of_the_upstream_comes_once() {
    let mut life = Life::open(r#", "abnormalClose": {"code": 1012}"#, HTTP1);
    assert_eq!(life.server_ends(), passed(&server_close(1012)));
    assert_eq!(life.server_ends(), passed(b""));
}

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

/// Another filter holds data between this one and the router, or the client ended it.
#[test]
fn an_end_that_is_not_shown() {
    assert!(Life::open("", HTTP1).end().end_unseen);
    assert!(!Life::open("", HTTP2_UPSTREAM).end().end_unseen);
}
