//! Whose bytes may still be on their way when the stream ends.

use super::*;

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
