//! A chunk of a stream's body, as the host hands it out.

use std::cell::Cell;

use proxy_wasm::types::BufferType;
use ws_clean_close_core::scanner::Chunk;
use ws_clean_close_core::Side;

use crate::host;

/// How many chunks of one direction are still expected to have small frames.
#[derive(Default)]
pub struct SmallFrames(Cell<u8>);

impl SmallFrames {
    /// So many behind one that had them; the next shows it anew.
    const EXPECTED: u8 = 16;

    /// Whether the next chunk is expected to have them.
    fn expected(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }

    fn seen(&self) {
        self.0.set(Self::EXPECTED);
    }
}

/// A chunk that the host holds. It hands out copies, and a call for them costs as much as copying
/// some 16 KiB: docs/performance.md.
pub struct Body<'a> {
    buffer: BufferType,
    len: usize,
    window: Vec<u8>,
    window_at: usize,
    small_frames: &'a SmallFrames,
    /// They are taken to be small before they have shown it: one call less.
    expects_small_frames: bool,
}

impl<'a> Body<'a> {
    /// If the next header stands nearer than this behind the last one, the frames are small, and
    /// their payloads are copied with them.
    const NEAR: usize = 16 * 1024;
    /// How much is copied then: a few calls for a megabyte, and a bound for the module's memory.
    const WINDOW: usize = 256 * 1024;
    /// What is left of a chunk is copied whole if it is no more than this.
    const SMALL: usize = 4096;

    /// The chunk of `len` bytes in hand, which comes from `side`, as `small_frames` do.
    pub fn new(side: Side, len: usize, small_frames: &'a SmallFrames) -> Self {
        Self {
            buffer: buffer_of(side),
            len,
            window: Vec::new(),
            window_at: 0,
            small_frames,
            expects_small_frames: small_frames.expected(),
        }
    }

    /// Whether a header at `offset` stands near to the last one.
    fn is_near(&self, offset: usize) -> bool {
        !self.window.is_empty() && offset < self.window_at + self.window.len() + Self::NEAR
    }
}

impl Chunk for Body<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&mut self, offset: usize, len: usize) -> Option<&[u8]> {
        if len == 0 {
            return Some(&[]);
        }
        let end = self.window_at + self.window.len();
        if offset < self.window_at || offset + len > end {
            let left = self.len.checked_sub(offset)?;
            let near = self.is_near(offset);
            if near {
                self.small_frames.seen();
            }
            let first = self.window.is_empty();
            let copies = near || left <= Self::SMALL || (first && self.expects_small_frames);
            let wanted = if copies { Self::WINDOW } else { len };
            // First, so that the next one has its memory.
            self.window = Vec::new();
            self.window = host::buffer(self.buffer, offset, wanted.max(len).min(left))?;
            self.window_at = offset;
        }
        self.window.get(offset - self.window_at..).filter(|window| window.len() >= len)
    }
}

fn buffer_of(side: Side) -> BufferType {
    match side {
        Side::Server => BufferType::HttpResponseBody,
        Side::Client => BufferType::HttpRequestBody,
    }
}

/// Puts `new` instead of what is behind `at` in the chunk in hand, which comes from `side` and is
/// `len` bytes long; returns whether the host took it.
pub fn replace_end(side: Side, at: usize, len: usize, new: &[u8]) -> bool {
    let buffer = buffer_of(side);
    if at == len {
        return host::set_buffer(buffer, len, 0, new);
    }
    // Envoy replaces the beginning of a buffer, all of it, or nothing (`Buffer::copyFrom` in
    // source/extensions/common/wasm/context.cc).
    let small_frames = SmallFrames::default();
    let mut chunk = Body::new(side, len, &small_frames);
    let Some(kept) = chunk.read(0, at).and_then(|kept| kept.get(..at)) else {
        return false;
    };
    host::set_buffer(buffer, 0, len, &[kept, new].concat())
}
