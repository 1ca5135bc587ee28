//! WebSockets as streams among others of one connection, over HTTP/2 or HTTP/3: the ways in which they
//! close, and the page that says what they see.

use std::fs;
use std::time::Duration;

use crate::fetch;
use crate::server::{path, Behaviour};

/// Longer than the limits that the filter is given here.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// A way to close.
pub struct Scenario {
    pub what: &'static str,
    pub path: String,
    /// The client closes, with 4000.
    pub closes: bool,
    /// The client answers a Close frame.
    pub answers: bool,
}

/// The ways that the page has a row for.
pub fn scenarios() -> Vec<Scenario> {
    use Behaviour::*;
    let server = |behaviour| format!("{}&after=300", path(behaviour, true, 4321));
    let client = |behaviour| path(behaviour, false, 0);
    [
        ("The server closes with 4321, is answered, ends TCP", server(Waits), false, true),
        ("… and resets TCP (RST)", server(Resets), false, true),
        ("… and never ends TCP", server(NeverCloses), false, true),
        ("… and ends TCP without waiting for the answer", server(FinWithoutWaiting), false, true),
        ("… and the client never answers", server(Waits), false, false),
        ("The client closes with 4000, the server answers, ends TCP", client(Waits), true, true),
        ("… the server answers, never ends TCP", client(NeverCloses), true, true),
        ("… the server ends TCP without an answer", client(FinWithoutWaiting), true, true),
        ("… the server never answers", client(Ignores), true, true),
        ("The server dies, no Close frame at all", server(FinWithoutClose), false, true),
        ("The server dies inside a frame", server(DiesInFrame), false, true),
    ]
    .map(|(what, path, closes, answers)| Scenario { what, path, closes, answers })
    .into()
}

/// Compares what was measured, a row for each of `whats` and a column for each mode, with a table of
/// docs/http2.md, or writes it there.
pub fn is_documented(table: &str, whats: &[&str], columns: &[Vec<String>]) {
    let mut measured = String::from(
        "| who does what | default | baseline | **filter** |\n| --- | --- | --- | --- |\n",
    );
    for (row, what) in whats.iter().enumerate() {
        let row: Vec<_> = columns.iter().map(|column| &column[row][..]).collect();
        measured += &format!("| {what} | {} |\n", row.join(" | "));
    }
    println!("{measured}");
    let (start, stop) = (format!("<!-- {table} -->\n"), format!("<!-- /{table} -->"));
    let file = fetch::root().join("docs/http2.md");
    if std::env::var_os("UPDATE_README").is_some() {
        fetch::write_between(&file, &start, &stop, &measured);
    } else {
        let text = fs::read_to_string(&file).expect("docs/http2.md is there");
        assert!(
            text.contains(&format!("{start}{measured}{stop}")),
            "docs/http2.md says otherwise: `make table` writes it anew"
        );
    }
}
