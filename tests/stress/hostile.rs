//! Hostile peers, both of them: random frames, broken ones and garbage, in random pieces, through a real
//! Envoy and back. Every byte arrives as it was sent, and nothing is left of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use testbed::closing::{open, until};
use testbed::{wire, Client, Mode, Server, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

const SEED: u64 = 77;
/// At a time.
const PEERS: u64 = 32;
const DURATION: Duration = Duration::from_secs(8);

/// What a hostile peer sends.
fn bytes(rng: &mut Rng) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..rng.usize(1..30) {
        match rng.u8(..16) {
            0 => all.extend(garbage(rng, 300)),
            // The beginning of a frame whose length says anything.
            1 => all.extend([
                rng.u8(..),
                [126, 127, 254, 255][rng.usize(..4)],
                rng.u8(..),
                rng.u8(..),
            ]),
            2 => all.extend(close_frame(rng)),
            3 => {
                let mut frame = frame(rng);
                let at = rng.usize(..frame.len().min(12));
                frame[at] ^= 1 << rng.u8(..8);
                all.extend(frame);
            }
            4 => {
                let frame = frame(rng);
                all.extend(&frame[..rng.usize(..frame.len())]);
            }
            _ => all.extend(frame(rng)),
        }
    }
    all
}

/// Fewer bytes than `len`.
fn garbage(rng: &mut Rng, len: usize) -> Vec<u8> {
    let len = rng.usize(..len);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

fn frame(rng: &mut Rng) -> Vec<u8> {
    let opcode = match rng.u8(..6) {
        0 => OpCode::Data(Data::Continue),
        1 => OpCode::Data(Data::Text),
        2 => OpCode::Control(Control::Ping),
        3 => OpCode::Control(Control::Pong),
        _ => OpCode::Data(Data::Binary),
    };
    let len = match (opcode, rng.u8(..16)) {
        (OpCode::Control(_), _) => rng.usize(..126),
        (_, 0) => rng.usize(65_500..65_600),
        (_, 1..4) => rng.usize(..20_000),
        _ => rng.usize(..140),
    };
    let payload: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
    wire::frame(opcode, rng.bool() || matches!(opcode, OpCode::Control(_)), &payload, rng.bool())
}

fn close_frame(rng: &mut Rng) -> Vec<u8> {
    let payload = garbage(rng, 126);
    wire::frame(OpCode::Control(Control::Close), true, &payload, rng.bool())
}

/// Cuts them anywhere.
fn pieces(bytes: &[u8], rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let most = [2, 20, 200, 70_000][rng.usize(..4)];
        let (piece, behind) = rest.split_at(rng.usize(1..=most).min(rest.len()));
        pieces.push(piece.to_vec());
        rest = behind;
    }
    pieces
}

/// Sends, and reads back from a server that returns every byte. Some do not wait to the end.
async fn session(client: Client, mut rng: Rng) -> Result<usize, String> {
    let sent = bytes(&mut rng);
    let leaves = rng.u8(..) < 40;
    let pieces = pieces(&sent, &mut rng);
    let pause = rng.u64(..3);
    let (mut read, mut write) = tokio::io::split(client.stream);
    let writing = async {
        for piece in pieces {
            write.write_all(&piece).await?;
            if pause > 0 && piece.len() > 20 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        std::io::Result::Ok(())
    };
    let reading = async {
        let mut came = Vec::new();
        let enough = if leaves { sent.len() / 2 } else { sent.len() };
        while came.len() < enough {
            if read.read_buf(&mut came).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(came)
    };
    let both = async { tokio::try_join!(writing, reading) };
    let result = tokio::time::timeout(Duration::from_secs(20), both).await;
    let ((), came) = result
        .map_err(|_| format!("{} bytes did not come back in time", sent.len()))?
        .map_err(|e| format!("{} bytes: {e}", sent.len()))?;
    let same = came.iter().zip(&sent).take_while(|(a, b)| a == b).count();
    if same < came.len() || (!leaves && came.len() < sent.len()) {
        return Err(format!("sent {}, {} came, {same} are the same", sent.len(), came.len()));
    }
    Ok(came.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_arrives_as_sent() {
    let server = Server::start().await;
    // No limit ends what a Close frame in the middle seems to have ended. The filter has all its other
    // features on, though none comes to pass: they are for the server's end, and for later.
    let setup = Setup::new(Mode::Filter)
        .hops(2)
        .with("closeHandshakeTimeout", "60s")
        .with("tcpCloseTimeout", "60s")
        .with("abnormalClose", json!({ "code": 1012 }))
        .with("maxAge", json!({ "after": "1h" }));
    let envoy = Arc::new(setup.start(server.address).await);
    let mut memory = Vec::new();
    let (mut sessions, mut bytes) = (0, 0);
    for phase in 0..2 {
        let end = Instant::now() + DURATION;
        let peers: Vec<_> = (0..PEERS)
            .map(|peer| {
                let envoy = Arc::clone(&envoy);
                tokio::spawn(async move {
                    let (mut sessions, mut bytes) = (0_u64, 0);
                    while Instant::now() < end {
                        let seed = SEED << 48 | phase << 40 | peer << 32 | sessions;
                        let path = "/mirror?after=60000";
                        let address = envoy.entry(1 + (sessions % 2) as usize);
                        let client = open(address, path).await;
                        bytes += session(client, Rng::with_seed(seed))
                            .await
                            .unwrap_or_else(|e| panic!("seed {seed:#x}: {e}"));
                        sessions += 1;
                    }
                    (sessions, bytes)
                })
            })
            .collect();
        for peer in peers {
            let (more, more_bytes) = peer.await.expect("every byte arrives");
            (sessions, bytes) = (sessions + more, bytes + more_bytes);
        }
        until("none is left", || envoy.metric("websocket.active") == 0).await;
        memory.push((envoy.allocated_bytes(), envoy.resident_bytes()));
    }
    let untracked = envoy.metric("websocket.untracked");
    println!(
        "{sessions} sessions, {bytes} bytes, {untracked} lost their frames, memory {memory:?}"
    );
    assert!(sessions > 200 && untracked > sessions / 4);
    let [(heap, all), (heap_now, all_now)] = memory[..] else { panic!("two phases") };
    assert!(heap_now < heap + heap / 10 + 1_000_000, "Envoy's heap grows");
    assert!(all_now < all + all / 10 + 4_000_000, "Envoy's memory grows");
}
