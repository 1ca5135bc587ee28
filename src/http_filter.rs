//! HTTP filter: finds the WebSockets among the streams.

use std::rc::Rc;

use log::info;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use ws_clean_close_core::config::HttpConfig;
use ws_clean_close_core::{EarlyData, Side};

use crate::body::{Body, SmallFrames};
use crate::host;
use crate::root::Misplaced;
use crate::websocket::{self, WebSocket};
use crate::worker::Worker;

/// The HTTP filter of one worker thread.
pub struct HttpFilter {
    worker: Rc<Worker>,
}

impl HttpFilter {
    /// For the root context `root`, the current one.
    pub fn new(root: u32, config: Box<HttpConfig>) -> Self {
        info!("HTTP filter configured: {config}");
        let filter = Self { worker: Rc::new(Worker::new(root, *config)) };
        filter.take_over();
        filter
    }

    /// The WebSockets that were opened under an earlier configuration of the same plugin live by it to
    /// their end, but for `drain`: that is for all.
    fn take_over(&self) {
        let mut open = websocket::open();
        open.retain(|websocket| websocket.belongs_to(&self.worker.plugin));
        match &self.worker.config.drain {
            Some(drain) if self.worker.config.enforce => {
                let begin = self.worker.next_fraction();
                for (i, websocket) in open.iter().enumerate() {
                    // Evenly, and not in the same moments as on the other threads.
                    let time = drain.within.mul_f64((i as f64 + begin) / open.len() as f64);
                    websocket.drain_in(time, drain, &self.worker);
                }
                info!("draining {} WebSockets on this thread", open.len());
            }
            _ => open.iter().for_each(|websocket| websocket.stop_draining()),
        }
    }

    /// The context of an HTTP stream.
    pub fn stream(&self, id: u32, misplaced: &Rc<Misplaced>) -> Box<dyn HttpContext> {
        Box::new(Stream {
            id,
            worker: Rc::clone(&self.worker),
            misplaced: Rc::clone(misplaced),
            phase: Phase::Request(None),
        })
    }

    /// Envoy's timer has fired.
    pub fn tick(&self) {
        self.worker.tick();
    }
}

/// This configuration is in use no more. Envoy does not report it if an earlier one, which still has its
/// root context, replaces it: the drain that it has begun is called off here too.
impl Drop for HttpFilter {
    fn drop(&mut self) {
        for websocket in websocket::open() {
            if websocket.is_drained_by(&self.worker) {
                websocket.stop_draining();
            }
        }
    }
}

/// The context of one HTTP stream. All but WebSockets pay for this and nothing else.
struct Stream {
    id: u32,
    worker: Rc<Worker>,
    misplaced: Rc<Misplaced>,
    phase: Phase,
}

/// What a stream is.
enum Phase {
    /// There is no response yet, and perhaps bytes of the client's: an upload, or frames in front of the
    /// 101.
    Request(Option<Box<EarlyData>>),
    /// No WebSocket.
    Plain,
    WebSocket(Rc<WebSocket>),
}

/// Envoy deletes a context right after `proxy_on_done`: one call is enough, as no stream asks for
/// time to end.
impl Drop for Stream {
    fn drop(&mut self) {
        if let Phase::WebSocket(websocket) = &self.phase {
            websocket.end();
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        self.misplaced.not();
        // A 101 never ends its stream, and a header costs more than the call that brings us here.
        let upgraded = !end_of_stream && is_websocket_upgrade() && self.worker.follow_alone();
        let phase = std::mem::replace(&mut self.phase, Phase::Plain);
        if let (true, Phase::Request(early)) = (upgraded, phase) {
            let early = early.map(|early| *early);
            self.phase = Phase::WebSocket(WebSocket::open(self.id, &self.worker, early));
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, len: usize, end_of_stream: bool) -> Action {
        match &mut self.phase {
            Phase::WebSocket(websocket) => websocket.on_data(Side::Client, len, end_of_stream),
            // The bytes of an upload are soon seen to be no frames.
            Phase::Request(early) if len > 0 && !end_of_stream => {
                let small_frames = SmallFrames::default();
                let mut body = Body::new(Side::Client, len, &small_frames);
                early.get_or_insert_default().on_data(&mut body);
            }
            Phase::Request(_) | Phase::Plain => {}
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, len: usize, end_of_stream: bool) -> Action {
        if let Phase::WebSocket(websocket) = &self.phase {
            websocket.on_data(Side::Server, len, end_of_stream);
        }
        Action::Continue
    }
}

/// Whether the response is 101 with `upgrade: websocket` (RFC 6455 §4.2.2). Envoy shows the
/// extended CONNECT of HTTP/2 and HTTP/3 (RFC 8441) in the same way.
fn is_websocket_upgrade() -> bool {
    // In this order: a plain response has no such header, and asking for it allocates nothing.
    host::response_header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
        && host::response_header(":status").is_some_and(|status| status == b"101")
}
