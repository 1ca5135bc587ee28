//! One WebSocket, from the connection to the end of TCP.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{ready, Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{lookup_host, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::header::HOST;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{client_async, WebSocketStream};

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::tls;
use crate::verdict::{End, Verdict};

/// Where, and how, to open WebSockets.
pub struct Target {
    request: Request,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    patience: Duration,
}

/// What became of one.
pub struct Report {
    /// Code and reason of the server's Close frame; 1005 where it gave none.
    close: Option<(u16, String)>,
    by_server: bool,
    end: End,
    /// From the Close exchange, or what came nearest to one, to the end of TCP.
    after: Duration,
}

impl Target {
    /// # Errors
    /// What is wrong with the address or the file of certificates.
    pub fn new(arguments: &Arguments) -> Result<Self, Failure> {
        let url = arguments.url.clone().unwrap_or_default();
        let tls = match url.scheme_str() {
            Some("ws") => None,
            Some("wss") => Some(tls::connector(arguments.ca_file.as_deref(), arguments.insecure)?),
            _ => {
                return Err(Failure::new(
                    format!("{url} is no WebSocket address: expected ws:// or wss://"),
                    "Use ws:// for http://, wss:// for https://",
                ))
            }
        };
        let wrong = |what: String| Failure::new(what, "Expected ws://HOST[:PORT]/PATH or wss://…");
        let host = url.host().ok_or_else(|| wrong(format!("{url} names no host")))?;
        let port = url.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut request = (&url).into_client_request().map_err(|e| wrong(format!("{url}: {e}")))?;
        let headers = request.headers_mut();
        for (name, value) in arguments.header.iter().cloned() {
            // The handshake has one of its own.
            if name == HOST {
                headers.insert(name, value);
            } else {
                headers.append(name, value);
            }
        }
        if !arguments.subprotocol.is_empty() {
            let list = arguments.subprotocol.join(", ");
            let value = list.parse().map_err(|_| {
                Failure::new(format!("{list:?} are no subprotocols"), "Expected names in ASCII")
            })?;
            headers.insert("sec-websocket-protocol", value);
        }
        let patience = Duration::from_secs_f64(arguments.timeout);
        Ok(Self { request, host, port, tls, patience })
    }

    /// The address without its query, which may hold a token.
    pub fn name(&self) -> String {
        let url = self.request.uri();
        let scheme = url.scheme_str().unwrap_or("ws");
        // Without what may stand before an @.
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}{}", url.path())
    }

    /// Opens a WebSocket and sees it closed.
    ///
    /// # Errors
    /// Why there was nothing to close, and what to do.
    pub async fn close(&self, by_server: bool) -> Result<Report, Failure> {
        let Self { host, port, .. } = self;
        let place = format!("{host}:{port}");
        let resolved = self.within("resolving the name", lookup_host((host.as_str(), *port)));
        let addresses: Vec<_> = resolved.await?.map_err(|e| Failure::dns(host, &e))?.collect();
        let tcp = self
            .within("connecting", TcpStream::connect(addresses.as_slice()))
            .await?
            .map_err(|e| Failure::connect(&place, &e))?;
        let _ = tcp.set_nodelay(true);
        let ended = Ended::default();
        let observed = Observed { tcp, ended: Arc::clone(&ended) };
        match &self.tls {
            None => self.over(observed, ended, by_server).await,
            Some(tls) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    Failure::new(
                        format!("{host} cannot stand in a certificate"),
                        "Use a host name or an IP address",
                    )
                })?;
                let stream = self
                    .within("the TLS handshake", tls.connect(name, observed))
                    .await?
                    .map_err(|e| Failure::tls(&place, &e))?;
                self.over(stream, ended, by_server).await
            }
        }
    }

    async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, Failure> {
        let seconds = self.patience.as_secs_f64();
        timeout(self.patience, future).await.map_err(|_| Failure::timeout(what, seconds))
    }

    async fn over<S: AsyncRead + AsyncWrite + Unpin + OverTcp>(
        &self,
        stream: S,
        ended: Ended,
        by_server: bool,
    ) -> Result<Report, Failure> {
        let opening = client_async(self.request.clone(), stream);
        let opened = self.within("the opening handshake", opening).await?;
        let (mut socket, _) = opened.map_err(|e| Failure::opening(&e, self.tls.is_some()))?;
        if !by_server {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "probe".into() };
            // A peer that is gone already shows in what follows.
            let _ = socket.send(Message::Close(Some(frame))).await;
        }
        let begun = Instant::now();
        let close = timeout(self.patience, until_close(&mut socket)).await;
        if by_server && close.is_err() {
            return Err(Failure::no_server_close(self.patience.as_secs_f64()));
        }
        let close = close.ok().flatten();
        // Without a Close frame there is no exchange: what counts is when TCP ended.
        let exchanged = if close.is_some() { Instant::now() } else { begun };
        let rest = async {
            while let Some(Ok(_)) = socket.next().await {}
            // TLS may have ended before TCP does.
            let _ = io::copy(socket.get_mut().tcp(), &mut io::sink()).await;
        };
        let _ = timeout(self.patience, rest).await;
        let end = *ended.lock().unwrap_or_else(|e| e.into_inner());
        let (end, at) = end.unwrap_or((End::Never, Instant::now()));
        Ok(Report { close, by_server, end, after: at.saturating_duration_since(exchanged) })
    }
}

/// Reads up to the server's Close frame, and answers it; `None` where the stream ends first.
async fn until_close<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
) -> Option<(u16, String)> {
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Close(frame) = message {
            let _ = socket.flush().await;
            let frame = frame.map(|f| (f.code.into(), f.reason.to_string()));
            return Some(frame.unwrap_or((1005, String::new())));
        }
    }
    None
}

impl Report {
    pub fn verdict(&self) -> Verdict {
        Verdict::of(self.close.is_some(), self.end, self.after)
    }

    /// From the Close exchange to the end of TCP, if there were both.
    pub fn tcp_end(&self) -> Option<Duration> {
        (self.close.is_some() && self.end != End::Never).then_some(self.after)
    }

    fn ms(&self) -> Option<f64> {
        self.tcp_end().map(|after| after.as_secs_f64() * 1000.0)
    }

    /// 1005 if the Close frame had none, 1006 if there was no Close frame.
    pub fn code(&self) -> u16 {
        self.close.as_ref().map_or(1006, |close| close.0)
    }

    fn end(&self) -> &'static str {
        match self.end {
            End::Fin => "FIN",
            End::Rst => "RST",
            End::Never => "none",
        }
    }

    fn closed_by(&self) -> &'static str {
        if self.by_server {
            "server"
        } else {
            "client"
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "code": self.code(),
            "reason": self.close.as_ref().map(|close| &close.1),
            "closed_by": self.closed_by(),
            "end": self.end(),
            "ms": self.ms(),
            "clean": self.verdict().is_clean(),
            "verdict": self.verdict().name(),
            "words": self.verdict().to_string(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.close {
            Some((code, reason)) if reason.is_empty() => writeln!(f, "code       {code}")?,
            Some((code, reason)) => writeln!(f, "code       {code} {reason:?}")?,
            None => writeln!(f, "code       none (1006)")?,
        }
        writeln!(f, "closed by  {}", self.closed_by())?;
        match self.ms() {
            Some(ms) => {
                writeln!(f, "TCP        {}, {ms:.1} ms after the Close exchange", self.end())?
            }
            None => writeln!(f, "TCP        {}", self.end())?,
        }
        write!(f, "verdict    {}", self.verdict())
    }
}

/// What stands on an observed connection.
trait OverTcp {
    fn tcp(&mut self) -> &mut Observed;
}

impl OverTcp for Observed {
    fn tcp(&mut self) -> &mut Observed {
        self
    }
}

impl OverTcp for TlsStream<Observed> {
    fn tcp(&mut self) -> &mut Observed {
        self.get_mut().0
    }
}

/// How, and when, TCP ended.
type Ended = Arc<Mutex<Option<(End, Instant)>>>;

/// A TCP connection whose end is noted. The libraries above it do not tell FIN from RST.
struct Observed {
    tcp: TcpStream,
    ended: Ended,
}

impl Observed {
    fn note(&self, end: End) {
        self.ended.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert((end, Instant::now()));
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining();
        let result = ready!(Pin::new(&mut self.tcp).poll_read(context, buffer));
        match &result {
            Ok(()) if room > 0 && buffer.filled().len() == before => self.note(End::Fin),
            Err(_) => self.note(End::Rst),
            Ok(()) => {}
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The server closes first; a FIN of ours would not be seen for what it is.
        Poll::Ready(Ok(()))
    }
}
