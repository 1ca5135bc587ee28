//! As an HTTP filter: sets a body before there is one. As a network filter: gets a callback for a connection, while
//! its context is an HTTP one.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

proxy_wasm::main! {{
    proxy_wasm::set_http_context(|_, _| Box::new(Stream));
}}

struct Stream;

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_body(0, 0, b"body");
        Action::Continue
    }
}
