//! The command line, its man page and its completions for shells.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use clap_mangen::roff::{roman, Roff};
use clap_mangen::Man;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Uri};

/// Reports how an address closes its WebSockets
///
/// Opens a WebSocket, closes it or waits to be closed, and reports how that went: the code, who closed, FIN or
/// RST, and how long after the Close exchange.
#[derive(Parser)]
#[command(name = "ws-close-probe", version, after_help = AFTER)]
#[command(override_usage = "ws-close-probe [OPTIONS] <URL>")]
pub struct Arguments {
    /// Address, ws:// or wss://
    #[arg(required_unless_present = "generate")]
    pub url: Option<Uri>,
    /// Wait for the server's own close instead of closing
    #[arg(long)]
    pub server_close: bool,
    /// The code that the Close frame of the server must have: for a close by the client, its answer
    #[arg(long, value_name = "CODE", value_parser = code)]
    pub expect: Option<u16>,
    /// How many times, one after the other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// Every so many seconds, a line each, until --count or Ctrl-C; an error does not end it
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<f64>,
    /// A header of the opening handshake, "Name: value"; may be repeated
    #[arg(long, value_name = "HEADER", value_parser = header)]
    pub header: Vec<(HeaderName, HeaderValue)>,
    /// A subprotocol to ask for; may be repeated
    #[arg(long, value_name = "NAME")]
    pub subprotocol: Vec<String>,
    /// Seconds to wait for the connection, for a Close frame, and for the end of TCP
    #[arg(long, value_name = "SECONDS", default_value_t = 15.0, value_parser = seconds)]
    pub timeout: f64,
    /// Certificates of authorities to trust, in PEM, beside those of the machine
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate
    #[arg(long)]
    pub insecure: bool,
    /// One JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
    /// A file for the textfile collector of Prometheus' node exporter, written anew after each close
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
    /// Print the man page, or the completions for a shell
    #[arg(long, value_name = "WHAT", exclusive = true, hide_short_help = true)]
    pub generate: Option<Generated>,
}

const EXIT_CODES: [(u8, &str); 4] = [
    (0, "every close was clean, and had the code of --expect"),
    (1, "a close was not clean: delayed, reset, without a Close frame, or TCP still open"),
    (
        2,
        "nothing to judge: a wrong argument, no connection, a refused handshake, a bad certificate",
    ),
    (3, "every close was clean, and one had another code than --expect"),
];

const AFTER: &str = "\
Exit codes:
  0  every close was clean, and had the code of --expect
  1  a close was not clean: delayed, reset, without a Close frame, or TCP still open
  2  nothing to judge: a wrong argument, no connection, a refused handshake, a bad certificate
  3  every close was clean, and one had another code than --expect
With several closes 1 goes before 3, and 3 before 2.";

/// What is printed instead of a close.
#[derive(Clone, Copy, ValueEnum)]
pub enum Generated {
    Man,
    Bash,
    Fish,
    Zsh,
}

impl Generated {
    /// # Errors
    /// Those of standard output.
    pub fn print(self) -> io::Result<()> {
        let mut text = Vec::new();
        let shell = match self {
            Self::Man => {
                man(&mut text)?;
                return io::stdout().write_all(&text);
            }
            Self::Bash => Shell::Bash,
            Self::Fish => Shell::Fish,
            Self::Zsh => Shell::Zsh,
        };
        clap_complete::generate(shell, &mut Arguments::command(), "ws-close-probe", &mut text);
        io::stdout().write_all(&text)
    }
}

fn man(to: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(Arguments::command().after_help(None::<&str>));
    man.render(to)?;
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_CODES {
        roff.control("TP", []).text([roman(code.to_string())]).text([roman(meaning)]);
    }
    roff.control("PP", []);
    roff.text([roman("With several closes 1 goes before 3, and 3 before 2.")]);
    roff.control("SH", ["EXAMPLES"]);
    for (command, meaning) in [
        ("ws-close-probe wss://host/path", "Closes, and reports how that went."),
        (
            "ws-close-probe wss://host/path --server-close --expect 1001",
            "Waits for the server's close, which must have the code 1001.",
        ),
        (
            "ws-close-probe wss://host/path --watch 60 --textfile /var/lib/node_exporter/ws.prom",
            "Once a minute, for an alert.",
        ),
    ] {
        roff.control("TP", []).text([roman(command)]).text([roman(meaning)]);
    }
    roff.to_writer(to)
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

fn code(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(1006) => Err("1006 stands for no Close frame, which is never clean".into()),
        Ok(code @ 1000..=4999) => Ok(code),
        _ => Err("expected a code from 1000 to 4999, 1005 for a Close frame without a code".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    /// The same list in the help and in the man page.
    #[test]
    fn exit_codes() {
        for (code, meaning) in EXIT_CODES {
            assert!(AFTER.contains(&format!("\n  {code}  {meaning}\n")), "{code}");
        }
    }
}
