//! An upstream whose closing behaviour the request chooses: `/waits?by=server&code=4321`.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::wire::{self, Frames};

/// What the `large` behaviour sends before its Close frame.
pub const LARGE_LEN: usize = 20_000_000;
/// How many of them are in one frame.
const LARGE_FRAME_LEN: usize = 50_000;

/// What the `data-after-close` behaviour says behind its Close frame.
pub const TALK: [&[u8]; 2] = [b"and another thing", b"goodbye"];

/// What a server says right before it closes, where the query has `announce=1`: a page cannot know
/// that moment otherwise.
pub const ANNOUNCEMENT: &[u8] = b"closing";

/// The headers of an HTTP/1.1 server's 101 that Envoy asks for.
pub const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
                           Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

/// A server that answers each request with a 101 that has `headers`, such as [`UPGRADE`], and then does what `life` says with
/// the connection and with what came behind the request. For what no [`Behaviour`] does.
///
/// # Panics
/// If there is no port.
pub async fn scripted<F, L, T>(headers: &'static str, life: F) -> SocketAddr
where
    F: Fn(TcpStream, Vec<u8>) -> L + Clone + Send + 'static,
    L: Future<Output = io::Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let life = life.clone();
            tokio::spawn(async move {
                tcp.set_nodelay(true)?;
                let (_, rest) = wire::read_head(&mut tcp).await?;
                let head = format!("HTTP/1.1 101 Switching Protocols\r\n{headers}\r\n");
                tcp.write_all(head.as_bytes()).await?;
                life(tcp, rest).await
            });
        }
    });
    address
}

/// How a server closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As RFC 6455 has it: both Close frames, then FIN.
    Waits,
    /// Does not wait. Its own close: Close frame and FIN together, while it still takes in what the
    /// client sends. A client's: FIN, no answer.
    FinWithoutWaiting,
    /// As `FinWithoutWaiting`, but `close(2)`: RST where the client has sent something that was not read.
    ClosesUnread,
    /// As `Waits`, but RST instead of FIN; no answer to a client's Close.
    Resets,
    /// Both Close frames, and TCP stays open.
    NeverCloses,
    /// FIN in the middle of a data frame, no Close frame.
    DiesInFrame,
    /// As `Waits`, its Close frame in single bytes.
    ByteByByte,
    /// As `Waits`, with 20 MB in front of its Close frame.
    Large,
    /// FIN without any Close frame.
    FinWithoutClose,
    /// As `Waits`, but with a message behind its Close frame, which RFC 6455 forbids.
    DataAfterClose,
    /// Never answers a Close frame and keeps TCP open.
    Ignores,
    /// Sends the bytes of the query's `hex` as they stand, then does as `Waits` would.
    Raw,
    /// Sends every byte back, frame or not, and ends TCP after the query's `after` milliseconds.
    Mirror,
    /// Sends messages of the query's `size`, together `bytes`, as fast as it can; closes as `Waits`.
    Flood,
    /// Takes in what the client sends, without looking at it; says so after the query's `bytes`.
    Sink,
    /// The same, and resets TCP after the query's `after` milliseconds, whatever is going on.
    Breaks,
    /// Sends every message back. Closes as `Waits`.
    Echo,
    /// Says its messages ([`talk`]) one `every` so many milliseconds, 0 for never, in so many
    /// `fragments`, padded to `size` bytes, or as Ping frames with `ping=1`; keeps those of the client.
    /// Answers the client's Close, but with `answer=no` ends TCP instead; closes by itself after
    /// `until` milliseconds where that is given.
    Talks,
}

impl Behaviour {
    /// Those whose close is worth a row of a table.
    pub const COMMON: [Self; 9] = [
        Self::Waits,
        Self::FinWithoutWaiting,
        Self::ClosesUnread,
        Self::Resets,
        Self::NeverCloses,
        Self::DiesInFrame,
        Self::ByteByByte,
        Self::Large,
        Self::FinWithoutClose,
    ];

    /// Those that one test or another asks for.
    pub const ODD: [Self; 9] = [
        Self::DataAfterClose,
        Self::Ignores,
        Self::Raw,
        Self::Mirror,
        Self::Flood,
        Self::Sink,
        Self::Breaks,
        Self::Echo,
        Self::Talks,
    ];

    /// Its name in a request's path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waits => "waits",
            Self::FinWithoutWaiting => "fin-without-waiting",
            Self::ClosesUnread => "closes-unread",
            Self::Resets => "resets",
            Self::NeverCloses => "never-closes",
            Self::DiesInFrame => "dies-in-frame",
            Self::ByteByByte => "byte-by-byte",
            Self::Large => "large",
            Self::FinWithoutClose => "fin-without-close",
            Self::DataAfterClose => "data-after-close",
            Self::Ignores => "ignores",
            Self::Raw => "raw",
            Self::Mirror => "mirror",
            Self::Flood => "flood",
            Self::Sink => "sink",
            Self::Breaks => "breaks",
            Self::Echo => "echo",
            Self::Talks => "talks",
        }
    }

    /// Each of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::COMMON.into_iter().chain(Self::ODD)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::all().find(|b| b.name() == name)
    }
}

/// The request path for a behaviour.
pub fn path(behaviour: Behaviour, by_server: bool, code: u16) -> String {
    let by = if by_server { "server" } else { "client" };
    format!("/{}?by={by}&code={code}", behaviour.name())
}

/// A running server. Ends when dropped.
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// What the server has seen of its clients.
#[derive(Default)]
struct Seen {
    open: AtomicUsize,
    closes: Mutex<Vec<(u16, String)>>,
    messages: Mutex<Vec<Vec<u8>>>,
    close_all: Notify,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST).await
    }

    /// Bound to one address, and reached at another.
    pub async fn start_on(bind: Ipv4Addr, reach: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((bind, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let address = (reach, port).into();
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(accept(listener, Arc::clone(&seen)));
        Self { address, seen, task }
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.seen.open.load(Relaxed)
    }

    /// What clients have said to the `talks` behaviour since the last call.
    pub fn take_messages(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.seen.messages.lock().expect("no panic while locked"))
    }

    /// Closes every WebSocket whose request said `told`, in the same moment.
    pub fn close_all(&self) {
        self.seen.close_all.notify_waiters();
    }

    /// The clients' Close frames since the last call.
    pub fn take_closes(&self) -> Vec<(u16, String)> {
        std::mem::take(&mut self.seen.closes.lock().expect("no panic while locked"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, seen: Arc<Seen>) {
    while let Ok((stream, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            seen.open.fetch_add(1, Relaxed);
            // A peer that goes away is nothing to report.
            let _ = serve(stream, &seen).await;
            seen.open.fetch_sub(1, Relaxed);
        });
    }
}

struct Request {
    behaviour: Behaviour,
    by_server: bool,
    code: u16,
    /// What the `raw` behaviour sends.
    raw: Vec<u8>,
    /// Length of the `flood` behaviour's messages, and of all of them.
    size: usize,
    bytes: usize,
    /// The `flood` behaviour writes each message by itself, as servers do.
    singly: bool,
    /// How long the server lets the WebSocket live before it closes it.
    after: Duration,
    /// Whether that time begins with the client's first message.
    waits_for_word: bool,
    /// Whether it says [`ANNOUNCEMENT`] right before it closes.
    announces: bool,
    /// How the `talks` behaviour talks.
    every: Duration,
    fragments: usize,
    ping: bool,
    answers: bool,
    until: Option<Duration>,
    /// The server waits for [`Server::close_all`] before it closes.
    told: bool,
    /// The reason of the server's Close frame says when it was sent: see [`micros`].
    stamp: bool,
}

fn parse(head: &str) -> Option<Request> {
    let target = head.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let value =
        |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let number = |key: &str| value(key)?.parse::<usize>().ok();
    let ms = |key: &str| Some(Duration::from_millis(number(key)? as u64));
    Some(Request {
        behaviour: Behaviour::parse(path.strip_prefix('/')?)?,
        by_server: value("by") == Some("server"),
        code: value("code").and_then(|c| c.parse().ok()).unwrap_or(1000),
        size: number("size").unwrap_or(1),
        bytes: number("bytes").unwrap_or(0),
        singly: value("singly").is_some(),
        told: value("told").is_some(),
        stamp: value("stamp").is_some(),
        raw: value("hex").map(from_hex).unwrap_or_default(),
        after: ms("after").unwrap_or_default(),
        waits_for_word: value("on") == Some("word"),
        announces: value("announce").is_some(),
        every: ms("every").unwrap_or_default(),
        fragments: number("fragments").unwrap_or(1),
        ping: value("ping").is_some(),
        answers: value("answer") != Some("no"),
        until: ms("until"),
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| Some(c.to_digit(16)? as u8)).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The request path for a server that sends these bytes and then waits for the client's close.
pub fn raw_path(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("/raw?by=server&hex={hex}")
}

async fn serve(mut stream: TcpStream, seen: &Seen) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let (head, rest) = wire::read_head(&mut stream).await?;
        let header = |wanted: &str| {
            head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
            })
        };
        let (Some(key), Some(request)) = (header("sec-websocket-key"), parse(&head)) else {
            plain(&mut stream, &head).await?;
            continue;
        };
        // The first that was asked for will do.
        let subprotocol = header("sec-websocket-protocol")
            .and_then(|asked| {
                Some(format!("sec-websocket-protocol: {}\r\n", asked.split(',').next()?))
            })
            .unwrap_or_default();
        return upgrade(stream, seen, &key, &subprotocol, &request, &rest).await;
    }
}

/// Answers a plain request: with so many bytes as `/bytes/1000` asks for, or with `plain`.
async fn plain(stream: &mut TcpStream, head: &str) -> io::Result<()> {
    let target = head.split(' ').nth(1).and_then(|target| target.strip_prefix("/bytes/"));
    let Some(mut left) = target.and_then(|bytes| bytes.parse::<usize>().ok()) else {
        return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain").await;
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {left}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let batch = vec![b'p'; 1 << 20];
    while left > 0 {
        let len = left.min(batch.len());
        stream.write_all(&batch[..len]).await?;
        left -= len;
    }
    Ok(())
}

/// Takes in all there is, or so many bytes and then says so.
async fn sink(mut stream: TcpStream, bytes: Option<usize>) -> io::Result<()> {
    let limit = bytes.unwrap_or(usize::MAX);
    let mut buffer = vec![0; 1 << 18];
    let mut seen = 0;
    while seen < limit {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => seen += n,
        }
    }
    stream.write_all(&wire::message(b"all", false)).await?;
    // Until the client goes.
    io::copy(&mut stream, &mut io::sink()).await.map(drop)
}

async fn upgrade(
    mut stream: TcpStream,
    seen: &Seen,
    key: &str,
    subprotocol: &str,
    request: &Request,
    rest: &[u8],
) -> io::Result<()> {
    let accept = derive_accept_key(key.as_bytes());
    let reply = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-accept: {accept}\r\n{subprotocol}\r\n"
    );
    stream.write_all(reply.as_bytes()).await?;
    if request.behaviour == Behaviour::Sink {
        return sink(stream, (request.bytes > 0).then(|| request.bytes - rest.len())).await;
    }
    if request.behaviour == Behaviour::Breaks {
        let mut sink = io::sink();
        let _ = tokio::time::timeout(request.after, io::copy(&mut stream, &mut sink)).await;
        return stream.set_zero_linger();
    }
    if request.behaviour == Behaviour::Mirror {
        let (mut read, mut write) = stream.split();
        write.write_all(rest).await?;
        let mirror = io::copy(&mut read, &mut write);
        return tokio::time::timeout(request.after, mirror).await.map_or(Ok(()), |r| r.map(drop));
    }
    let mut peer = Peer { stream, frames: Frames::new(rest), seen };
    if request.waits_for_word {
        peer.frames.next(&mut peer.stream).await?;
    }
    tokio::time::sleep(request.after).await;
    if request.told {
        seen.close_all.notified().await;
    }
    if request.announces {
        let opcode = OpCode::Data(Data::Text);
        peer.stream.write_all(&wire::frame(opcode, true, ANNOUNCEMENT, false)).await?;
    }
    if request.by_server {
        peer.close(request).await
    } else {
        peer.be_closed(request).await
    }
}

struct Peer<'a> {
    stream: TcpStream,
    frames: Frames,
    seen: &'a Seen,
}

impl Peer<'_> {
    /// The server closes.
    async fn close(&mut self, request: &Request) -> io::Result<()> {
        let reason = if request.stamp { micros().to_string() } else { "bye".to_owned() };
        let close = wire::close(request.code, &reason, false);
        match request.behaviour {
            Behaviour::Waits | Behaviour::Echo => {
                self.stream.write_all(&close).await?;
                self.until_close().await?;
            }
            Behaviour::FinWithoutWaiting => {
                self.stream.write_all(&close).await?;
                self.stream.shutdown().await?;
                self.stay_open().await?;
            }
            Behaviour::ClosesUnread => self.stream.write_all(&close).await?,
            Behaviour::Ignores | Behaviour::Mirror | Behaviour::Sink | Behaviour::Breaks => {
                self.stay_open().await?
            }
            Behaviour::Flood => {
                self.flood(request).await?;
                self.stream.write_all(&close).await?;
                self.until_close().await?;
            }
            Behaviour::Raw => {
                self.stream.write_all(&request.raw).await?;
                self.until_close().await?;
            }
            Behaviour::DataAfterClose => {
                self.stream.write_all(&close).await?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                for word in TALK {
                    self.stream.write_all(&wire::message(word, false)).await?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                self.until_close().await?;
            }
            Behaviour::Resets => {
                self.stream.write_all(&close).await?;
                self.until_close().await?;
                self.stream.set_zero_linger()?;
            }
            Behaviour::NeverCloses => {
                self.stream.write_all(&close).await?;
                self.until_close().await?;
                self.stay_open().await?;
            }
            Behaviour::DiesInFrame => self.half_a_frame().await?,
            Behaviour::ByteByByte => {
                self.single_bytes(&close).await?;
                self.until_close().await?;
            }
            Behaviour::Large => {
                self.much_data().await?;
                self.stream.write_all(&close).await?;
                self.until_close().await?;
            }
            Behaviour::FinWithoutClose => {}
            Behaviour::Talks => self.talk(request).await?,
        }
        Ok(())
    }

    /// The client closes.
    async fn be_closed(&mut self, request: &Request) -> io::Result<()> {
        let Some((code, _)) = self.until_close().await? else {
            return Ok(());
        };
        let answer = wire::close(code, "", false);
        match request.behaviour {
            Behaviour::Waits | Behaviour::DataAfterClose | Behaviour::Raw | Behaviour::Echo => {
                self.stream.write_all(&answer).await
            }
            Behaviour::FinWithoutWaiting | Behaviour::ClosesUnread | Behaviour::FinWithoutClose => {
                Ok(())
            }
            Behaviour::Resets => self.stream.set_zero_linger(),
            Behaviour::Ignores
            | Behaviour::Mirror
            | Behaviour::Flood
            | Behaviour::Sink
            | Behaviour::Breaks
            | Behaviour::Talks => self.stay_open().await,
            Behaviour::NeverCloses => {
                self.stream.write_all(&answer).await?;
                self.stay_open().await
            }
            Behaviour::DiesInFrame => self.half_a_frame().await,
            Behaviour::ByteByByte => self.single_bytes(&answer).await,
            Behaviour::Large => {
                self.much_data().await?;
                self.stream.write_all(&answer).await
            }
        }
    }

    /// Reads up to the client's Close frame, sending messages back; `None` where TCP ends first.
    async fn until_close(&mut self) -> io::Result<Option<(u16, String)>> {
        while let Some(frame) = self.frames.next(&mut self.stream).await? {
            if frame.is_close() {
                let close = wire::read_close(&frame.payload);
                self.seen.closes.lock().expect("no panic while locked").push(close.clone());
                return Ok(Some(close));
            }
            if let OpCode::Data(Data::Binary | Data::Text) = frame.opcode {
                self.stream
                    .write_all(&wire::frame(frame.opcode, true, &frame.payload, false))
                    .await?;
            }
        }
        Ok(None)
    }

    async fn stay_open(&mut self) -> io::Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).await.map(drop)
    }

    async fn half_a_frame(&mut self) -> io::Result<()> {
        let frame = wire::message(&[b'x'; 100], false);
        self.stream.write_all(&frame[..50]).await
    }

    async fn single_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            self.stream.write_all(&[*byte]).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn flood(&mut self, request: &Request) -> io::Result<()> {
        let batch = if request.singly {
            wire::message(&vec![b'm'; request.size], false)
        } else {
            messages(request.size, false)
        };
        let mut left = request.bytes;
        while left > 0 {
            let len = left.min(batch.len());
            self.stream.write_all(&batch[..len]).await?;
            left -= len;
        }
        Ok(())
    }

    async fn talk(&mut self, request: &Request) -> io::Result<()> {
        let Self { stream, frames, seen } = self;
        let (mut read, mut write) = stream.split();
        let mut said = 0;
        let mut next = tokio::time::Instant::now() + request.every;
        let end = request.until.map(|until| tokio::time::Instant::now() + until);
        loop {
            tokio::select! {
                frame = frames.next(&mut read) => match frame? {
                    None => return Ok(()),
                    Some(frame) if frame.is_close() => {
                        let (code, reason) = wire::read_close(&frame.payload);
                        seen.closes.lock().expect("no panic while locked").push((code, reason));
                        if request.answers {
                            write.write_all(&wire::close(code, "", false)).await?;
                        }
                        return Ok(());
                    }
                    Some(frame) => {
                        seen.messages.lock().expect("no panic while locked").push(frame.payload);
                    }
                },
                () = sleep_until(next), if !request.every.is_zero() => {
                    write.write_all(&talk(said, request)).await?;
                    said += 1;
                    next += request.every;
                }
                () = sleep_until(end.unwrap_or(next)), if end.is_some() => break,
            }
        }
        write.write_all(&wire::close(request.code, "bye", false)).await?;
        self.until_close().await.map(drop)
    }

    /// Binary messages whose bytes say where they stand. What the client sends meanwhile is read.
    async fn much_data(&mut self) -> io::Result<()> {
        let (mut read, mut write) = self.stream.split();
        let send = async {
            for start in (0..LARGE_LEN).step_by(LARGE_FRAME_LEN) {
                write
                    .write_all(&wire::message(&large_bytes(start, LARGE_FRAME_LEN), false))
                    .await?;
            }
            io::Result::Ok(())
        };
        let mut buffer = Vec::new();
        tokio::select! {
            sent = send => sent?,
            // Kept for `until_close`; the client has little to say here.
            read = async { loop { if read.read_buf(&mut buffer).await? == 0 { break io::Result::Ok(()) } } } => read?,
        }
        let mut kept = std::mem::take(&mut self.frames);
        kept.extend(&buffer);
        self.frames = kept;
        Ok(())
    }
}

/// Microseconds on a clock that server and clients of this process share.
pub fn micros() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// Messages of one size, a megabyte or so of them.
pub fn messages(size: usize, masked: bool) -> Vec<u8> {
    let message = wire::message(&vec![b'm'; size], masked);
    message.repeat((1 << 20).max(message.len()) / message.len())
}

/// The `n`th frame of the `talks` behaviour. Its messages are numbers, written out, and padded.
fn talk(n: usize, request: &Request) -> Vec<u8> {
    let number = (n / request.fragments).to_string();
    if request.ping {
        return wire::frame(OpCode::Control(Control::Ping), true, number.as_bytes(), false);
    }
    let (fragment, last) = (n % request.fragments, request.fragments - 1);
    let opcode = if fragment == 0 { Data::Text } else { Data::Continue };
    // The number stands in the first fragment, the padding in the last.
    let mut payload = if fragment == 0 { number.into_bytes() } else { Vec::new() };
    if fragment == last {
        payload.resize(request.size.max(payload.len()), b' ');
    }
    wire::frame(OpCode::Data(opcode), fragment == last, &payload, false)
}

/// The bytes of the `large` behaviour from `start` on.
pub fn large_bytes(start: usize, len: usize) -> Vec<u8> {
    (start..start + len).map(|i| (i % 251) as u8).collect()
}
