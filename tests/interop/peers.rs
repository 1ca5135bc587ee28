//! The clients and servers, each of which is named by its library.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use testbed::browser::{Browser, Closed, Closing, Kind};
use testbed::peers::{Connecting, Library, Serving};
use testbed::proxies::{self, Proxy};
use testbed::tls;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::Message;

use crate::cells::GIVES_UP;

pub(crate) const TUNGSTENITE: &str = "tokio-tungstenite";
pub(crate) const BEHIND_NGINX: &str = "tokio-tungstenite behind nginx";
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// A client that is told what to do.
pub(crate) enum Client {
    Library(Library, Connecting),
    Tungstenite(Handle),
    Browser(&'static str, Browser),
}

impl Client {
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Tungstenite(Handle::current())];
        for library in Library::CLIENTS {
            if library.ecosystem().is_here() {
                all.push(Self::Library(library, Connecting::start(library)));
            }
        }
        for (name, kind) in [("Chromium", Kind::Chromium), ("Chrome 88", Kind::Chrome88)] {
            all.push(Self::Browser(name, Browser::start(kind)));
        }
        all
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Library(library, _) => library.name(),
            Self::Tungstenite(_) => TUNGSTENITE,
            Self::Browser(name, _) => name,
        }
    }

    pub(crate) fn closes(&mut self, url: &str, close: Option<u16>, count: usize) -> Vec<Closed> {
        match self {
            Self::Library(_, client) => client.closes(url, close, count),
            Self::Tungstenite(runtime) => runtime.block_on(async {
                let one = || tungstenite_client(url, close);
                futures_util::future::join_all((0..count).map(|_| one())).await
            }),
            Self::Browser(_, browser) => {
                browser.closes_at_once(url, &close.map_or(Closing::ByServer, Closing::Code), count)
            }
        }
    }
}

async fn tungstenite_client(url: &str, close: Option<u16>) -> Closed {
    let address = url.split('/').nth(2).expect("a URL");
    let tcp = TcpStream::connect(address).await.expect("a connection");
    let stream: Box<dyn testbed::wire::Stream> = if url.starts_with("wss:") {
        let name = ServerName::try_from("localhost").expect("a DNS name");
        Box::new(tls::connector().connect(name, tcp).await.expect("TLS"))
    } else {
        Box::new(tcp)
    };
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
    let mut begun = Instant::now();
    if let Some(code) = close {
        tokio::time::sleep(PAUSE).await;
        begun = Instant::now();
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        socket.close(Some(frame)).await.expect("open");
    }
    let (mut code, mut reason, mut failed) = (1006, String::new(), false);
    // It has no limit of its own.
    let patience = tokio::time::Instant::now() + Duration::from_secs(GIVES_UP + 8);
    while let Ok(Some(message)) = tokio::time::timeout_at(patience, socket.next()).await {
        match message {
            Ok(Message::Close(frame)) => {
                (code, reason) = frame.map_or((1005, String::new()), |frame| {
                    (frame.code.into(), frame.reason.to_string())
                });
            }
            Ok(_) => {}
            Err(_) => failed = true,
        }
    }
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    let was_clean = code != 1006 && !failed;
    Closed { code, reason, was_clean, ms, extensions: String::new(), messages: 0 }
}

pub(crate) fn library(server: &str) -> Option<Library> {
    Library::SERVERS.into_iter().find(|library| library.name() == server)
}

pub(crate) fn takes_http2(server: &str) -> bool {
    library(server).is_some_and(Library::takes_http2)
}

/// A server, and where it listens.
pub(crate) enum Server {
    Library(Serving),
    Tungstenite(SocketAddr, JoinHandle<()>),
    /// The same, and nginx in front of it.
    BehindNginx(Proxy, JoinHandle<()>),
}

impl Server {
    pub(crate) async fn start(name: &str, tls: bool) -> Self {
        if let Some(library) = library(name) {
            return Self::Library(Serving::start_at(library, 0, tls));
        }
        let (address, task) = tungstenite(tls).await;
        if name == BEHIND_NGINX {
            let nginx = Proxy::start(proxies::Kind::Nginx, 1, address);
            return Self::BehindNginx(nginx.unwrap_or_else(|e| panic!("{e}")), task);
        }
        Self::Tungstenite(address, task)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Library(server) => server.address,
            Self::Tungstenite(address, _) => *address,
            Self::BehindNginx(nginx, _) => nginx.entry(1),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Tungstenite(_, task) | Self::BehindNginx(_, task) = self {
            task.abort();
        }
    }
}

/// Serves on any port, until the task is aborted.
async fn tungstenite(tls: bool) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                if !tls {
                    tungstenite_server(tcp).await;
                } else if let Ok(stream) = tls::acceptor().accept(tcp).await {
                    tungstenite_server(stream).await;
                }
            });
        }
    });
    (address, task)
}

async fn tungstenite_server(stream: impl testbed::wire::Stream) {
    let mut path = String::new();
    #[allow(clippy::result_large_err)] // tungstenite's own type
    let look = |request: &Request, response: Response| {
        request.uri().path().clone_into(&mut path);
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, look).await else { return };
    if path != "/client" {
        tokio::time::sleep(PAUSE).await;
        let frame = CloseFrame { code: 4321.into(), reason: "bye".into() };
        let _ = socket.close(Some(frame)).await;
        // `close` only sends, and what is dropped here is closed.
        if path == "/fin-without-waiting" {
            return;
        }
    }
    while let Some(Ok(_)) = socket.next().await {}
}
