//! What came of one attempt, and of all of them.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{json, Value};

use crate::close::Report;
use crate::failure::Failure;

/// One attempt.
pub struct Outcome {
    result: Result<Report, Failure>,
    expected: Option<u16>,
}

impl Outcome {
    pub fn new(result: Result<Report, Failure>, expected: Option<u16>) -> Self {
        Self { result, expected }
    }

    pub fn report(&self) -> Option<&Report> {
        self.result.as_ref().ok()
    }

    pub fn failure(&self) -> Option<&Failure> {
        self.result.as_ref().err()
    }

    /// Another code than the expected one.
    fn has_other_code(&self) -> bool {
        let codes = self.report().map(Report::code).zip(self.expected);
        codes.is_some_and(|(code, expected)| code != expected)
    }

    pub fn is_clean(&self) -> bool {
        self.report().is_some_and(|report| report.verdict().is_clean())
    }

    /// Clean, and with the expected code.
    pub fn is_success(&self) -> bool {
        self.is_clean() && !self.has_other_code()
    }

    /// Several lines, for one close.
    pub fn text(&self) -> String {
        match &self.result {
            Ok(report) => match self.expected {
                Some(expected) if self.has_other_code() => {
                    format!("{report}\nexpected   {expected}: another code came")
                }
                Some(expected) => format!("{report}\nexpected   {expected}: it came"),
                None => report.to_string(),
            },
            Err(failure) => failure.to_string(),
        }
    }

    /// One line, for one of several.
    pub fn line(&self) -> String {
        match &self.result {
            Ok(report) => {
                let code = match report.code() {
                    1006 => String::new(),
                    code => format!("{code}, "),
                };
                let expected = match self.expected {
                    Some(expected) if self.has_other_code() => format!("expected {expected}, "),
                    _ => String::new(),
                };
                format!("{code}{expected}{}", report.verdict())
            }
            Err(failure) => format!("error: {failure}"),
        }
    }

    pub fn json(&self, now: SystemTime) -> Value {
        let mut value = match &self.result {
            Ok(report) => report.to_json(),
            Err(failure) => json!({
                "verdict": "error",
                "clean": false,
                "error": failure.cause,
                "advice": failure.advice,
            }),
        };
        value["time"] = time(now).into();
        if let Some(expected) = self.expected {
            value["expected"] = expected.into();
        }
        value
    }
}

/// RFC 3339, to the second.
pub fn time(now: SystemTime) -> String {
    humantime::format_rfc3339_seconds(now).to_string()
}

/// All attempts of a run. Constant in size: a watch may go on for months.
#[derive(Default)]
pub struct Summary {
    attempts: u64,
    errors: u64,
    clean: u64,
    other_codes: u64,
    /// The last ones, for their median.
    recent: Vec<Duration>,
}

/// Of how many the median is.
const RECENT: usize = 1000;

impl Summary {
    pub fn add(&mut self, outcome: &Outcome) {
        self.attempts += 1;
        self.errors += u64::from(outcome.failure().is_some());
        self.clean += u64::from(outcome.is_clean());
        self.other_codes += u64::from(outcome.has_other_code());
        if let Some(after) = outcome.report().and_then(Report::tcp_end) {
            if self.recent.len() == RECENT {
                self.recent.remove(0);
            }
            self.recent.push(after);
        }
    }

    pub fn text(&self) -> String {
        let mut text = format!("{} of {} clean", self.clean, self.attempts);
        let mut recent = self.recent.clone();
        recent.sort();
        if let Some(median) = recent.get(recent.len() / 2) {
            let ms = median.as_secs_f64() * 1000.0;
            text += &format!("; median {ms:.1} ms from the Close exchange to the end of TCP");
        }
        if self.other_codes > 0 {
            text += &format!("; {} with another code", self.other_codes);
        }
        match self.errors {
            0 => {}
            1 => text += "; 1 error",
            errors => text += &format!("; {errors} errors"),
        }
        text
    }

    /// As the help of the command line has it.
    pub fn exit_code(&self) -> ExitCode {
        let code = if self.clean + self.errors < self.attempts {
            1
        } else if self.other_codes > 0 {
            3
        } else if self.errors > 0 || self.attempts == 0 {
            2
        } else {
            0
        };
        ExitCode::from(code)
    }
}
