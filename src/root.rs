//! Entry of the module: the root context, and which filter it is.

use std::cell::Cell;
use std::rc::Rc;

use log::error;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType};
use ws_clean_close_core::config::Config;

use crate::host;
use crate::http_filter::HttpFilter;
use crate::network_filter::NetworkFilter;

// The one place that needs it: the macro exports `_initialize`, which calls the WASI constructors.
#[allow(unsafe_code, missing_docs)]
mod entry {
    proxy_wasm::main! {{
        // Refused if there is one already, which cannot be.
        let _ = log::set_logger(&super::host::Logger);
        log::set_max_level(log::LevelFilter::Trace);
        proxy_wasm::set_root_context(|id| Box::new(super::Root::new(id)));
    }}
}

/// A root context: one for each attachment and worker thread.
struct Root {
    id: u32,
    filter: Filter,
    misplaced: Rc<Misplaced>,
}

enum Filter {
    /// Not configured, or refused: streams pass untouched.
    Unconfigured,
    Http(HttpFilter),
    Network(NetworkFilter),
}

impl Root {
    fn new(id: u32) -> Self {
        Self { id, filter: Filter::Unconfigured, misplaced: Rc::default() }
    }

    fn configure(&self, json: &[u8]) -> Result<Filter, String> {
        match Config::parse(json) {
            Ok(Config::Http(config)) => Ok(Filter::Http(HttpFilter::new(self.id, config))),
            Ok(Config::Network) => NetworkFilter::new(self.id)
                .map(Filter::Network)
                .ok_or_else(|| "the host gives the network filter no queue".to_owned()),
            Err(reason) => Err(format!("bad configuration: {reason}")),
        }
    }
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let json = host::buffer(BufferType::PluginConfiguration, 0, size).unwrap_or_default();
        match self.configure(&json) {
            Ok(filter) => {
                self.filter = filter;
                true
            }
            Err(reason) => {
                error!("{reason}");
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
        Some(match &self.filter {
            Filter::Http(filter) => {
                if self.misplaced.is_open() && is_tcp_connection() {
                    self.misplaced.report("http", "a network");
                }
                filter.stream(id, &self.misplaced)
            }
            Filter::Network(filter) => {
                // Over QUIC, or among the HTTP filters, there is no connection to close.
                if is_tcp_connection() {
                    filter.connected(id);
                }
                Box::new(Connection(Rc::clone(&self.misplaced)))
            }
            Filter::Unconfigured => Box::new(Untouched),
        })
    }

    fn on_queue_ready(&mut self, _queue: u32) {
        if let Filter::Network(filter) = &self.filter {
            filter.close_requested();
        }
    }

    fn on_tick(&mut self) {
        if let Filter::Http(filter) = &self.filter {
            filter.tick();
        }
    }
}

/// Whether the context that is being created is that of a TCP connection. A request has a protocol
/// from its headers on; one that was refused before them is only logged, and has a response code; a
/// QUIC connection has its protocol from the beginning.
fn is_tcp_connection() -> bool {
    host::property("request\0protocol").is_none() && host::property("response\0code").is_none()
}

/// Two attachments are soon mixed up. Reported once there is evidence; never a reason to do anything
/// else.
#[derive(Default)]
pub struct Misplaced(Cell<bool>);

impl Misplaced {
    /// Whether it has not been reported, and nothing has shown that there is no reason to.
    fn is_open(&self) -> bool {
        !self.0.get()
    }

    /// There is no reason to.
    pub fn not(&self) {
        self.0.set(true);
    }

    fn report(&self, attach: &str, kind: &str) {
        if !self.0.replace(true) {
            error!(
                "configured with \"attach\": \"{attach}\", but attached as {kind} filter: nothing is \
                 done here"
            );
        }
    }
}

/// Lets a stream pass.
struct Untouched;

impl Context for Untouched {}
impl HttpContext for Untouched {}

/// A stream of the network filter.
struct Connection(Rc<Misplaced>);

impl Context for Connection {}
impl HttpContext for Connection {
    /// Only an HTTP stream has response headers.
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.0.report("network", "an HTTP");
        Action::Continue
    }
}
