//! Network half: leaves its return address on each connection, and closes those it is asked to.

use log::info;
use proxy_wasm::hostcalls;

use crate::courier::Mailbox;

/// The network half of one worker thread.
pub struct NetworkHalf {
    root: u32,
    mailbox: Mailbox,
}

impl NetworkHalf {
    /// `None` where the host gives it no queue.
    pub fn new(root: u32) -> Option<Self> {
        let mailbox = Mailbox::open()?;
        info!("ws-clean-close: network half configured");
        Some(Self { root, mailbox })
    }

    /// A connection whose context is `id`, the current one.
    pub fn connected(&self, id: u32) {
        self.mailbox.leave_address(id);
    }

    /// Closes the connections that the HTTP half has asked for: flush, then FIN, without the delay
    /// of the HTTP connection manager and also when that has already begun
    /// (`Context::closeStream` in `source/extensions/common/wasm/context.cc`).
    pub fn close_requested(&self) {
        for connection in self.mailbox.take() {
            // Refused where the connection is already gone.
            if hostcalls::set_effective_context(connection).is_ok() {
                let _ = hostcalls::close_downstream();
            }
        }
        let _ = hostcalls::set_effective_context(self.root);
    }
}
