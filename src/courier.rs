//! The return address on a connection, and the queue between the halves.
//!
//! The halves may live in one VM or in two (a different `vm_id`, or a rolling update of the image),
//! so they share no memory. The network half registers a shared queue, whose messages Envoy
//! delivers on the thread that registered it, and leaves the queue's number and the connection's
//! own on the connection as filter state. The HTTP half finds them there.

use std::cell::Cell;

use proxy_wasm::hostcalls;
use proxy_wasm::types::Status;

/// The filter state that holds the return address; Envoy prefixes `wasm.`.
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

/// Where to ask for a connection to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    queue: u32,
    connection: u32,
}

impl Address {
    /// The return address of the connection that carries the current HTTP stream; `None` where no
    /// network half has left one.
    pub fn of_connection() -> Option<Self> {
        let bytes = hostcalls::get_property(vec![PROPERTY]).ok()??;
        let (queue, connection) = bytes.split_first_chunk::<4>()?;
        Some(Self {
            queue: u32::from_le_bytes(*queue),
            connection: u32::from_le_bytes(connection.try_into().ok()?),
        })
    }

    /// Asks the network half to flush and close the connection, in the next turn of the worker's
    /// event loop. Never from inside a callback of the stream: the bytes in hand would be lost.
    pub fn ask_to_close(self) {
        // The queue is gone with the network half's VM; then so is the connection.
        let _ = hostcalls::enqueue_shared_queue(self.queue, Some(&self.connection.to_le_bytes()));
    }
}

/// The network half's end of the queue.
pub struct Mailbox {
    queue: u32,
}

impl Mailbox {
    /// Registers a queue of this root context's own. Each worker thread has one: Envoy calls back
    /// on the thread that registered the queue.
    pub fn open() -> Option<Self> {
        let queue =
            hostcalls::register_shared_queue(&format!("ws_clean_close.{}", next_number()?)).ok()?;
        declare_property();
        Some(Self { queue })
    }

    /// Leaves the return address on the current connection, whose context is `connection`.
    pub fn leave_address(&self, connection: u32) {
        let mut address = [0; 8];
        let (queue, context) = address.split_at_mut(4);
        queue.copy_from_slice(&self.queue.to_le_bytes());
        context.copy_from_slice(&connection.to_le_bytes());
        // Without it the HTTP half counts the connection as unpaired.
        let _ = hostcalls::set_property(vec![PROPERTY], Some(&address));
    }

    /// The contexts of connections that were asked to close, a few: Envoy calls for each that is asked.
    /// See [`AT_ONCE`].
    pub fn take(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::from_fn(|| hostcalls::dequeue_shared_queue(self.queue).ok().flatten())
            .take(AT_ONCE)
            .filter_map(|message| Some(u32::from_le_bytes(message.try_into().ok()?)))
    }
}

/// A number that no other queue of this `vm_id` has, on whatever thread.
fn next_number() -> Option<u64> {
    // Envoy configures a plugin on the main thread before any worker does, so that the first write,
    // which cannot be a compare-and-swap, has no rival.
    loop {
        let (value, cas) = hostcalls::get_shared_data(COUNTER).ok()?;
        let last = value.and_then(|v| Some(u64::from_le_bytes(v.try_into().ok()?))).unwrap_or(0);
        let next = last.wrapping_add(1);
        match hostcalls::set_shared_data(COUNTER, Some(&next.to_le_bytes()), cas) {
            Ok(()) => return Some(next),
            Err(Status::CasMismatch) => {}
            Err(_) => return None,
        }
    }
}

/// Makes the return address a property of the downstream connection and not of one filter chain.
/// The argument is the protobuf message `DeclarePropertyArguments`: `name` (1) and `span` (5).
fn declare_property() {
    let mut arguments = vec![0x0a, PROPERTY.len() as u8];
    arguments.extend(PROPERTY.as_bytes());
    arguments.extend([0x28, SPAN_CONNECTION]);
    // Refused where a configuration update declares it a second time, which is as good.
    let _ = hostcalls::call_foreign_function("declare_property", Some(&arguments));
}

thread_local! {
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// Envoy calls into this VM while it sends on what an HTTP half has given it. After *each* call it
/// carries out what the VM has asked for, so that a stream would be reset before what was held back
/// is written. From now on nothing is held back in this VM.
pub fn sending_is_interrupted() {
    INTERRUPTED.set(true);
}

/// Whether [`sending_is_interrupted`] has been said.
pub fn is_sending_interrupted() -> bool {
    INTERRUPTED.get()
}
