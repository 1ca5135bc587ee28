//! Packets: a clean close is FIN on every leg, never RST, with no byte behind the Close frames; near, far
//! and over a link that loses some.
#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use testbed::closing::open;
use testbed::link::{Link, Segment};
use testbed::server::{path, Behaviour};
use testbed::wire::Frames;
use testbed::{Ending, Mode, Plan, Server, Setup};

/// A link, or a line that says why there is none.
fn link(delay: Duration, loss: u8) -> Option<Link> {
    Link::start(delay, loss)
        .inspect_err(|e| {
            println!("no TUN device ({e}): packets are looked at only as root with /dev/net/tun");
        })
        .ok()
}

/// What was sent one way over one connection.
#[derive(Default)]
struct Way {
    begin: Option<u32>,
    bytes: BTreeMap<u32, u8>,
    fin: bool,
    rst: usize,
}

impl Way {
    fn take(&mut self, segment: &Segment) {
        self.fin |= segment.fin;
        self.rst += usize::from(segment.rst);
        if segment.syn {
            self.begin = Some(segment.sequence.wrapping_add(1));
        }
        let Some(begin) = self.begin else { return };
        let at = segment.sequence.wrapping_sub(begin);
        // One before the beginning: a keep-alive or a window probe.
        if at < 1 << 31 {
            self.bytes.extend((at..).zip(segment.payload.iter().copied()));
        }
    }

    /// The frames behind the HTTP head; none may be behind a Close frame, nor anything else.
    fn check(&self, leg: &str) {
        assert!(self.fin && self.rst == 0, "{leg}: FIN {}, {} RST", self.fin, self.rst);
        let bytes: Vec<u8> = self.bytes.values().copied().collect();
        assert_eq!(self.bytes.keys().last().map(|&last| last as usize + 1), Some(bytes.len()));
        let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an HTTP head") + 4;
        let mut frames = Frames::new(&bytes[head..]);
        let mut last = None;
        while let Some(frame) = frames.pop() {
            assert!(last != Some(true), "{leg}: behind the Close frame {frame:?}");
            last = Some(frame.is_close());
        }
        assert_eq!((last, frames.left_over()), (Some(true), 0), "{leg}");
    }
}

/// By the client's port and the server's, to the server and back.
fn connections(segments: &[Segment], servers: &[SocketAddr]) -> BTreeMap<(u16, u16), [Way; 2]> {
    let servers: HashSet<_> = servers.iter().map(SocketAddr::port).collect();
    let mut connections = BTreeMap::<_, [Way; 2]>::new();
    for segment in segments {
        let (key, way) = if servers.contains(&segment.to) {
            ((segment.from, segment.to), 0)
        } else {
            ((segment.to, segment.from), 1)
        };
        connections.entry(key).or_default()[way].take(segment);
    }
    connections
}

/// Ten at once of each clean close, and what passed over the link.
async fn closes(link: &Link, mode: Mode, scenarios: &[(Behaviour, bool)]) -> (Vec<Ending>, Passed) {
    const EACH: usize = 10;
    let server = Server::start_on(link.near, link.far).await;
    let setup = Setup { bind: link.near, reach: link.far, ..Setup::new(mode).hops(2) };
    let envoy = setup.start(server.address).await;
    let mut clients = Vec::new();
    for &(behaviour, by_server) in scenarios {
        for _ in 0..EACH {
            let address = envoy.address();
            clients.push(tokio::spawn(async move {
                let path = format!("{}&after=50", path(behaviour, by_server, 4321));
                let client = open(address, &path).await;
                let pause = Duration::from_millis(50);
                let close = (!by_server).then(|| (4000, String::new(), pause));
                client.run(&Plan { close, ..Plan::default() }).await
            }));
        }
    }
    let mut endings = Vec::new();
    for client in clients {
        endings.push(client.await.expect("no panic"));
    }
    // The last FIN is answered.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let servers = [envoy.entry(2), envoy.entry(1), server.address];
    (endings, Passed { connections: connections(&link.take_segments(), &servers), servers })
}

struct Passed {
    connections: BTreeMap<(u16, u16), [Way; 2]>,
    servers: [SocketAddr; 3],
}

impl Passed {
    fn resets(&self) -> usize {
        self.connections.values().flatten().map(|way| way.rst).sum()
    }

    fn check(&self, count: usize) {
        for (leg, server) in ["outer", "middle", "inner"].into_iter().zip(self.servers) {
            let of_leg: Vec<_> =
                self.connections.iter().filter(|(key, _)| key.1 == server.port()).collect();
            assert_eq!(of_leg.len(), count, "{leg}");
            for (_, [there, back]) in of_leg {
                there.check(&format!("{leg} leg, to the server"));
                back.check(&format!("{leg} leg, to the client"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_closes() {
    let scenarios =
        [(Behaviour::Waits, true), (Behaviour::Waits, false), (Behaviour::ByteByByte, true)];
    for (ms, loss) in [(0.2, 0), (5.0, 0), (100.0, 0), (5.0, 1)] {
        let Some(link) = link(Duration::from_secs_f64(ms / 1000.0), loss) else { return };
        let (endings, passed) = closes(&link, Mode::Filter, &scenarios).await;
        let latest = endings.iter().map(Ending::ms).fold(0.0, f64::max);
        println!("{ms} ms each way, {loss} % lost: FIN at most {latest:.0} ms after the exchange");
        for ending in &endings {
            assert!(ending.is_clean(), "{ms} ms, {loss} % lost: {ending:?}");
        }
        // The answer and the server's FIN pass three legs each; what is lost is sent again.
        let again = if loss > 0 { 1500.0 } else { 0.0 };
        assert!(latest < 6.0 * ms + 700.0 + again, "{ms} ms, {loss} % lost: {latest} ms");
        passed.check(endings.len());
    }
}

/// So that the test above can fail: without the filter a server that does not wait costs an RST.
#[tokio::test(flavor = "multi_thread")]
async fn resets_are_seen() {
    let Some(link) = link(Duration::from_millis(5), 0) else { return };
    let (_, passed) = closes(&link, Mode::Default, &[(Behaviour::FinWithoutWaiting, true)]).await;
    assert!(passed.resets() > 0);
}
