//! Calls to the host that cannot trap: the SDK's own panic on a status that they do not expect
//! (`hostcalls.rs` of proxy-wasm), and a panic kills the VM. Here a call that is refused has no result.
//!
//! The functions are those of the proxy-wasm ABI 0.2.1.

#![allow(unsafe_code)]

use std::fmt::Write;
use std::ptr::null_mut;
use std::time::Duration;

use proxy_wasm::types::{BufferType, MapType, MetricType};

const OK: u32 = 0;
const CAS_MISMATCH: u32 = 8;
/// `StreamType::HttpResponse` and `StreamType::Downstream` of the ABI.
const HTTP_RESPONSE: u32 = 1;
const DOWNSTREAM: u32 = 2;

extern "C" {
    fn proxy_log(level: u32, message: *const u8, len: usize) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max: usize,
        data: *mut *mut u8,
        len: *mut usize,
    ) -> u32;
    fn proxy_set_buffer_bytes(
        buffer: u32,
        start: usize,
        size: usize,
        data: *const u8,
        len: usize,
    ) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_len: usize,
        data: *mut *mut u8,
        len: *mut usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, len: *mut usize) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_len: usize,
        data: *mut *mut u8,
        len: *mut usize,
    ) -> u32;
    fn proxy_set_property(path: *const u8, path_len: usize, data: *const u8, len: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_len: usize,
        data: *mut *mut u8,
        len: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_len: usize,
        data: *const u8,
        len: usize,
        cas: u32,
    ) -> u32;
    fn proxy_register_shared_queue(name: *const u8, len: usize, queue: *mut u32) -> u32;
    fn proxy_enqueue_shared_queue(queue: u32, data: *const u8, len: usize) -> u32;
    fn proxy_dequeue_shared_queue(queue: u32, data: *mut *mut u8, len: *mut usize) -> u32;
    fn proxy_close_stream(stream: u32) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_len: usize,
        data: *const u8,
        len: usize,
        result: *mut *mut u8,
        result_len: *mut usize,
    ) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, len: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
}

fn accepted(status: u32) -> Option<()> {
    (status == OK).then_some(())
}

/// What a call hands out in memory of the module's, for which the host has asked
/// `proxy_on_memory_allocate`.
fn received(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Option<Vec<u8>> {
    let (mut data, mut len) = (null_mut::<u8>(), 0);
    accepted(call(&mut data, &mut len))?;
    if data.is_null() {
        return None;
    }
    // SAFETY: the SDK's allocator made a boxed slice of exactly this length.
    Some(unsafe { Vec::from_raw_parts(data, len, len) })
}

/// Writes a line into Envoy's log.
pub fn log(level: log::Level, message: &str) {
    let level = match level {
        log::Level::Trace => 0,
        log::Level::Debug => 1,
        log::Level::Info => 2,
        log::Level::Warn => 3,
        log::Level::Error => 4,
    };
    // SAFETY: the host reads the bytes.
    unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

/// Whether Envoy's log takes debug lines; it can be changed at any time.
pub fn logs_debug() -> bool {
    let mut level = u32::MAX;
    // SAFETY: the host writes the number.
    unsafe { proxy_get_log_level(&mut level) == OK && level <= 1 }
}

/// Has the root context of the current context called every `period`, in whole milliseconds; zero: not
/// at all.
pub fn set_tick_period(period: Duration) {
    let period = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: a number is passed.
    unsafe { proxy_set_tick_period_milliseconds(period) };
}

/// At most `max` bytes of `buffer` from `start` on.
pub fn buffer(buffer: BufferType, start: usize, max: usize) -> Option<Vec<u8>> {
    // SAFETY: the host writes both results.
    received(|data, len| unsafe { proxy_get_buffer_bytes(buffer as u32, start, max, data, len) })
}

/// Replaces `size` bytes of `buffer` from `start` on.
pub fn set_buffer(buffer: BufferType, start: usize, size: usize, bytes: &[u8]) -> bool {
    // SAFETY: the host reads the bytes.
    unsafe { proxy_set_buffer_bytes(buffer as u32, start, size, bytes.as_ptr(), bytes.len()) == OK }
}

/// A header of the response whose headers are in hand.
pub fn response_header(name: &str) -> Option<Vec<u8>> {
    let map = MapType::HttpResponseHeaders as u32;
    // SAFETY: the host reads the name and writes both results.
    received(|data, len| unsafe {
        proxy_get_header_map_value(map, name.as_ptr(), name.len(), data, len)
    })
}

/// All headers of the response whose headers are in hand, in their order: names and values.
pub fn response_headers() -> Option<Headers> {
    let map = MapType::HttpResponseHeaders as u32;
    // SAFETY: the host writes both results.
    received(|data, len| unsafe { proxy_get_header_map_pairs(map, data, len) }).map(Headers)
}

/// Headers as the ABI has them: how many; the lengths of each name and value; each name and value with
/// a NUL behind it.
pub struct Headers(Vec<u8>);

impl Headers {
    /// Names and values. Ends early if the bytes do not add up.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let number = |at: usize| {
            let bytes = self.0.get(at..)?.first_chunk()?;
            usize::try_from(u32::from_le_bytes(*bytes)).ok()
        };
        let count = number(0).unwrap_or(0);
        let mut at = count.saturating_mul(8).saturating_add(4);
        (0..count).map_while(move |i| {
            let (name_len, value_len) = (number(4 + 8 * i)?, number(8 + 8 * i)?);
            let name = self.0.get(at..at.checked_add(name_len)?)?;
            at += name_len + 1;
            let value = self.0.get(at..at.checked_add(value_len)?)?;
            at += value_len + 1;
            Some((name, value))
        })
    }
}

/// An attribute, or what has been set on the stream or its connection. `path` has a NUL between its
/// parts.
pub fn property(path: &str) -> Option<Vec<u8>> {
    // SAFETY: the host reads the path and writes both results.
    received(|data, len| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, len) })
}

/// Sets a property of the current stream, or of its connection if it is declared so.
pub fn set_property(path: &str, value: &[u8]) {
    // SAFETY: the host reads both.
    unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) };
}

/// Adds one to the number that all threads share under `key`, which begins at 0; returns the sum.
pub fn count_shared(key: &str) -> Option<u64> {
    // Each rival makes one turn in vain; more are a host that is broken.
    for _ in 0..1000 {
        let mut cas = 0;
        // SAFETY: the host reads the key and writes the results.
        let value = received(|data, len| unsafe {
            proxy_get_shared_data(key.as_ptr(), key.len(), data, len, &mut cas)
        });
        let last = value.and_then(|v| Some(u64::from_le_bytes(v.try_into().ok()?))).unwrap_or(0);
        let next = last.wrapping_add(1);
        let bytes = next.to_le_bytes();
        // SAFETY: the host reads both.
        let status = unsafe {
            proxy_set_shared_data(key.as_ptr(), key.len(), bytes.as_ptr(), bytes.len(), cas)
        };
        match status {
            OK => return Some(next),
            CAS_MISMATCH => {}
            _ => return None,
        }
    }
    None
}

/// Registers a queue, whose messages Envoy announces on this thread.
pub fn register_queue(name: &str) -> Option<u32> {
    let mut queue = 0;
    // SAFETY: the host reads the name and writes the number.
    accepted(unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), &mut queue) })?;
    Some(queue)
}

/// Adds a message to a queue.
pub fn enqueue(queue: u32, message: &[u8]) {
    // SAFETY: the host reads the bytes.
    unsafe { proxy_enqueue_shared_queue(queue, message.as_ptr(), message.len()) };
}

/// Takes a message off a queue.
pub fn dequeue(queue: u32) -> Option<Vec<u8>> {
    // SAFETY: the host writes both results.
    received(|data, len| unsafe { proxy_dequeue_shared_queue(queue, data, len) })
}

/// Ends the current HTTP stream from this side, behind the call that is in hand.
pub fn reset_stream() {
    // SAFETY: a number is passed.
    unsafe { proxy_close_stream(HTTP_RESPONSE) };
}

/// Flushes and closes the current connection, behind the call that is in hand.
pub fn close_connection() {
    // SAFETY: a number is passed.
    unsafe { proxy_close_stream(DOWNSTREAM) };
}

/// Does something in the name of another context, `own` being the current one. Not if it is gone.
pub fn as_context(context: u32, own: u32, act: impl FnOnce()) {
    // SAFETY: a number is passed.
    if unsafe { proxy_set_effective_context(context) } == OK {
        act();
        // SAFETY: as above.
        unsafe { proxy_set_effective_context(own) };
    }
}

/// Calls a function that Envoy has beyond the ABI, and forgets its result.
pub fn call_foreign(name: &str, argument: &[u8]) {
    // SAFETY: the host reads both and writes both results.
    received(|data, len| unsafe {
        proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            argument.as_ptr(),
            argument.len(),
            data,
            len,
        )
    });
}

/// Defines a metric; the same name gives the same metric in every VM and on every thread.
pub fn define_metric(kind: MetricType, name: &str) -> Option<u32> {
    let mut id = 0;
    // SAFETY: the host reads the name and writes the number.
    accepted(unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &mut id) })?;
    Some(id)
}

/// Adds to a counter or a gauge.
pub fn increment_metric(id: u32, offset: i64) {
    // SAFETY: numbers are passed.
    unsafe { proxy_increment_metric(id, offset) };
}

/// Records a value in a histogram.
pub fn record_metric(id: u32, value: u64) {
    // SAFETY: numbers are passed.
    unsafe { proxy_record_metric(id, value) };
}

/// The log crate's way to [`log`]. Envoy drops what its own level does not want.
pub struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let mut line = "ws-clean-close: ".to_owned();
        // Writing into a String does not fail.
        let _ = write!(line, "{}", record.args());
        log(record.level(), &line);
    }

    fn flush(&self) {}
}
