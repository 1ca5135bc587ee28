//! The core closes through a proxy, wherever its configuration comes from.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::closing::{plan, CLIENT_CODE, IMMEDIATE, SERVER_CODE};
use crate::server::{path, Behaviour};
use crate::{Client, Ending, Plan, Transport};

/// An entry of a proxy.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub address: SocketAddr,
    pub transport: Transport,
    pub host: &'static str,
}

impl Entry {
    /// One close: the server's with 4321, or the client's with 4000.
    ///
    /// # Panics
    /// Where no WebSocket can be opened.
    pub async fn close(self, behaviour: Behaviour, by_server: bool) -> Ending {
        let path = path(behaviour, by_server, SERVER_CODE);
        let client = Client::open_at(self.address, self.transport, self.host, &path).await;
        let client = client.unwrap_or_else(|e| panic!("{self:?}, {behaviour:?}: {e}"));
        let (distance, patience) = (Duration::from_millis(1), Duration::from_secs(6));
        client.run(&Plan { distance, patience, ..plan(by_server) }).await
    }

    /// Every behaviour of a server, whoever begins: the code, immediate, and clean where there is a Close frame.
    ///
    /// # Panics
    /// Where one is not so.
    pub async fn core_closes(self) {
        use Behaviour::*;
        for (behaviour, by_server, code, clean) in [
            (Waits, true, SERVER_CODE, true),
            (FinWithoutWaiting, true, SERVER_CODE, true),
            (ClosesUnread, true, SERVER_CODE, true),
            (Resets, true, SERVER_CODE, true),
            (ByteByByte, true, SERVER_CODE, true),
            (FinWithoutClose, true, 1006, false),
            (DiesInFrame, true, 1006, false),
            (Waits, false, CLIENT_CODE, true),
            (FinWithoutWaiting, false, CLIENT_CODE, true),
            (ClosesUnread, false, CLIENT_CODE, true),
            (Resets, false, CLIENT_CODE, true),
            (FinWithoutClose, false, CLIENT_CODE, true),
            (DiesInFrame, false, 1006, false),
        ] {
            for _ in 0..4 {
                let ending = self.close(behaviour, by_server).await;
                let what = format!("{self:?}, {behaviour:?}, by server: {by_server}: {ending:?}");
                assert_eq!((ending.code(), ending.is_clean()), (code, clean), "{what}");
                assert!(ending.is_immediate(), "{what}");
            }
        }
    }

    /// Ten clean closes, of server and client, at the same time; how long the fastest and the slowest took, in
    /// milliseconds.
    ///
    /// # Panics
    /// Where one is not clean.
    pub async fn clean_closes(self) -> (f64, f64) {
        let mut range = (f64::MAX, 0.0_f64);
        let mut closes = JoinSet::new();
        for by_server in [true, false] {
            for _ in 0..5 {
                closes.spawn(self.close(Behaviour::Waits, by_server));
            }
        }
        for ending in closes.join_all().await {
            assert!(ending.is_clean(), "{self:?}: {ending:?}");
            range = (range.0.min(ending.ms()), range.1.max(ending.ms()));
        }
        range
    }

    /// Clean closes, each immediate.
    ///
    /// # Panics
    /// Where one is not so.
    pub async fn immediate(self) -> (f64, f64) {
        let range = self.clean_closes().await;
        assert!(range.1 < IMMEDIATE.as_millis() as f64, "{self:?}: {range:?}");
        range
    }

    /// Clean closes, each delayed by a second.
    ///
    /// # Panics
    /// Where one is not so.
    pub async fn delayed(self) -> (f64, f64) {
        let range = self.clean_closes().await;
        assert!(range.0 > 800.0, "{self:?}: {range:?}");
        range
    }
}
