//! An HTTP/2 client that opens WebSockets by extended CONNECT (RFC 8441), next to plain requests on
//! the same connection.

use std::future::{poll_fn, Future};
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::wire::{Frames, Received};

/// One HTTP/2 connection.
pub struct Connection {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Connection {
    /// # Panics
    /// Where the connection cannot be made.
    pub async fn open(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        let (requests, connection) = client::handshake(tcp).await.expect("HTTP/2");
        let driver = tokio::spawn(connection);
        let mut requests = requests.ready().await.expect("HTTP/2");
        // The peer's SETTINGS, which allow extended CONNECT, may come a little later.
        while !requests.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
            requests = requests.ready().await.expect("HTTP/2");
        }
        Self { requests, driver }
    }

    /// Whether the connection is still there.
    pub fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// The status of a plain request.
    ///
    /// # Errors
    /// Where its stream or the connection fails.
    pub async fn get(&mut self, path: &str) -> Result<StatusCode, h2::Error> {
        let request = Request::get(format!("http://localhost{path}")).body(()).expect("a request");
        let (response, _) = self.requests.send_request(request, true)?;
        Ok(response.await?.status())
    }

    /// Opens a WebSocket.
    ///
    /// # Errors
    /// Where its stream or the connection fails.
    pub async fn websocket(&mut self, path: &str) -> Result<Stream, h2::Error> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://localhost{path}"))
            .header("sec-websocket-version", "13")
            // RFC 8441 has no use for it; the HTTP/1.1 server behind Envoy has.
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .extension(Protocol::from_static("websocket"))
            .body(())
            .expect("a request");
        let (response, send) = self.requests.send_request(request, false)?;
        let response = response.await?;
        assert_eq!(response.status(), StatusCode::OK, "no upgrade");
        Ok(Stream { send, receive: response.into_body(), frames: Frames::default() })
    }
}

/// A WebSocket on an HTTP/2 stream.
pub struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    frames: Frames,
}

impl Stream {
    /// # Errors
    /// Where the stream is over.
    pub fn send(&mut self, bytes: Vec<u8>) -> Result<(), h2::Error> {
        self.send.send_data(bytes.into(), false)
    }

    /// The next frame; `None` at END_STREAM.
    ///
    /// # Errors
    /// RST_STREAM, or the end of the connection.
    pub async fn next(&mut self) -> Result<Option<Received>, h2::Error> {
        loop {
            if let Some(frame) = self.frames.pop() {
                return Ok(Some(frame));
            }
            match poll_fn(|context| self.receive.poll_data(context)).await {
                None => return Ok(None),
                Some(data) => {
                    let data = data?;
                    let _ = self.receive.flow_control().release_capacity(data.len());
                    self.frames.extend(&data);
                }
            }
        }
    }
}

/// An HTTP/2 server that takes every extended CONNECT and has `life` do what follows, with what it
/// sends and what it receives.
///
/// # Panics
/// If no port can be had.
pub async fn serve<F, L>(life: F) -> SocketAddr
where
    F: Fn(SendStream<Bytes>, RecvStream) -> L + Clone + Send + 'static,
    L: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let life = life.clone();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.enable_connect_protocol();
                let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let response = Response::builder().status(StatusCode::OK).body(());
                    let send = respond.send_response(response.expect("a response"), false);
                    if let Ok(send) = send {
                        tokio::spawn(life(send, request.into_body()));
                    }
                }
            });
        }
    });
    address
}
