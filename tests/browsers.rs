use lab::browser::*;
use lab::*;
#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let server = Server::start().await;
    let mut b = Browser::start(Kind::Chromium);
    for (bytes, every) in [(100,5),(1000,1)] {
    for hops in [1,2] {
    for mode in [Mode::Baseline, Mode::Filter] {
        let envoy = Setup::new(mode).hops(hops).start(server.address).await;
        let url = format!("ws://{}/hasty?by=server&code=4321&after=60", envoy.address());
        let mut tally = std::collections::BTreeMap::new();
        for c in b.closes(&url, &Closing::Sending(bytes,every), 50) { *tally.entry((c.code, c.was_clean)).or_insert(0) += 1; }
        println!("{bytes}/{every} {hops} {mode:?} {tally:?}");
    }
    }}
    for mode in Mode::ALL {
        let envoy = Setup::new(mode).hops(1).start(server.address).await;
        let mut tally = std::collections::BTreeMap::new();
        for _ in 0..if mode==Mode::Default {3} else {300} { 
                let c = Client::open(envoy.address(), false, "/hasty?by=server&code=4321&after=3").await.unwrap();
                let e = c.run(&Plan { ..Plan::default() }).await;
                *tally.entry(format!("{:?} {}", e.end, e.code())).or_insert(0) += 1; }
        println!("raw {mode:?} {tally:?}");
        let url = format!("ws://{}/hasty?by=server&code=4321&after=5", envoy.address());
        let mut tally = std::collections::BTreeMap::new();
        for c in b.closes(&url, &Closing::ByServer, if mode==Mode::Default {3} else {300}) { *tally.entry((c.code, c.was_clean)).or_insert(0) += 1; }
        println!("chromium quiet {mode:?} {tally:?}");
    }
}
