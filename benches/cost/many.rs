//! WebSockets by the thousand.

use std::net::SocketAddr;

use testbed::{wire, Client};
use tokio::task::JoinSet;

use crate::network::connect;

/// `wanted`, or as many WebSockets as one process may hold both ends of: Envoy does, and so do this
/// process's client and server.
pub fn possible(wanted: usize) -> usize {
    const FOR_THE_REST: u64 = 400;
    let (limit, _) = rlimit::Resource::NOFILE.get().expect("a process has limits");
    // What other items have opened may still be open.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let possible = (limit.saturating_sub(open + FOR_THE_REST) / 2) as usize;
    if possible < wanted {
        println!(
            "  {possible} WebSockets instead of {wanted}: a process may open {limit} files \
             here (ulimit -Hn)"
        );
    }
    wanted.min(possible)
}

/// Opens `count` WebSockets.
pub async fn open(address: SocketAddr, path: &'static str, count: usize) -> Vec<Client> {
    const AT_ONCE: usize = 64;
    let mut openers = JoinSet::new();
    for i in 0..AT_ONCE {
        let share = (count + i) / AT_ONCE;
        openers.spawn(async move {
            let mut clients = Vec::with_capacity(share);
            for _ in 0..share {
                let tcp = connect(i, address).await;
                clients.push(Client::over(tcp, path).await.expect("a WebSocket"));
            }
            clients
        });
    }
    openers.join_all().await.into_iter().flatten().collect()
}

/// Closes with a code, or waits for the server's close and answers it. Whether both Close frames
/// were seen, and FIN.
pub async fn close(mut client: Client, code: Option<u16>) -> bool {
    use tokio::io::AsyncWriteExt;
    if let Some(code) = code {
        if client.stream.write_all(&wire::close(code, "", true)).await.is_err() {
            return false;
        }
    }
    let mut closed = false;
    loop {
        match client.frames.next(&mut client.stream).await {
            Ok(Some(frame)) if frame.is_close() => {
                closed = true;
                let (answer, _) = wire::read_close(&frame.payload);
                let answer = wire::close(answer, "", true);
                if code.is_none() && client.stream.write_all(&answer).await.is_err() {
                    return false;
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return closed,
            Err(_) => return false,
        }
    }
}
