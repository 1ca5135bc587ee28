//! Network half: leaves its return address on each connection, and closes those it is asked to.

use std::rc::Rc;

use log::info;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, StreamContext};
use proxy_wasm::types::Action;

use crate::courier::{self, Mailbox};

/// The network half of one worker thread.
pub struct NetworkHalf {
    root: u32,
    mailbox: Rc<Mailbox>,
}

impl NetworkHalf {
    /// `None` where the host gives it no queue.
    pub fn new(root: u32) -> Option<Self> {
        let mailbox = Rc::new(Mailbox::open()?);
        info!("ws-clean-close: network half configured");
        Some(Self { root, mailbox })
    }

    /// The context of a connection.
    pub fn connection(&self, id: u32) -> Box<dyn StreamContext> {
        Box::new(Connection { id, mailbox: Rc::clone(&self.mailbox) })
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

struct Connection {
    id: u32,
    mailbox: Rc<Mailbox>,
}

impl Context for Connection {}

impl StreamContext for Connection {
    /// A module that was linked by `scripts/wasm-ld` has no such callback.
    fn on_upstream_data(&mut self, _: usize, _: bool) -> Action {
        courier::sending_is_interrupted();
        Action::Continue
    }

    fn on_new_connection(&mut self) -> Action {
        self.mailbox.leave_address(self.id);
        Action::Continue
    }
}
