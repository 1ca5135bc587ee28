//! The right calls to the host, in the right order; and each of them refused in turn.

use std::sync::OnceLock;

use scripted_host::{Body, Compiled, Mood, Status, Vm};

const HTTP: u32 = 1;
const NETWORK: u32 = 2;
const CONNECTION: u32 = 3;
const STREAM: u32 = 4;
const MS: u64 = 1_000_000;

const UPGRADE: &[(&str, &str)] = &[
    (":status", "101"),
    ("upgrade", "websocket"),
    ("connection", "Upgrade"),
    ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
];
const FROM_SERVER: &[u8] = b"\x81\x02hi";
const FROM_CLIENT: &[u8] = b"\x81\x82\0\0\0\0hi";
const SERVER_CLOSE: &[u8] = b"\x88\x02\x0f\xa0";
const CLIENT_CLOSE: &[u8] = b"\x88\x82\0\0\0\0\x0f\xa0";

fn module() -> &'static Compiled {
    static MODULE: OnceLock<Compiled> = OnceLock::new();
    MODULE.get_or_init(|| Compiled::new(&testbed::fetch::module()).expect("the module"))
}

/// A VM with both filters, and an open connection.
fn vm(keys: &str) -> Vm {
    let mut vm = module().start().expect("it starts");
    // Not at the very beginning of time.
    vm.host().now = 1000 * MS;
    for (root, config) in [
        (HTTP, format!(r#"{{"attach": "http"{keys}}}"#)),
        (NETWORK, r#"{"attach": "network"}"#.to_owned()),
    ] {
        vm.create(root, 0).expect("no trap");
        assert!(vm.configure(root, &config).expect("no trap"), "{:?}", vm.host().log);
    }
    vm.create(CONNECTION, NETWORK).expect("no trap");
    vm
}

fn names(vm: &mut Vm) -> Vec<&'static str> {
    vm.host().calls.drain(..).map(|(name, _)| name).collect()
}

/// A WebSocket on that connection.
fn open(keys: &str) -> Vm {
    let mut vm = vm(keys);
    let protocol = b"HTTP/1.1".to_vec();
    vm.host().attributes.insert("request.protocol".into(), protocol);
    vm.create(STREAM, HTTP).expect("no trap");
    vm.response(STREAM, UPGRADE, false).expect("no trap");
    assert_eq!(vm.body(STREAM, Body::Response, b"", false).expect("no trap"), b"");
    vm.host().calls.clear();
    vm
}

/// What a plain request costs: as few calls as can be.
#[test]
fn a_plain_request() {
    let mut vm = vm("");
    vm.host().attributes.insert("request.protocol".into(), b"HTTP/1.1".to_vec());
    vm.host().calls.clear();
    for (context, calls) in [(STREAM, vec!["get_property", "get_header"]), (5, vec!["get_header"])]
    {
        vm.create(context, HTTP).expect("no trap");
        vm.body(context, Body::Request, b"{\"a\": 1}", true).expect("no trap");
        vm.response(context, &[(":status", "200")], false).expect("no trap");
        vm.body(context, Body::Response, b"{}", true).expect("no trap");
        vm.delete(context).expect("no trap");
        assert_eq!(names(&mut vm), calls, "the first, and every other");
    }
    // An upload in several chunks is looked at once.
    vm.create(6, HTTP).expect("no trap");
    vm.body(6, Body::Request, b"{\"a\":", false).expect("no trap");
    vm.body(6, Body::Request, b" 1}", false).expect("no trap");
    assert_eq!(names(&mut vm), ["get_buffer"]);
}

/// What a message costs: its bytes are asked for, and of a client the time, because it may matter later
/// when it has sent what.
#[test]
fn a_message() {
    let mut vm = open("");
    assert_eq!(vm.body(STREAM, Body::Response, FROM_SERVER, false).expect("no trap"), FROM_SERVER);
    assert_eq!(names(&mut vm), ["get_buffer"]);
    assert_eq!(vm.body(STREAM, Body::Request, FROM_CLIENT, false).expect("no trap"), FROM_CLIENT);
    assert_eq!(names(&mut vm), ["clock_time_get", "get_buffer"]);
}

/// Where frames are small, their payloads are copied with their headers, and a chunk costs one call. The
/// first has to show it, and so has one that comes behind many with large frames.
#[test]
fn chunks_of_small_frames() {
    let mut vm = open("");
    let small = FROM_SERVER.repeat(5000);
    let large = [b"\x82\x7f\0\0\0\0\0\x01\0\0".as_slice(), &[0; 65_536]].concat();
    let mut calls = |chunk: &[u8]| {
        assert!(vm.body(STREAM, Body::Response, chunk, false).expect("no trap") == chunk);
        names(&mut vm)
    };
    let now = "clock_time_get";
    assert_eq!(calls(&small), [now, "get_buffer", "get_buffer"]);
    assert_eq!(calls(&small), [now, "get_buffer"]);
    assert_eq!(calls(&large), [now, "get_buffer"]);
    assert_eq!(calls(&small), [now, "get_buffer"]);
    for _ in 0..16 {
        assert_eq!(calls(&large), [now, "get_buffer"]);
    }
    assert_eq!(calls(&small), [now, "get_buffer", "get_buffer"]);
}

/// The network filter leaves a handle while its context is created.
#[test]
fn a_connection() {
    let mut vm = vm("");
    let calls = std::mem::take(&mut vm.host().calls);
    let set = calls.iter().filter(|(name, _)| *name == "set_property").count();
    assert_eq!(set, 1, "{calls:?}");
    // Over QUIC, or among the HTTP filters, it does nothing.
    vm.host().attributes.insert("request.protocol".into(), b"HTTP/3".to_vec());
    vm.create(9, NETWORK).expect("no trap");
    assert_eq!(names(&mut vm), ["get_property"]);
}

/// The server closes: the stream is ended, and the connection behind it.
#[test]
fn a_close() {
    let mut vm = open("");
    assert_eq!(
        vm.body(STREAM, Body::Response, SERVER_CLOSE, false).expect("no trap"),
        SERVER_CLOSE
    );
    let asked = |vm: &mut Vm| {
        let names = names(vm);
        ["set_property", "clock_time_get"].map(|call| names.iter().filter(|n| **n == call).count())
    };
    // Of the two times one is for the tick.
    assert_eq!(asked(&mut vm), [4, 2], "outcome, initiator, code, reason");
    assert_eq!(vm.body(STREAM, Body::Request, CLIENT_CLOSE, false).expect("no trap"), CLIENT_CLOSE);
    assert_eq!(asked(&mut vm), [1, 2], "outcome");
    assert_eq!(vm.host().closes, []);
    assert_eq!(vm.body(STREAM, Body::Response, b"", false).expect("no trap"), b"");
    assert_eq!(names(&mut vm), ["close_stream"]);
    assert_eq!(std::mem::take(&mut vm.host().closes), [(STREAM, 1)]);
    vm.delete(STREAM).expect("no trap");
    assert_eq!(vm.host().metric("websocket.closed.clean"), 1);
    assert_eq!(vm.host().metric("websocket.active"), 0);
    vm.queue_ready(NETWORK, 1).expect("no trap");
    assert_eq!(vm.host().closes, [(CONNECTION, 2)]);
    let last: Vec<_> = vm.host().calls.iter().rev().take(5).rev().cloned().collect();
    let names: Vec<_> = last.iter().map(|(name, about)| format!("{name} {about}")).collect();
    assert_eq!(
        names,
        [
            "dequeue 1",
            "set_effective_context 3",
            "close_stream 2",
            "set_effective_context 2",
            "dequeue 1"
        ]
    );
}

/// Nobody answers: a tick ends it, in the stream's own name.
#[test]
fn a_limit() {
    let mut vm = open(r#", "closeHandshakeTimeout": "0.5s""#);
    vm.body(STREAM, Body::Response, SERVER_CLOSE, false).expect("no trap");
    assert_eq!(vm.host().ticks.get(&HTTP), Some(&500));
    vm.host().now += 499 * MS;
    vm.tick(HTTP).expect("no trap");
    assert_eq!(vm.host().closes, []);
    vm.host().now += MS;
    vm.tick(HTTP).expect("no trap");
    assert_eq!(vm.host().closes, [(STREAM, 1)]);
    assert_eq!(vm.host().ticks.get(&HTTP), Some(&0), "nobody waits any more");
}

/// A frame of the filter's own is put behind what is there.
#[test]
fn own_frames() {
    let mut vm = open(r#", "abnormalClose": {"code": 4000}"#);
    assert_eq!(vm.body(STREAM, Body::Response, b"", false).expect("no trap"), SERVER_CLOSE);
    let mut vm = open(r#", "maxAge": {"after": "1s", "jitter": 0, "code": 4000}"#);
    vm.host().now += 1001 * MS;
    vm.tick(HTTP).expect("no trap");
    let chunk = [FROM_SERVER, FROM_SERVER, b"\x81"].concat();
    let expected = [FROM_SERVER, FROM_SERVER, SERVER_CLOSE].concat();
    assert_eq!(vm.body(STREAM, Body::Response, &chunk, false).expect("no trap"), expected);
    assert_eq!(vm.body(STREAM, Body::Response, b"\x02hi", false).expect("no trap"), b"");
}

/// A whole life, in which the host refuses the `n`th call: no trap, and no byte is another one.
fn life(n: usize, status: Status) -> usize {
    let mut vm = module().start().expect("it starts");
    vm.host().now = 1000 * MS;
    vm.host().mood = Mood::Refuses(n, status);
    let keys = r#", "abnormalClose": {"code": 4000}, "closeHandshakeTimeout": "1s""#;
    for (root, config) in [
        (HTTP, format!(r#"{{"attach": "http"{keys}}}"#)),
        (NETWORK, r#"{"attach": "network"}"#.to_owned()),
    ] {
        vm.create(root, 0).expect("no trap");
        vm.configure(root, &config).expect("no trap");
    }
    vm.create(CONNECTION, NETWORK).expect("no trap");
    vm.host().attributes.insert("request.protocol".into(), b"HTTP/1.1".to_vec());
    vm.create(STREAM, HTTP).expect("no trap");
    vm.body(STREAM, Body::Request, FROM_CLIENT, false).expect("no trap");
    vm.response(STREAM, UPGRADE, false).expect("no trap");
    vm.body(STREAM, Body::Response, b"", false).expect("no trap");
    for (way, bytes) in
        [(Body::Response, FROM_SERVER), (Body::Request, FROM_CLIENT), (Body::Request, CLIENT_CLOSE)]
    {
        assert_eq!(vm.body(STREAM, way, bytes, false).expect("no trap"), bytes);
    }
    vm.host().now += 500 * MS;
    vm.tick(HTTP).expect("no trap");
    let last = vm.body(STREAM, Body::Response, b"", false).expect("no trap");
    assert!(last.is_empty() || last == SERVER_CLOSE, "{last:?}");
    vm.delete(STREAM).expect("no trap");
    for queue in [1, 2] {
        vm.queue_ready(NETWORK, queue).expect("no trap");
    }
    vm.delete(CONNECTION).expect("no trap");
    vm.delete(HTTP).expect("no trap");
    vm.delete(NETWORK).expect("no trap");
    vm.host().calls.len()
}

#[test]
fn each_call_refused_in_turn() {
    let calls = life(usize::MAX, Status::NotFound);
    assert!(calls > 50, "{calls}");
    for n in 0..calls {
        for status in Status::REFUSALS {
            life(n, status);
        }
    }
}
