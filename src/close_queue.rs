//! The handle of a connection, and the queue by which the HTTP filter asks the network filter to close
//! it.
//!
//! The two may live in one VM or in two (a different `vm_id`, or a rolling update of the image),
//! so they share no memory. The network filter registers a shared queue, whose messages Envoy
//! delivers on the thread that registered it, and leaves the queue's number and the connection's
//! own on the connection as filter state. The HTTP filter finds them there.

use crate::host;

/// The filter state that holds the handle; Envoy prefixes `wasm.`. Modules of different versions meet
/// on one connection during an update: the name stays.
const PROPERTY: &str = "ws_clean_close.return_address";
/// Shared data: how many queues have been registered.
const COUNTER: &str = "ws_clean_close.queues";
/// `DownstreamConnection` of `source/extensions/common/wasm/ext/declare_property.proto`.
const SPAN_CONNECTION: u8 = 2;

/// How many connections or streams are ended in one call from Envoy, at most. What a call asks for Envoy
/// carries out behind it, one after the other; but each end calls into the VM again, and behind *that*
/// call Envoy carries out the next (`ContextBase::doAfterVmCallActions` of proxy-wasm-cpp-host): one inside
/// of the other, until the stack of the VM is full. Between 500 and 2,000 fill it.
pub const AT_ONCE: usize = 128;

/// How to have a connection closed.
#[derive(Clone, Copy)]
pub struct Handle {
    queue: u32,
    connection: u32,
}

impl Handle {
    /// The handle of the connection that carries the current HTTP stream; `None` if no network filter
    /// has left one.
    pub fn of_connection() -> Option<Self> {
        let bytes = host::property(PROPERTY)?;
        let (queue, connection) = bytes.split_first_chunk::<4>()?;
        Some(Self {
            queue: u32::from_le_bytes(*queue),
            connection: u32::from_le_bytes(connection.try_into().ok()?),
        })
    }

    /// Has the network filter flush and close the connection, behind the callback in hand and before
    /// the worker polls again. Not in the callback itself: the bytes in hand would be lost.
    pub fn close(self) {
        // The queue is gone with the network filter's VM; then so is the connection.
        host::enqueue(self.queue, &self.connection.to_le_bytes());
    }
}

/// The network filter's end of the queue.
pub struct CloseQueue {
    queue: u32,
}

impl CloseQueue {
    /// Registers a queue of this root context's own. Each worker thread has one: Envoy calls back
    /// on the thread that registered the queue.
    pub fn register() -> Option<Self> {
        // Envoy configures a plugin on the main thread before any worker does, so that the first
        // write, which cannot be a compare-and-swap, has no rival.
        let number = host::count_shared(COUNTER)?;
        let queue = host::register_queue(&format!("ws_clean_close.{number}"))?;
        declare_property();
        Some(Self { queue })
    }

    /// Leaves the handle on the current connection, whose context is `connection`.
    pub fn leave_handle(&self, connection: u32) {
        let mut handle = [0; 8];
        let (queue, context) = handle.split_at_mut(4);
        queue.copy_from_slice(&self.queue.to_le_bytes());
        context.copy_from_slice(&connection.to_le_bytes());
        // Without it the HTTP filter counts the connection as unpaired.
        host::set_property(PROPERTY, &handle);
    }

    /// The contexts of connections that are to be closed, a few: Envoy calls for each message. See
    /// [`AT_ONCE`].
    pub fn take(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::from_fn(|| host::dequeue(self.queue))
            .take(AT_ONCE)
            .filter_map(|message| Some(u32::from_le_bytes(message.try_into().ok()?)))
    }
}

/// Makes the handle a property of the downstream connection and not of one filter chain.
/// The argument is the protobuf message `DeclarePropertyArguments`: `name` (1) and `span` (5).
fn declare_property() {
    let mut arguments = vec![0x0a, PROPERTY.len() as u8];
    arguments.extend(PROPERTY.as_bytes());
    arguments.extend([0x28, SPAN_CONNECTION]);
    // Refused if a configuration update declares it a second time, which is as good.
    host::call_foreign("declare_property", &arguments);
}
