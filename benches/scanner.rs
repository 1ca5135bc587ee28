//! The frame scanner alone, beside a scan of all bytes: bytes per second, for each frame size and
//! chunking.
//!
//!     make bench-scanner-baseline   # keeps the present figures
//!     make bench-scanner            # compares with them

use std::hint::black_box;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use testbed::server::messages;
use testbed::wire;
use ws_clean_close_core::scanner::Scanner;
use ws_clean_close_core::Side;

const FRAMES: [(&str, usize); 4] =
    [("125 B", 125), ("1 KiB", 1 << 10), ("16 KiB", 1 << 14), ("1 MiB", 1 << 20)];
const CHUNKS: [(&str, usize); 5] =
    [("1 B", 1), ("1 KiB", 1 << 10), ("16 KiB", 1 << 14), ("64 KiB", 1 << 16), ("1 MiB", 1 << 20)];

/// How many frames begin in `bytes`, cut into chunks.
fn scan(side: Side, bytes: &[u8], chunk: usize) -> usize {
    let mut scanner = Scanner::new(side);
    let mut frames = 0;
    for chunk in bytes.chunks(chunk) {
        // As the host's chunk does with small frames: one read serves many.
        let mut chunk = chunk;
        scanner.scan(&mut chunk, |_| frames += 1).expect("these are frames");
    }
    frames
}

fn add(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8")));
    words.fold(0, u64::wrapping_add)
}

fn scanner(criterion: &mut Criterion) {
    for (kind, masked) in [("plain", false), ("masked", true)] {
        let side = if masked { Side::Client } else { Side::Server };
        for (frame, size) in FRAMES {
            let bytes = messages(size, masked);
            let frames = bytes.len() / wire::message(&vec![0; size], masked).len();
            let mut group = criterion.benchmark_group(format!("{kind}, frames of {frame}"));
            group
                .throughput(Throughput::Bytes(bytes.len() as u64))
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_secs(1))
                .sample_size(20);
            for (name, chunk) in CHUNKS {
                assert_eq!(scan(side, &bytes, chunk), frames, "chunks make no difference");
                let id = BenchmarkId::new("scanner, chunks of", name);
                group.bench_with_input(id, &chunk, |b, chunk| {
                    b.iter(|| scan(side, black_box(&bytes), *chunk));
                });
            }
            group.bench_function("all bytes added up", |b| b.iter(|| add(black_box(&bytes))));
            group.finish();
        }
    }
}

criterion_group!(benches, scanner);
criterion_main!(benches);
