//! Entry of the module: the root context, and which half it is.

use std::cell::Cell;
use std::rc::Rc;

use log::error;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel};

use crate::config::Config;
use crate::http::HttpHalf;
use crate::network::NetworkHalf;

// The one place that needs it: the macro exports `_initialize`, which calls the WASI constructors.
#[allow(unsafe_code, missing_docs)]
mod entry {
    proxy_wasm::main! {{
        // Envoy drops what its own log level does not want.
        proxy_wasm::set_log_level(super::LogLevel::Trace);
        proxy_wasm::set_root_context(|id| Box::new(super::Root::new(id)));
    }}
}

/// A root context: one for each attachment and worker thread.
struct Root {
    id: u32,
    half: Half,
    complaint: Rc<Complaint>,
}

enum Half {
    /// Not configured, or refused: streams pass untouched.
    Unconfigured,
    Http(HttpHalf),
    Network(NetworkHalf),
}

impl Root {
    fn new(id: u32) -> Self {
        Self { id, half: Half::Unconfigured, complaint: Rc::default() }
    }

    fn configure(&self, json: &[u8]) -> Result<Half, String> {
        match Config::parse(json) {
            Ok(Config::Http(config)) => Ok(Half::Http(HttpHalf::new(self.id, config))),
            Ok(Config::Network) => NetworkHalf::new(self.id)
                .map(Half::Network)
                .ok_or_else(|| "the host gives the network half no queue".to_owned()),
            Err(reason) => Err(format!("bad configuration: {reason}")),
        }
    }
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let json = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size);
        match self.configure(&json.ok().flatten().unwrap_or_default()) {
            Ok(half) => {
                self.half = half;
                true
            }
            Err(reason) => {
                error!("ws-clean-close: {reason}");
                false
            }
        }
    }

    /// Connections too. The SDK panics on a callback for the other kind, and the host does not say
    /// whether a new context is an HTTP stream or a connection: no property tells them apart over
    /// QUIC, where a connection has `request.protocol` as well. But Envoy calls only what a module
    /// exports, and this one exports no callback that a connection alone has (`scripts/wasm-ld`; no
    /// other linker is taken, see `build.rs`): a network filter does all it has to do while its
    /// context is created. So nobody is ever asked what it is not.
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(match &self.half {
            Half::Http(half) => {
                if self.complaint.is_open() && is_tcp_connection() {
                    self.complaint.make("http", "a network");
                }
                half.stream(id, &self.complaint)
            }
            Half::Network(half) => {
                // Over QUIC, or among the HTTP filters, there is no connection to close.
                if is_tcp_connection() {
                    half.connected(id);
                }
                Box::new(Connection(Rc::clone(&self.complaint)))
            }
            Half::Unconfigured => Box::new(Untouched),
        })
    }

    fn on_queue_ready(&mut self, _queue: u32) {
        if let Half::Network(half) = &self.half {
            half.close_requested();
        }
    }

    fn on_tick(&mut self) {
        if let Half::Http(half) = &self.half {
            half.tick();
        }
    }
}

/// Whether the context that is being created is that of a TCP connection. A request has a protocol
/// from its headers on; one that was refused before them is only logged, and has a response code; a
/// QUIC connection has its protocol from the beginning.
fn is_tcp_connection() -> bool {
    let lacks = |path| !matches!(hostcalls::get_property(path), Ok(Some(_)));
    lacks(vec!["request", "protocol"]) && lacks(vec!["response", "code"])
}

/// Two attachments are soon mixed up. What is made once the evidence is there; never a reason to do
/// anything else.
#[derive(Default)]
pub struct Complaint(Cell<bool>);

impl Complaint {
    /// Whether it has not been made, and nothing has shown that there is no reason to.
    fn is_open(&self) -> bool {
        !self.0.get()
    }

    /// There is no reason for it.
    pub fn dismiss(&self) {
        self.0.set(true);
    }

    fn make(&self, attach: &str, place: &str) {
        if !self.0.replace(true) {
            error!(
                "ws-clean-close: configured with \"attach\": \"{attach}\", but attached as {place} \
                 filter: nothing is done here"
            );
        }
    }
}

/// Lets a stream pass.
struct Untouched;

impl Context for Untouched {}
impl HttpContext for Untouched {}

/// A stream of the network half.
struct Connection(Rc<Complaint>);

impl Context for Connection {}
impl HttpContext for Connection {
    /// Only an HTTP stream has response headers.
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.0.make("network", "an HTTP");
        Action::Continue
    }
}
