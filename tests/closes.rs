use lab::server::{path, Behaviour};
use lab::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let server = Server::start().await;
    for mode in Mode::ALL {
        let envoy = Setup::new(mode).hops(2).start(server.address).await;
        for b in Behaviour::ALL {
            for by_server in [true, false] {
                let c = Client::open(envoy.address(), false, &path(b, by_server, 4321)).await.unwrap();
                let plan = if by_server { Plan::default() } else { Plan::close(4000) };
                let e = c.run(&Plan { patience: Duration::from_secs(4), ..plan }).await;
                println!("{:10} {:15} {:5} {e} {} {}", mode.name(), b.name(), by_server, e.payload, e.intact);
            }
        }
        if mode == Mode::Filter {
            println!("{}", envoy.admin("/stats?filter=wasmcustom"));
            println!("{}", envoy.log());
            for l in envoy.access_log(1) { println!("{l}"); }
        }
    }
}
