//! Entry of the module: the root context, and which half it is.

use log::error;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext, StreamContext};
use proxy_wasm::types::{BufferType, ContextType, LogLevel};

use crate::config::Config;
use crate::http::HttpHalf;
use crate::network::NetworkHalf;

// The one place that needs it: the macro exports `_initialize`, which calls the WASI constructors.
#[allow(unsafe_code, missing_docs)]
mod entry {
    proxy_wasm::main! {{
        // Envoy drops what its own log level does not want.
        proxy_wasm::set_log_level(super::LogLevel::Trace);
        proxy_wasm::set_root_context(|id| Box::new(super::Root { id, half: super::Half::Unconfigured }));
    }}
}

/// A root context: one for each attachment and worker thread.
struct Root {
    id: u32,
    half: Half,
}

enum Half {
    /// Not configured, or refused: streams pass untouched.
    Unconfigured,
    Http(HttpHalf),
    Network(NetworkHalf),
}

impl Context for Root {
    fn on_done(&mut self) -> bool {
        if let Half::Http(half) = &self.half {
            half.shut_down();
        }
        true
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let json = match hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size) {
            Ok(json) => json.unwrap_or_default(),
            Err(status) => {
                error!("ws-clean-close: the host does not hand out the configuration: {status:?}");
                return false;
            }
        };
        match Config::parse(&json) {
            Ok(Config::Http(config)) => self.half = Half::Http(HttpHalf::new(self.id, config)),
            Ok(Config::Network) => match NetworkHalf::new(self.id) {
                Some(half) => self.half = Half::Network(half),
                None => {
                    error!("ws-clean-close: the host gives the network half no queue");
                    return false;
                }
            },
            Err(reason) => {
                error!("ws-clean-close: bad configuration: {reason}");
                return false;
            }
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        // Envoy creates no stream of a root context that was refused; were it to, an HTTP context
        // that does nothing is the harmless one.
        Some(match self.half {
            Half::Network(_) => ContextType::StreamContext,
            _ => ContextType::HttpContext,
        })
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(match &self.half {
            Half::Http(half) => half.stream(id),
            _ => Box::new(Untouched),
        })
    }

    fn create_stream_context(&self, id: u32) -> Option<Box<dyn StreamContext>> {
        Some(match &self.half {
            Half::Network(half) => half.connection(id),
            _ => Box::new(Untouched),
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

/// Lets a stream pass.
struct Untouched;

impl Context for Untouched {}
impl HttpContext for Untouched {}
impl StreamContext for Untouched {}
