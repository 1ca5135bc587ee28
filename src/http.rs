//! HTTP half: finds the WebSockets among the streams.

use std::cell::RefCell;
use std::rc::Rc;

use log::info;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::config::HttpConfig;
use crate::root::Complaint;
use crate::shared::Shared;
use crate::websocket::{response_header, WebSocket};
use crate::{courier, roster};

/// The HTTP half of one worker thread.
pub struct HttpHalf {
    shared: Rc<Shared>,
}

impl HttpHalf {
    pub fn new(root: u32, config: Box<HttpConfig>) -> Self {
        info!("ws-clean-close: HTTP half configured: {config}");
        let half = Self { shared: Rc::new(Shared::new(root, *config)) };
        half.take_over();
        half
    }

    /// The WebSockets that were opened under an earlier configuration of the same plugin live by it to
    /// their end, but for `drain`: that is for all.
    fn take_over(&self) {
        let mut open = roster::open();
        open.retain(|websocket| websocket.borrow().belongs_to(&self.shared.plugin));
        match &self.shared.config.drain {
            Some(drain) if self.shared.config.enforce => {
                let begin = self.shared.next_fraction();
                for (i, websocket) in open.iter().enumerate() {
                    // Evenly, and not in the same moments as on the other threads.
                    let time = drain.within.mul_f64((i as f64 + begin) / open.len() as f64);
                    websocket.borrow_mut().drain_in(time, drain.close, &self.shared);
                }
                info!("ws-clean-close: draining {} WebSockets on this thread", open.len());
            }
            _ => open.iter().for_each(|websocket| websocket.borrow_mut().stop_draining()),
        }
    }

    /// This configuration is in use no more. Envoy does not say so where an earlier one, which still
    /// has its root context, takes its place: what it has begun is called off here too.
    fn hand_over(&self) {
        for websocket in roster::open() {
            if websocket.borrow().is_drained_by(&self.shared) {
                websocket.borrow_mut().stop_draining();
            }
        }
    }

    /// The context of an HTTP stream.
    pub fn stream(&self, id: u32, complaint: &Rc<Complaint>) -> Box<dyn HttpContext> {
        Box::new(Stream {
            id,
            complaint: Rc::clone(complaint),
            shared: Rc::clone(&self.shared),
            early_bytes: false,
            websocket: None,
        })
    }

    /// Envoy's timer has fired.
    pub fn tick(&self) {
        self.shared.tick();
    }
}

/// The root context ends.
impl Drop for HttpHalf {
    fn drop(&mut self) {
        self.hand_over();
        self.shared.shut_down();
    }
}

/// The context of one HTTP stream. All but WebSockets pay for this and nothing else.
struct Stream {
    id: u32,
    complaint: Rc<Complaint>,
    shared: Rc<Shared>,
    /// The client sent bytes before the 101. They were not followed.
    early_bytes: bool,
    websocket: Option<Rc<RefCell<WebSocket>>>,
}

/// Envoy deletes a context right after `proxy_on_done`: one call is enough, as no stream asks for
/// time to end.
impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(websocket) = self.websocket.take() {
            websocket.borrow_mut().end();
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        self.complaint.dismiss();
        // A 101 never ends its stream, and a header costs more than the call that brings us here.
        if !end_of_stream && is_websocket_upgrade() {
            if self.shared.follow_alone() {
                self.websocket = Some(WebSocket::open(self.id, &self.shared, self.early_bytes));
            } else {
                courier::sending_is_interrupted();
            }
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, len: usize, _: bool) -> Action {
        match &self.websocket {
            Some(websocket) => websocket.borrow_mut().client_bytes(len),
            None => self.early_bytes |= len > 0,
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, len: usize, end_of_stream: bool) -> Action {
        match &self.websocket {
            Some(websocket) => websocket.borrow_mut().server_bytes(len, end_of_stream),
            None => Action::Continue,
        }
    }
}

/// Whether the response is 101 with `upgrade: websocket` (RFC 6455 §4.2.2). Envoy shows the
/// extended CONNECT of HTTP/2 and HTTP/3 (RFC 8441) in the same way.
fn is_websocket_upgrade() -> bool {
    // In this order: a plain response has no such header, and asking for it allocates nothing.
    response_header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
        && response_header(":status").is_some_and(|status| status == b"101")
}
