//! A hostile host: any answer to any call, callbacks in any order, contexts that vanish, ticks early and
//! late, messages that are old, foreign or empty, configurations at any moment, lengths that lie. The module
//! never traps, comes to an end in each callback, and its memory is bounded.
//!
//! Not in it, as no Envoy does it: callbacks for contexts that were never created or are gone (the SDK
//! panics on an unknown context), and bytes longer than the memory that was asked for them.
//!
//! As environment variables: `CALLBACKS=10000000`, or `HOSTILE_SECONDS=600` for seeds that no run had before;
//! `SEED=7` for that one alone. Each seed is a VM and 2,000 callbacks, always the same.

use std::time::{Duration, Instant};

use fastrand::Rng;
use scripted_host::{Body, Compiled, Mood, Vm};

const CONFIGS: [&str; 8] = [
    r#"{"attach": "http"}"#,
    r#"{"attach": "network"}"#,
    r#"{"attach": "http", "enforce": false}"#,
    r#"{"attach": "http", "maxAge": {"after": "0.01s", "claim": "exp", "endSilentAfter": "0.01s"}}"#,
    r#"{"attach": "http", "drain": {"within": "0.02s", "endSilentAfter": "0s"}}"#,
    r#"{"attach": "http", "abnormalClose": {"code": 1012}, "closeHandshakeTimeout": "0.005s"}"#,
    "",
    r#"{"attach": "http", "#,
];

const FRAMES: [&[u8]; 10] = [
    b"",
    b"\x81\x02hi",
    b"\x81\x82\0\0\0\0hi",
    b"\x88\x02\x03\xe8",
    b"\x88\x82\0\0\0\0\x03\xe8",
    b"\x88\x00",
    b"\x01\x05",
    b"\x82\x7e\xff\xff",
    b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
    b"raw bytes",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn frames(rng: &mut Rng) -> Vec<u8> {
    (0..rng.usize(..4)).flat_map(|_| FRAMES[rng.usize(..FRAMES.len())]).copied().collect()
}

/// Some callbacks in one VM.
fn live(compiled: &Compiled, seed: u64, callbacks: u64) -> Result<usize, String> {
    let mut rng = Rng::with_seed(seed);
    let trap = |e: scripted_host::Trap| format!("{e:?}");
    let mut vm: Vm = compiled.start().map_err(trap)?;
    let (mut roots, mut streams, mut next) = (Vec::new(), Vec::new(), 1);
    vm.host().mood = Mood::Hostile(Rng::with_seed(seed));
    for _ in 0..callbacks {
        vm.host().now += rng.u64(..5_000_000);
        vm.host().calls.clear();
        vm.host().log.clear();
        vm.host().closes.clear();
        let protocol: &[u8] = [&b"HTTP/1.1"[..], b"HTTP/2", b"HTTP/3", b""][rng.usize(..4)];
        vm.host().attributes.insert("request.protocol".into(), protocol.to_vec());
        let exp = f64::from_bits(rng.u64(..)).to_le_bytes().to_vec();
        let path = "metadata.filter_metadata.envoy.filters.http.jwt_authn.payload.exp";
        vm.host().attributes.insert(path.into(), exp);
        let any = |rng: &mut Rng, list: &[u32]| {
            if list.is_empty() {
                None
            } else {
                Some(list[rng.usize(..list.len())])
            }
        };
        match rng.u8(..40) {
            0 if roots.len() < 6 => {
                vm.create(next, 0).map_err(trap)?;
                vm.configure(next, CONFIGS[rng.usize(..CONFIGS.len())]).map_err(trap)?;
                roots.push(next);
                next += 1;
            }
            1 if rng.bool() => {
                if let Some(root) = any(&mut rng, &roots) {
                    vm.configure(root, CONFIGS[rng.usize(..CONFIGS.len())]).map_err(trap)?;
                }
            }
            2 if rng.u8(..8) == 0 => {
                if let Some(root) = any(&mut rng, &roots) {
                    // Its streams go first.
                    for &(stream, of) in streams.iter().filter(|&&(_, of)| of == root) {
                        let _: u32 = of;
                        vm.delete(stream).map_err(trap)?;
                    }
                    streams.retain(|&(_, of)| of != root);
                    vm.delete(root).map_err(trap)?;
                    roots.retain(|&other| other != root);
                }
            }
            3..8 if streams.len() < 200 => {
                if let Some(root) = any(&mut rng, &roots) {
                    vm.create(next, root).map_err(trap)?;
                    streams.push((next, root));
                    next += 1;
                }
            }
            8..12 => {
                if let Some(root) = any(&mut rng, &roots) {
                    vm.tick(root).map_err(trap)?;
                }
            }
            12..14 => {
                let message = [vec![], vec![1, 2, 3], vec![9; 300], next.to_le_bytes().to_vec()];
                let message = message[rng.usize(..4)].clone();
                if let Some(queue) = vm.host().queues.last_mut() {
                    queue.push_back(message);
                }
                if let Some(root) = any(&mut rng, &roots) {
                    vm.queue_ready(root, rng.u32(..9)).map_err(trap)?;
                }
            }
            _ if streams.is_empty() => {}
            kind => {
                let at = rng.usize(..streams.len());
                let (stream, _) = streams[at];
                match kind {
                    14..18 => {
                        vm.delete(stream).map_err(trap)?;
                        streams.swap_remove(at);
                    }
                    18..24 => {
                        let status = if rng.u8(..4) > 0 { "101" } else { "200" };
                        let connection = if rng.bool() { "Upgrade" } else { "upgrade" };
                        let headers = [
                            (":status", status),
                            ("sec-websocket-accept", "x"),
                            ("upgrade", "websocket"),
                            ("connection", connection),
                        ];
                        vm.response(stream, &headers, rng.u8(..9) == 0).map_err(trap)?;
                    }
                    _ => {
                        let way = if rng.bool() { Body::Request } else { Body::Response };
                        let bytes = frames(&mut rng);
                        let len = match rng.u8(..10) {
                            0 => rng.usize(..5000),
                            1 => u32::MAX as usize / 2,
                            _ => bytes.len(),
                        };
                        let end = rng.u8(..20) == 0;
                        vm.lying_body(stream, way, &bytes, len, end).map_err(trap)?;
                    }
                }
            }
        }
        if let Some((context, _)) = vm
            .host()
            .closes
            .clone()
            .iter()
            .find(|(context, _)| !vm.host().contexts.contains_key(context))
        {
            return Err(format!("context {context} is gone, and was touched"));
        }
    }
    Ok(vm.memory_len())
}

/// Says how to run this seed again, however it failed.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "again: SEED={seed} cargo test -p scripted-host --test hostile -- --nocapture"
            );
        }
    }
}

#[test]
fn a_hostile_host() {
    const EACH: u64 = 2000;
    let compiled = Compiled::new(&testbed::fetch::module()).expect("the module");
    let end =
        number("HOSTILE_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let seeds = match (number("SEED"), end) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(_)) => fastrand::u64(1 << 32..1 << 52)..u64::MAX,
        (None, None) => 0..number("CALLBACKS").unwrap_or(1_000_000).div_ceil(EACH),
    };
    let first = seeds.start;
    let (mut largest, mut lived) = (0, 0);
    for seed in seeds {
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        let _replay = Replay(seed);
        let memory = live(&compiled, seed, EACH).unwrap_or_else(|what| panic!("{what}"));
        largest = largest.max(memory);
        lived += 1;
    }
    let callbacks = lived * EACH;
    println!(
        "{callbacks} callbacks, seeds from {first}; the module's memory: at most {largest} bytes"
    );
    assert!(callbacks > 0 && largest < 16 << 20);
}
