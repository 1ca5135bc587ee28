//! Opens a WebSocket, closes it or waits to be closed, and tells how that went: the code, who
//! closed, FIN or RST, and how long after the Close exchange.
//!
//!     ws-close-probe wss://host/path
//!
//! Exit code 0 when every close was clean and prompt, 1 when one was not, 2 when there was nothing
//! to judge: no connection, a refused handshake, a bad certificate.

mod close;
mod tls;
mod verdict;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Uri};

use close::{Report, Target};

/// Tells how a WebSocket closes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address, ws:// or wss://
    url: Uri,
    /// Wait for the server's own close instead of closing
    #[arg(long)]
    server_close: bool,
    /// A header of the opening handshake, "Name: value"; may be repeated
    #[arg(long, value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// A subprotocol to ask for; may be repeated
    #[arg(long)]
    subprotocol: Vec<String>,
    /// How many times, one after the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Take any certificate
    #[arg(long)]
    insecure: bool,
    /// One JSON object a line instead of words
    #[arg(long)]
    json: bool,
    /// Seconds to wait for the connection, for a Close frame, and for the end of TCP
    #[arg(long, default_value_t = 15.0, value_parser = seconds)]
    timeout: f64,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected \"Name: value\"")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is no header name"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is no header value"))?;
    Ok((name, value))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds < 86_400.0 => Ok(seconds),
        _ => Err("expected seconds, more than 0 and less than a day".into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let target = match Target::new(&arguments.url, arguments.insecure) {
        Ok(target) => target
            .with_headers(arguments.header)
            .with_subprotocols(&arguments.subprotocol)
            .patient(Duration::from_secs_f64(arguments.timeout)),
        Err(reason) => return refuse(&reason),
    };
    let mut reports: Vec<Report> = Vec::new();
    for n in 1..=arguments.count {
        let report = match target.close(arguments.server_close).await {
            Ok(report) => report,
            Err(reason) => return refuse(&reason),
        };
        if arguments.json {
            println!("{}", report.to_json());
        } else if arguments.count == 1 {
            println!("{report}");
        } else {
            println!("{n} of {}: {}", arguments.count, report.verdict());
        }
        reports.push(report);
    }
    let clean = reports.iter().filter(|report| report.verdict().is_clean()).count();
    if arguments.count > 1 && !arguments.json {
        let mut ms: Vec<_> = reports.iter().filter_map(Report::ms).collect();
        ms.sort_by(f64::total_cmp);
        if let Some(median) = ms.get(ms.len() / 2) {
            println!("{clean} of {} clean; median {median:.1} ms from the Close exchange to the end of TCP", reports.len());
        } else {
            println!("{clean} of {} clean", reports.len());
        }
    }
    if clean == reports.len() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("probe: {reason}");
    ExitCode::from(2)
}
