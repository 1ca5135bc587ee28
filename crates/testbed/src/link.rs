//! A slow and lossy link from this machine to itself, on which every packet is seen: a TUN device whose
//! packets come back with their addresses swapped. What is connected to its far address is accepted at
//! its near one. Addresses that are swapped leave the checksums as they are.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{mpsc, Arc, Mutex};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fastrand::Rng;
use tun_rs::{DeviceBuilder, SyncDevice};

/// A TCP segment, as it was sent.
#[derive(Clone, Debug)]
pub struct Segment {
    pub from: u16,
    pub to: u16,
    pub sequence: u32,
    pub syn: bool,
    pub fin: bool,
    pub rst: bool,
    pub payload: Vec<u8>,
}

/// A link. It stays until the process ends.
pub struct Link {
    pub near: Ipv4Addr,
    pub far: Ipv4Addr,
    seen: Arc<Mutex<Vec<Segment>>>,
}

impl Link {
    /// With a delay one way, and so many of a hundred packets lost.
    ///
    /// # Errors
    /// Where a TUN device cannot be made: without root, or in a container without /dev/net/tun.
    pub fn start(delay: Duration, loss: u8) -> Result<Self, String> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // The range for measurements (RFC 2544), a network for each link.
        let n = std::process::id() as usize * 8 + COUNT.fetch_add(1, Relaxed);
        let network = (n % 256) as u8;
        let (near, far) = (Ipv4Addr::new(198, 18, network, 1), Ipv4Addr::new(198, 18, network, 2));
        let device = DeviceBuilder::new().ipv4(near, 24, None).mtu(1500).build_sync();
        let device = Arc::new(device.map_err(|e| e.to_string())?);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (queue, packets) = mpsc::channel();
        std::thread::spawn({
            let (device, seen) = (Arc::clone(&device), Arc::clone(&seen));
            move || receive(&device, &seen, &queue, loss)
        });
        std::thread::spawn(move || {
            for (at, packet) in packets {
                std::thread::sleep((at + delay).saturating_duration_since(Instant::now()));
                let _ = device.send(&packet);
            }
        });
        Ok(Self { near, far, seen })
    }

    /// What has passed, lost or not, since the last call.
    pub fn take_segments(&self) -> Vec<Segment> {
        std::mem::take(&mut self.seen.lock().expect("no panic while locked"))
    }
}

type Queue = mpsc::Sender<(Instant, Vec<u8>)>;

fn receive(device: &SyncDevice, seen: &Mutex<Vec<Segment>>, queue: &Queue, loss: u8) {
    let mut rng = Rng::with_seed(u64::from(loss));
    let mut buffer = [0; 2048];
    while let Ok(len) = device.recv(&mut buffer) {
        let mut packet = buffer[..len].to_vec();
        let Some(segment) = parse(&packet) else { continue };
        seen.lock().expect("no panic while locked").push(segment);
        // The source and the destination address (RFC 791).
        let (source, destination) = packet[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        if rng.u8(..100) >= loss && queue.send((Instant::now(), packet)).is_err() {
            break;
        }
    }
}

fn parse(packet: &[u8]) -> Option<Segment> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport)
    else {
        return None;
    };
    Some(Segment {
        from: tcp.source_port(),
        to: tcp.destination_port(),
        sequence: tcp.sequence_number(),
        syn: tcp.syn(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        payload: tcp.payload().to_vec(),
    })
}
