//! A chunk of a stream's body, as the host hands it out.

use proxy_wasm::hostcalls;
use proxy_wasm::types::BufferType;

use crate::frame::Chunk;

/// A chunk that the host holds. It hands out copies, and a call for them costs as much as copying
/// some 16 KiB: docs/performance.md.
pub struct HostChunk {
    buffer: BufferType,
    len: usize,
    window: Vec<u8>,
    window_at: usize,
}

impl HostChunk {
    /// Where the next header stands nearer than this behind the last one, the frames are small, and
    /// their payloads are copied with them.
    const NEAR: usize = 16 * 1024;
    /// How much is copied then: a few calls for a megabyte, and a bound for the module's memory.
    const WINDOW: usize = 256 * 1024;
    /// What is left of a chunk is copied whole where it is no more than this.
    const SMALL: usize = 4096;

    /// `len` bytes of `buffer`.
    pub fn new(buffer: BufferType, len: usize) -> Self {
        Self { buffer, len, window: Vec::new(), window_at: 0 }
    }

    fn has_small_frames(&self, offset: usize) -> bool {
        !self.window.is_empty() && offset < self.window_at + self.window.len() + Self::NEAR
    }
}

impl Chunk for HostChunk {
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
            let wanted = if left <= Self::SMALL || self.has_small_frames(offset) {
                Self::WINDOW
            } else {
                len
            };
            // First, so that the next one has its memory.
            self.window = Vec::new();
            self.window =
                hostcalls::get_buffer(self.buffer, offset, wanted.max(len).min(left)).ok()??;
            self.window_at = offset;
        }
        self.window.get(offset - self.window_at..).filter(|window| window.len() >= len)
    }
}
