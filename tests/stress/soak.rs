//! Two thousand WebSockets coming and going, with every closing behaviour at random: nothing leaks, no
//! byte is lost, the counters add up, no close takes longer than its limit. `make soak` does it for
//! half an hour, `make test` for half a minute.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use testbed::closing::until_within;
use testbed::server::{large_bytes, Behaviour};
use testbed::wire;
use testbed::{Client, End, Envoy, Mode, Server, Setup};
use tokio::io::AsyncWriteExt;
use tungstenite::protocol::frame::coding::{Data, OpCode};

const SEED: u64 = 7;
/// WebSockets at a time.
const AT_A_TIME: usize = 2000;
/// The filter's limits, and what a busy machine may add.
const HANDSHAKE: Duration = Duration::from_secs(2);
const TCP: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(3);
/// Half of the WebSockets are drained at this age.
const MAX_AGE: Duration = Duration::from_secs(2);

/// One WebSocket's life.
#[derive(Debug)]
struct Life {
    behaviour: Behaviour,
    by_server: bool,
    /// The server talks, a message every so many milliseconds of so many bytes.
    every: u64,
    size: usize,
    /// When it is closed.
    after: Duration,
    /// What the client has echoed until then, where the server echoes.
    messages: Vec<usize>,
    answers: bool,
    /// The client goes away, with FIN or RST, without a Close frame.
    leaves: Option<End>,
}

impl Life {
    fn random(rng: &mut Rng, longest: Duration) -> Self {
        use Behaviour::*;
        let behaviour = rng
            .choice([
                Waits,
                Waits,
                Echo,
                Echo,
                Talks,
                Talks,
                FinWithoutWaiting,
                ClosesUnread,
                Resets,
                NeverCloses,
                DiesInFrame,
                ByteByByte,
                FinWithoutClose,
                Ignores,
                DataAfterClose,
            ])
            .expect("not empty");
        // Nobody would ever end that one.
        let by_server = rng.bool() && behaviour != Ignores;
        let echoes = !by_server && behaviour != Talks;
        Self {
            behaviour,
            by_server,
            every: rng.u64(5..300),
            size: if rng.u8(..) < 16 { 100_000 } else { rng.usize(..2000) },
            after: longest.mul_f64(rng.f64()),
            messages: if echoes { (0..rng.usize(..6)).map(|_| len(rng)).collect() } else { vec![] },
            answers: rng.u8(..) < 230,
            leaves: match rng.u8(..) {
                0..8 => Some(End::Fin),
                8..16 => Some(End::Rst),
                _ => None,
            },
        }
    }

    fn path(&self) -> String {
        let by = if self.by_server { "server" } else { "client" };
        let ms = self.after.as_millis();
        let name = self.behaviour.name();
        if self.behaviour == Behaviour::Talks {
            let Self { every, size, .. } = self;
            let until = if self.by_server { format!("&until={ms}") } else { String::new() };
            return format!("/talks?by=server&code=4321&every={every}&size={size}{until}");
        }
        let after = if self.by_server { format!("&after={ms}") } else { String::new() };
        format!("/{name}?by={by}&code=4321{after}")
    }

    /// Whether the server answers a client's Close frame with one of its own.
    fn server_answers(&self) -> bool {
        use Behaviour::*;
        matches!(self.behaviour, Waits | Echo | ByteByByte | NeverCloses | DataAfterClose)
    }

    /// Lives it; `max_age`: whether the filter closes it at its age.
    async fn live(&self, address: SocketAddr, max_age: bool) -> Result<Seen, String> {
        let begun = Instant::now();
        // Then the filter may have asked the server to close, in the name of a client that was slow to speak again.
        let asked = || max_age && begun.elapsed() > MAX_AGE && !self.server_answers();
        let mut client =
            Client::open(address, &self.path()).await.map_err(|e| format!("not opened: {e}"))?;
        let mut seen =
            Seen { age: Duration::ZERO, closing: Duration::ZERO, code: None, end: End::Never };
        // What the client sends, and then gets back.
        let mut echoed = 0;
        for &len in &self.messages {
            let payload = large_bytes(echoed, len);
            let sent = client.stream.write_all(&wire::message(&payload, true)).await;
            match client.frames.next(&mut client.stream).await {
                Ok(Some(frame)) if frame.payload == payload => echoed += len,
                // Closed for its age.
                Ok(Some(frame)) if frame.is_close() => {
                    seen.code = Some(wire::read_close(&frame.payload).0);
                    seen.age = begun.elapsed();
                    let _ = client.stream.write_all(&wire::close(1001, "", true)).await;
                    break;
                }
                Ok(None) if asked() => return Ok(Seen { end: End::Fin, ..seen }),
                Err(_) if asked() => return Ok(Seen { end: End::Rst, ..seen }),
                other => return Err(format!("sent {len} bytes: {sent:?}, got back {other:?}")),
            }
        }
        if let Some(how) = self.leaves {
            tokio::time::sleep(self.after / 2).await;
            if how == End::Rst {
                client.reset();
            }
            return Ok(Seen { end: how, ..seen });
        }
        let mut numbers = 0;
        let mut first_close = seen.code.map(|_| Instant::now());
        let mut closes_at = (!self.by_server && first_close.is_none()).then(|| begun + self.after);
        let patience = begun + self.after + MAX_AGE + HANDSHAKE + TCP + SLACK + SLACK;
        loop {
            let wake = closes_at.unwrap_or(patience);
            let next = client.frames.next(&mut client.stream);
            let frame = match tokio::time::timeout_at(wake.into(), next).await {
                Err(_) if closes_at.take().is_some() => {
                    first_close.get_or_insert_with(Instant::now);
                    let _ = client.stream.write_all(&wire::close(4000, "", true)).await;
                    continue;
                }
                Err(_) => return Err(format!("never ends: {seen:?}")),
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => {
                    seen.end = End::Fin;
                    break;
                }
                Ok(Err(_)) => {
                    seen.end = End::Rst;
                    break;
                }
            };
            if frame.is_close() {
                let (code, _) = wire::read_close(&frame.payload);
                if seen.code.replace(code).is_some() {
                    return Err("two Close frames".into());
                }
                seen.age = begun.elapsed();
                first_close.get_or_insert_with(Instant::now);
                if self.answers && closes_at.take().is_some() | self.by_server {
                    let _ = client.stream.write_all(&wire::close(code, "", true)).await;
                }
                closes_at = None;
            } else if seen.code.is_some() {
                // This server sends data after its Close frame, and the filter's own Close frame has nothing behind.
                if self.behaviour != Behaviour::DataAfterClose || seen.code == Some(1001) {
                    return Err(format!("behind the Close frame {:?}: {frame:?}", seen.code));
                }
            } else if frame.opcode == OpCode::Data(Data::Text) {
                let text = String::from_utf8_lossy(&frame.payload).into_owned();
                if text.trim_end().parse() != Ok(numbers) || text.len() < self.size {
                    return Err(format!("message {numbers} is {:?}", text.trim_end()));
                }
                numbers += 1;
            }
        }
        seen.closing = first_close.map_or(Duration::ZERO, |first| first.elapsed());
        Ok(seen)
    }

    /// What is wrong with what the client saw.
    fn complaint(&self, seen: &Seen, max_age: bool) -> Option<&'static str> {
        if self.leaves.is_some() {
            return None;
        }
        if seen.closing > HANDSHAKE + TCP + SLACK {
            return Some("over its limit");
        }
        match seen.code {
            Some(1001) if !max_age => Some("drained without maxAge"),
            Some(1001) if seen.age < MAX_AGE => Some("drained before its time"),
            _ => None,
        }
    }
}

/// Around the places where the frame's length changes its form, and beyond.
fn len(rng: &mut Rng) -> usize {
    match rng.u8(..) {
        0..150 => rng.usize(..200),
        150..230 => rng.usize(..70_000),
        _ => rng.usize(..400_000),
    }
}

/// What the client saw.
#[derive(Debug)]
struct Seen {
    /// When the Close frame came, from before the opening.
    age: Duration,
    /// From the first Close frame to the end.
    closing: Duration,
    code: Option<u16>,
    end: End,
}

/// The metrics as they stand.
fn metrics(envoy: &Envoy) -> BTreeMap<String, u64> {
    let names = ["upgrades", "active", "closed.clean", "closed.server_only", "closed.client_only"];
    let more = ["closed.abnormal", "untracked", "unpaired", "sent.max_age"];
    let get = |name: &str| (name.to_owned(), envoy.metric(&format!("websocket.{name}")));
    names.into_iter().chain(more).map(get).collect()
}

/// Envoy's heap, and its memory with that of V8, in MB.
fn memory(envoy: &Envoy) -> (f64, f64) {
    (envoy.allocated_bytes() as f64 / 1e6, envoy.resident_bytes() as f64 / 1e6)
}

/// In phases, so that there are moments at which nothing is open. By `growth` MB the memory may vary.
async fn soak(phases: u32, phase: Duration, longest: Duration, growth: f64) {
    let server = Server::start().await;
    // Servers that reset are failures, and five in a row are chance here: nothing is ejected for them.
    let setup = || {
        Setup { outlier_detection: false, ..Setup::new(Mode::Filter) }
            .with("closeHandshakeTimeout", "2s")
            .with("tcpCloseTimeout", "1s")
    };
    let plain = setup().start(server.address).await;
    let max_age = json!({ "after": "2s", "jitter": 0.5, "code": 1001, "reason": "too old" });
    let aged = setup().with("maxAge", max_age).start(server.address).await;
    let envoys = [&plain, &aged];
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let mut opened = [0, 0];
    let mut measured: Vec<[(f64, f64); 2]> = Vec::new();
    for n in 0..phases {
        let end = Instant::now() + phase;
        let slots: Vec<_> = (0..AT_A_TIME)
            .map(|slot| {
                let which = slot % 2;
                let (address, max_age) = (envoys[which].address(), which == 1);
                let wrong = Arc::clone(&wrong);
                let mut rng = Rng::with_seed(SEED << 40 | u64::from(n) << 20 | slot as u64);
                tokio::spawn(async move {
                    let mut lives = 0;
                    tokio::time::sleep(longest.mul_f64(rng.f64() / 2.0)).await;
                    while Instant::now() < end {
                        let life = Life::random(&mut rng, longest);
                        lives += 1;
                        let complaint = match life.live(address, max_age).await {
                            Ok(seen) => life
                                .complaint(&seen, max_age)
                                .map(|what| format!("{what}: {seen:?}")),
                            Err(error) => Some(error),
                        };
                        if let Some(complaint) = complaint {
                            let mut wrong = wrong.lock().expect("no panic while locked");
                            wrong.push(format!("{life:?}: {complaint}"));
                        }
                    }
                    (which, lives)
                })
            })
            .collect();
        for slot in slots {
            let (which, lives) = slot.await.expect("a slot does not panic");
            opened[which] += lives;
        }
        let wrong = wrong.lock().expect("no panic while locked").clone();
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        server.take_messages();
        server.take_closes();
        let mut now = [(0.0, 0.0); 2];
        for (which, envoy) in envoys.into_iter().enumerate() {
            let what = || format!("all have ended: {:?}", metrics(envoy));
            let ended = || envoy.metric("websocket.active") == 0;
            until_within(HANDSHAKE + TCP + SLACK, what, ended).await;
            let metrics = metrics(envoy);
            let closed: u64 = metrics
                .iter()
                .filter(|(name, _)| name.starts_with("closed."))
                .map(|(_, n)| n)
                .sum();
            now[which] = memory(envoy);
            println!(
                "phase {n}: {:.1} MB heap, {:.1} MB in all, {metrics:?}",
                now[which].0, now[which].1
            );
            assert_eq!(metrics["upgrades"], closed, "counters add up");
            assert_eq!(metrics["upgrades"], opened[which], "each is counted once");
            assert_eq!(metrics["untracked"] + metrics["unpaired"], 0);
        }
        measured.push(now);
    }
    assert!(aged.metric("websocket.sent.max_age") > 0);
    // Nothing is open at the end of a phase: what is there then, and grows, has leaked. The first
    // phases warm up.
    let begin = measured.len() / 2 - 1;
    for which in [0, 1] {
        let (heap, all) = measured[begin][which];
        let (heap_now, all_now) = measured[measured.len() - 1][which];
        let per_phase = opened[which] as f64 / f64::from(phases);
        let lives = per_phase * (measured.len() - 1 - begin) as f64;
        let bytes = (heap_now - heap) * 1e6 / lives;
        println!("{lives:.0} lives later: {bytes:.0} bytes of heap more each, {all:.1} to {all_now:.1} MB in all");
        assert!(heap_now < heap + 1.0, "Envoy's heap grows: {heap:.1} to {heap_now:.1} MB");
        assert!(all_now < all + growth, "Envoy's memory grows: {all:.1} to {all_now:.1} MB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_minute() {
    soak(4, Duration::from_secs(3), Duration::from_secs(5), 5.0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour: make soak"]
async fn half_an_hour() {
    soak(24, Duration::from_secs(60), Duration::from_secs(20), 15.0).await;
}
