//! A chunk of a stream's body, as the host hands it out.

use proxy_wasm::hostcalls;
use proxy_wasm::types::BufferType;

use crate::frame::Chunk;

/// A chunk that the host holds. It hands out copies, so as little as possible is asked for.
pub struct HostChunk {
    buffer: BufferType,
    len: usize,
    window: Vec<u8>,
    window_at: usize,
}

impl HostChunk {
    /// A call to the host costs as much as copying this many bytes: what is nearer than that to the
    /// last read is fetched with more of its neighbourhood.
    const NEAR: usize = 512;
    const NEIGHBOURHOOD: usize = 4096;

    /// `len` bytes of `buffer`.
    pub fn new(buffer: BufferType, len: usize) -> Self {
        Self { buffer, len, window: Vec::new(), window_at: 0 }
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
            let small_frames = !self.window.is_empty() && offset < self.window_at + Self::NEAR;
            let wanted = if small_frames || left <= Self::NEAR { Self::NEIGHBOURHOOD } else { len };
            self.window =
                hostcalls::get_buffer(self.buffer, offset, wanted.max(len).min(left)).ok()??;
            self.window_at = offset;
        }
        self.window.get(offset - self.window_at..)?.get(..len)
    }
}
