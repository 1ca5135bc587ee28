//! Entry of the module: the root context, and which half it is.

use std::cell::Cell;
use std::rc::Rc;

use log::error;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext, StreamContext};
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
    place: Rc<Place>,
}

enum Half {
    /// Not configured, or refused: streams pass untouched.
    Unconfigured,
    Http(HttpHalf),
    Network(NetworkHalf),
}

impl Root {
    fn new(id: u32) -> Self {
        Self { id, half: Half::Unconfigured, place: Rc::default() }
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
                if matches!(half, Half::Network(_)) {
                    self.place.streams.set(Streams::Connections);
                }
                self.half = half;
                true
            }
            Err(reason) => {
                error!("ws-clean-close: {reason}");
                false
            }
        }
    }

    /// Called for each stream, in the stream's own context. What it is must be told right, whatever
    /// the configuration says: the SDK panics on a callback for the other kind.
    fn get_type(&self) -> Option<ContextType> {
        Some(self.place.kind())
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(match &self.half {
            Half::Http(half) => half.stream(id),
            Half::Network(_) => {
                self.place.complain("network", "an HTTP");
                Box::new(Untouched)
            }
            Half::Unconfigured => Box::new(Untouched),
        })
    }

    fn create_stream_context(&self, id: u32) -> Option<Box<dyn StreamContext>> {
        Some(match &self.half {
            Half::Network(half) => half.connection(id),
            Half::Http(_) => Box::new(Misplaced(Rc::clone(&self.place))),
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

/// Where the attachment stands: among the HTTP filters or among the network filters. The host does
/// not say; the configuration does, but two attachments are soon mixed up.
#[derive(Default)]
struct Place {
    streams: Cell<Streams>,
    complained: Cell<bool>,
}

/// What an attachment's streams are, as far as is known.
#[derive(Clone, Copy, Default)]
enum Streams {
    #[default]
    Unknown,
    /// HTTP requests alone: nobody needs to ask again.
    Requests,
    /// There are connections, or will be. There may be requests as well: Envoy may give two attachments
    /// with the same configuration one root context, also where only one of them is a network filter.
    Connections,
}

impl Place {
    /// What the current stream is. A request has a protocol from its headers on, a connection has
    /// none yet. A request that is refused before its headers has none either: it is only logged
    /// and deleted, for which either kind will do.
    fn kind(&self) -> ContextType {
        let streams = self.streams.get();
        if matches!(streams, Streams::Requests) {
            return ContextType::HttpContext;
        }
        match hostcalls::get_property(vec!["request", "protocol"]) {
            Ok(Some(_)) => {
                if matches!(streams, Streams::Unknown) {
                    self.streams.set(Streams::Requests);
                }
                ContextType::HttpContext
            }
            _ => ContextType::StreamContext,
        }
    }

    fn complain(&self, attach: &str, place: &str) {
        if !self.complained.replace(true) {
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
impl StreamContext for Untouched {}

/// Lets a connection pass to which an HTTP half has been attached; or a request that was refused.
struct Misplaced(Rc<Place>);

impl Context for Misplaced {}
impl StreamContext for Misplaced {
    fn on_new_connection(&mut self) -> Action {
        self.0.streams.set(Streams::Connections);
        self.0.complain("http", "a network");
        Action::Continue
    }
}
