//! Network filter: leaves a handle on each connection, and closes those it is asked to.

use log::info;

use crate::close_queue::CloseQueue;
use crate::host;

/// The network filter of one worker thread.
pub struct NetworkFilter {
    root: u32,
    queue: CloseQueue,
}

impl NetworkFilter {
    /// `None` if the host gives it no queue.
    pub fn new(root: u32) -> Option<Self> {
        let queue = CloseQueue::register()?;
        info!("network filter configured");
        Some(Self { root, queue })
    }

    /// A connection whose context is `id`, the current one.
    pub fn connected(&self, id: u32) {
        self.queue.leave_handle(id);
    }

    /// Closes the connections that the HTTP filter has asked for: flush, then FIN, without the delay
    /// of the HTTP connection manager and also when that has already begun
    /// (`Context::closeStream` in `source/extensions/common/wasm/context.cc`).
    pub fn close_requested(&self) {
        for connection in self.queue.take() {
            host::as_context(connection, self.root, host::close_connection);
        }
    }
}
