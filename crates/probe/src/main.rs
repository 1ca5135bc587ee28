//! Opens a WebSocket, closes it or waits to be closed, and reports how that went: the code, who
//! closed, FIN or RST, and how long after the Close exchange.
//!
//!     ws-close-probe wss://host/path
//!
//! `--help` has the exit codes.

mod arguments;
mod close;
mod failure;
mod outcome;
mod textfile;
mod tls;
mod verdict;

use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use tokio::time::{interval, MissedTickBehavior};

use arguments::Arguments;
use close::Target;
use outcome::{Outcome, Summary};
use textfile::Textfile;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(what) = arguments.generate {
        return what.print().map_or_else(|e| refuse(&e.to_string()), |()| ExitCode::SUCCESS);
    }
    let target = match Target::new(&arguments) {
        Ok(target) => target,
        Err(failure) => return refuse(&failure.to_string()),
    };
    let closed_by = if arguments.server_close { "server" } else { "client" };
    let textfile = arguments.textfile.clone();
    let mut textfile = textfile.map(|path| Textfile::new(path, &target.name(), closed_by));
    let mut summary = Summary::default();
    // Where there is nothing to wait for, it ticks at once.
    let mut ticks = interval(Duration::from_secs_f64(arguments.watch.unwrap_or(1e-3)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let count = arguments.count.or(arguments.watch.is_none().then_some(1));
    let mut stop = pin!(stopped());
    let mut n = 0;
    while count.is_none_or(|count| n < count) {
        let attempt = async {
            ticks.tick().await;
            target.close(arguments.server_close).await
        };
        // The signal ends a watch in order; a single close just ends.
        let result = tokio::select! {
            result = attempt => result,
            () = &mut stop, if arguments.watch.is_some() => break,
        };
        n += 1;
        let outcome = Outcome::new(result, arguments.expect);
        let now = SystemTime::now();
        summary.add(&outcome);
        print(&arguments, &outcome, n, now);
        if let Some(textfile) = &mut textfile {
            if let Err(e) = textfile.add(&outcome, now) {
                let path = arguments.textfile.unwrap_or_default();
                return refuse(&format!(
                    "cannot write {}: {e}. Give --textfile a file in a folder that exists and is writable.",
                    path.display()
                ));
            }
        }
        if outcome.failure().is_some() && arguments.watch.is_none() {
            return summary.exit_code();
        }
    }
    if count != Some(1) && !arguments.json {
        println!("{}", summary.text());
    }
    summary.exit_code()
}

fn print(arguments: &Arguments, outcome: &Outcome, n: u32, now: SystemTime) {
    let watched = arguments.watch.is_some();
    if arguments.json {
        println!("{}", outcome.json(now));
    } else if watched {
        println!("{} {}", outcome::time(now), outcome.line());
    } else if outcome.report().is_some() {
        match arguments.count {
            None | Some(1) => println!("{}", outcome.text()),
            Some(count) => println!("{n} of {count}: {}", outcome.line()),
        }
    }
    // In a watch it is one line among others.
    if let (Some(failure), false) = (outcome.failure(), watched) {
        refuse(&failure.to_string());
    }
}

/// Ends at Ctrl-C, or when Kubernetes stops the container: the first process in one has no default for SIGTERM.
async fn stopped() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{signal, SignalKind};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted => {}
            }
            return;
        }
    }
    let _: io::Result<()> = interrupted.await;
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("ws-close-probe: {reason}");
    ExitCode::from(2)
}
