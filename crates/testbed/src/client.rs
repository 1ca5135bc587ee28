//! A raw TCP client: it reports the code, FIN or RST, and when.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
#[cfg(feature = "tls")]
use tokio_rustls::rustls::pki_types::ServerName;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::closing::IMMEDIATE;
#[cfg(feature = "tls")]
use crate::tls;
use crate::wire::{self, Frames, Stream};

/// How TCP ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Rst,
    /// Not within the plan's patience.
    Never,
}

/// What the client saw of a close.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Code and reason of the server's Close frame; 1005 where it gave none.
    pub close: Option<(u16, String)>,
    /// Whether the client had sent its own Close frame by then.
    pub answered: bool,
    pub end: End,
    /// From the Close exchange (or, without one, from the last that happened) to the end of TCP.
    pub after: Duration,
    /// Payload bytes of data frames, and of a frame that was cut off.
    pub payload: usize,
    /// Bytes that came behind the server's Close frame.
    pub extra: usize,
    /// Whether each byte of the `large` behaviour was the one that belongs there.
    pub intact: bool,
}

impl Ending {
    /// The code as a browser would report it.
    pub fn code(&self) -> u16 {
        self.close.as_ref().map_or(1006, |(code, _)| *code)
    }

    /// Clean as RFC 6455 §7.1.4 has it: both Close frames, then FIN.
    pub fn is_clean(&self) -> bool {
        self.close.is_some() && self.answered && self.end == End::Fin && self.extra == 0
    }

    /// Whether TCP ended sooner after the Close exchange than [`IMMEDIATE`].
    pub fn is_immediate(&self) -> bool {
        self.end != End::Never && self.after < IMMEDIATE
    }

    /// From the Close exchange to the end of TCP, in milliseconds.
    pub fn ms(&self) -> f64 {
        self.after.as_secs_f64() * 1000.0
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clean = if self.is_clean() { "clean" } else { "unclean" };
        write!(f, "{} {clean} {:?} after {:.1} ms", self.code(), self.end, self.ms())
    }
}

/// What the client does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Close with this code and reason, after this time.
    pub close: Option<(u16, String, Duration)>,
    /// Answer the server's Close frame.
    pub answer: bool,
    /// How far away the client is: its answer takes this long. On loopback it takes microseconds,
    /// and races with what a server does next.
    pub distance: Duration,
    /// Read at most this many bytes, then pause this long.
    pub slowly: Option<(usize, Duration)>,
    /// When to give up.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            close: None,
            answer: true,
            distance: Duration::ZERO,
            slowly: None,
            patience: Duration::from_secs(10),
        }
    }
}

impl Plan {
    /// The client closes at once with this code.
    pub fn close(code: u16) -> Self {
        Self { close: Some((code, String::new(), Duration::ZERO)), ..Self::default() }
    }
}

/// What a WebSocket runs over.
#[cfg(feature = "tls")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Tls,
}

/// A WebSocket that has been opened.
pub struct Client {
    pub stream: Box<dyn Stream>,
    pub frames: Frames,
}

impl Client {
    /// Opens a WebSocket, without TLS.
    ///
    /// # Errors
    /// If the connection or the opening handshake fails.
    pub async fn open(address: SocketAddr, path: &str) -> io::Result<Self> {
        Self::over(TcpStream::connect(address).await?, path).await
    }

    /// Opens a WebSocket over a connection, without TLS.
    ///
    /// # Errors
    /// If the opening handshake fails.
    pub async fn over(tcp: TcpStream, path: &str) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        Self::handshake(Box::new(tcp), "localhost", path).await
    }

    /// Opens a WebSocket over TLS, with whatever certificate.
    ///
    /// # Errors
    /// If the connection, TLS or the opening handshake fails.
    #[cfg(feature = "tls")]
    pub async fn open_tls(address: SocketAddr, path: &str) -> io::Result<Self> {
        Self::open_at(address, Transport::Tls, "localhost", path).await
    }

    /// Opens a WebSocket with one of many hosts at an address.
    ///
    /// # Errors
    /// If the connection, TLS or the opening handshake fails.
    #[cfg(feature = "tls")]
    pub async fn open_at(
        address: SocketAddr,
        transport: Transport,
        host: &str,
        path: &str,
    ) -> io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match transport {
            Transport::Tcp => Box::new(tcp),
            Transport::Tls => {
                let name = ServerName::try_from(host.to_owned()).expect("a DNS name");
                Box::new(tls::connector().connect(name, tcp).await?)
            }
        };
        Self::handshake(stream, host, path).await
    }

    async fn handshake(mut stream: Box<dyn Stream>, host: &str, path: &str) -> io::Result<Self> {
        stream.write_all(wire::opening_handshake_at(host, path).as_bytes()).await?;
        let (head, rest) = wire::read_head(&mut stream).await?;
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(io::Error::other(format!("no upgrade: {head}")));
        }
        Ok(Self { stream, frames: Frames::new(&rest) })
    }

    /// Ends TCP with RST.
    pub fn reset(self) {
        let _ = SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Follows the plan until TCP ends or patience does.
    pub async fn run(mut self, plan: &Plan) -> Ending {
        let start = Instant::now();
        let deadline = tokio::time::Instant::from_std(start + plan.patience);
        let mut ending = Ending {
            close: None,
            answered: false,
            end: End::Never,
            after: Duration::ZERO,
            payload: 0,
            extra: 0,
            intact: true,
        };
        let mut last = start;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            last = self.take_frames(plan, &mut ending).await.unwrap_or(last);
            let closing = ending.answered || ending.close.is_some();
            let mut wake = deadline;
            if let (Some((code, reason, after)), false) = (&plan.close, closing) {
                if start.elapsed() >= *after {
                    ending.answered = self.send(&wire::close(*code, reason, true)).await;
                    last = Instant::now();
                    continue;
                }
                wake = wake.min((start + *after).into());
            }
            let room = plan.slowly.map_or(buffer.len(), |(len, _)| len.min(buffer.len()));
            let Some(room) = buffer.get_mut(..room) else { break };
            match timeout_at(wake, self.stream.read(room)).await {
                Err(_) if tokio::time::Instant::now() >= deadline => break,
                Err(_) => {}
                Ok(Ok(0)) => {
                    ending.end = End::Fin;
                    break;
                }
                Ok(Ok(n)) => {
                    self.frames.extend(&room[..n]);
                    if let Some((_, pause)) = plan.slowly {
                        tokio::time::sleep(pause).await;
                    }
                }
                // rustls reports a FIN without close_notify so; RFC 6455 asks for no more.
                Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    ending.end = End::Fin;
                    break;
                }
                Ok(Err(_)) => {
                    ending.end = End::Rst;
                    break;
                }
            }
        }
        if ending.close.is_some() {
            ending.extra = self.frames.left_over();
        } else {
            ending.payload += self.frames.left_over();
        }
        ending.after = last.elapsed();
        ending
    }

    /// Takes what has come; tells when the last of it was worth noting.
    async fn take_frames(&mut self, plan: &Plan, ending: &mut Ending) -> Option<Instant> {
        let mut last = None;
        while ending.close.is_none() {
            let Some(frame) = self.frames.pop() else { break };
            last = Some(Instant::now());
            if frame.is_close() {
                let (code, reason) = wire::read_close(&frame.payload);
                if plan.answer && !ending.answered {
                    if !plan.distance.is_zero() {
                        tokio::time::sleep(plan.distance).await;
                    }
                    ending.answered = self.send(&wire::close(code, "", true)).await;
                    last = Some(Instant::now());
                }
                ending.close = Some((code, reason));
            } else if let OpCode::Data(Data::Binary) = frame.opcode {
                let expected = crate::server::large_bytes(ending.payload, frame.payload.len());
                ending.intact &= frame.payload == expected;
                ending.payload += frame.payload.len();
            }
        }
        last
    }

    /// Whether all of it could be written.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        // A peer that reads no more is waited for, but not without end.
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        matches!(tokio::time::timeout(Duration::from_secs(5), write).await, Ok(Ok(())))
    }
}
