//! Plugin configuration: JSON in, a checked [`Config`] out, or an error that names the key.
//!
//! Strict on purpose: an unknown key, a wrong type or a value out of range is refused, so that a
//! typing error shows when the configuration is applied and not when a pod dies.

use std::fmt;
use std::time::Duration;

use self::value::{boolean, close, duration, fraction, limit, text, Decimal, Object, Value};
use crate::frame::{Close, CloseCode, MAX_CONTROL_PAYLOAD_LEN};

/// Longest reason of a Close frame in bytes: a control frame's payload less the status code.
const MAX_REASON_LEN: usize = MAX_CONTROL_PAYLOAD_LEN - 2;
/// Shortest time that can be waited for: the resolution of Envoy's plugin timer.
const MIN_DURATION: Duration = Duration::from_millis(1);
/// Longest time limit of a closing handshake.
const MAX_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Longest `maxAge.after`.
const MAX_AGE: Duration = Duration::from_secs(366 * 24 * 3600);

/// A checked configuration: which filter this attachment is, and how it behaves.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// `"attach": "http"`, the filter that follows the frames.
    Http(Box<HttpConfig>),
    /// `"attach": "network"`, the filter that closes the connection. It has no other key.
    Network,
}

/// Configuration of the HTTP filter.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// False: track, count and log, change nothing.
    pub enforce: bool,
    /// How long the side that has to answer a Close frame may be silent; `None`: no limit.
    pub close_handshake_timeout: Option<Duration>,
    /// How long the server may keep TCP open after both Close frames; `None`: no limit.
    pub tcp_close_timeout: Option<Duration>,
    /// If the server closes TCP and never answered the client's Close frame, send the client the answer.
    pub answer_client_close: bool,
    /// The Close frame for clients of a server that closes TCP with no Close frame at all.
    pub abnormal_close: Option<Close>,
    /// Whether a server has failed that closes TCP between two frames with no Close frame.
    pub missing_close_is_failure: bool,
    /// Close a WebSocket that is older than this.
    pub max_age: Option<MaxAge>,
    /// Close every WebSocket.
    pub drain: Option<Drain>,
}

/// `maxAge`: when, and with which Close frame, an old WebSocket is closed.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxAge {
    /// Age at which it is closed, at least; `None`: only the token's.
    pub after: Option<Duration>,
    /// By which fraction of `after`, 0 to 1, ages are spread beyond it.
    pub jitter: f64,
    /// Close it too when its token expires: the claim `exp` of the verified token.
    pub claim: bool,
    /// The Close frame.
    pub close: Close,
    /// End it without a Close frame if none could be sent for this long; `None`: it stays open.
    pub end_silent_after: Option<Duration>,
}

/// `drain`: how, and with which Close frame, every open WebSocket is closed.
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// The closes are spread evenly over this time.
    pub within: Duration,
    /// The Close frame.
    pub close: Close,
    /// End it without a Close frame if none could be sent for this long; `None`: it stays open.
    pub end_silent_after: Option<Duration>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            enforce: true,
            close_handshake_timeout: Some(Duration::from_secs(10)),
            tcp_close_timeout: Some(Duration::from_secs(1)),
            answer_client_close: true,
            abnormal_close: None,
            missing_close_is_failure: true,
            max_age: None,
            drain: None,
        }
    }
}

impl fmt::Display for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Duration| {
            format!("{}s", Decimal(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
        };
        let limit = |limit: Option<Duration>| limit.map_or("never".into(), time);
        write!(
            f,
            "enforce {}, closeHandshakeTimeout {}, tcpCloseTimeout {}, answerClientClose {}",
            self.enforce,
            limit(self.close_handshake_timeout),
            limit(self.tcp_close_timeout),
            self.answer_client_close,
        )?;
        if let Some(close) = &self.abnormal_close {
            write!(f, ", abnormalClose {}", close.status())?;
        }
        if !self.missing_close_is_failure {
            write!(f, ", missingCloseIsFailure false")?;
        }
        let silent = |after: Option<Duration>| {
            after.map_or(String::new(), |after| format!(", endSilentAfter {}", time(after)))
        };
        if let Some(MaxAge { after, jitter, claim, close, end_silent_after }) = &self.max_age {
            write!(f, ", maxAge")?;
            if let Some(after) = after {
                let jitter = Value::Number(*jitter);
                write!(f, " after {}, jitter {jitter},", time(*after))?;
            }
            let claim = if *claim { " claim exp," } else { "" };
            write!(f, "{claim} {}{}", close.status(), silent(*end_silent_after))?;
        }
        if let Some(Drain { within, close, end_silent_after }) = &self.drain {
            let silent = silent(*end_silent_after);
            write!(f, ", drain within {}, {}{silent}", time(*within), close.status())?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the plugin configuration, one JSON object.
    ///
    /// # Errors
    /// A sentence that names the key or the value, and what is allowed.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.trim_ascii().is_empty() {
            return Err(Error(
                "`attach` is missing: give {\"attach\": \"http\"} or {\"attach\": \"network\"}"
                    .into(),
            ));
        }
        let json: Value = serde_json::from_slice(json).map_err(|e| Error(e.to_string()))?;
        let mut keys = Object::of(None, json, &KEYS)?;
        let Some(attach) = keys.optional("attach", text)? else {
            return Err(Error("`attach` is missing: \"http\" or \"network\"".into()));
        };
        match attach.as_str() {
            "http" => Self::http(&mut keys),
            "network" => Self::network(&keys),
            _ => Err(Error::value("attach", &Value::Text(attach), "\"http\" or \"network\"")),
        }
    }

    fn network(keys: &Object) -> Result<Self, Error> {
        match keys.left() {
            Some(key) => Err(Error(format!(
                "`{key}` is misplaced: the network filter takes only `attach`, all else belongs to \"attach\": \"http\""
            ))),
            None => Ok(Self::Network),
        }
    }

    fn http(keys: &mut Object) -> Result<Self, Error> {
        let default = HttpConfig::default();
        Ok(Self::Http(Box::new(HttpConfig {
            enforce: keys.optional("enforce", boolean)?.unwrap_or(default.enforce),
            close_handshake_timeout: keys
                .optional("closeHandshakeTimeout", limit)?
                .unwrap_or(default.close_handshake_timeout),
            tcp_close_timeout: keys
                .optional("tcpCloseTimeout", limit)?
                .unwrap_or(default.tcp_close_timeout),
            answer_client_close: keys
                .optional("answerClientClose", boolean)?
                .unwrap_or(default.answer_client_close),
            abnormal_close: keys.optional("abnormalClose", |_, value| abnormal_close(value))?,
            missing_close_is_failure: keys
                .optional("missingCloseIsFailure", boolean)?
                .unwrap_or(default.missing_close_is_failure),
            max_age: keys.optional("maxAge", |_, value| max_age(value))?,
            drain: keys.optional("drain", |_, value| drain(value))?,
        })))
    }
}

/// What an attachment's configuration may have.
const KEYS: [&str; 9] = [
    "attach",
    "enforce",
    "closeHandshakeTimeout",
    "tcpCloseTimeout",
    "answerClientClose",
    "abnormalClose",
    "missingCloseIsFailure",
    "maxAge",
    "drain",
];

/// What is wrong with a configuration, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    fn value(key: &str, value: &Value, allowed: &str) -> Self {
        Self(format!("`{key}` is {value}: allowed is {allowed}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

fn abnormal_close(value: Value) -> Result<Close, Error> {
    let mut keys = Object::of(Some("abnormalClose"), value, &["code", "reason"])?;
    close(&mut keys, None)
}

fn max_age(value: Value) -> Result<MaxAge, Error> {
    let allowed = ["after", "jitter", "claim", "endSilentAfter", "code", "reason"];
    let mut keys = Object::of(Some("maxAge"), value, &allowed)?;
    let after = keys.optional("after", |key, value| {
        duration(key, value, MIN_DURATION, MAX_AGE, "0.001s to 366 days")
    })?;
    let claim = keys.optional("claim", |key, value| match text(key, value)?.as_str() {
        "exp" => Ok(()),
        other => Err(Error::value(key, &Value::Text(other.to_owned()), "\"exp\"")),
    })?;
    if after.is_none() && claim.is_none() {
        return Err(Error("`maxAge` needs `maxAge.after` or `maxAge.claim`, or both".into()));
    }
    Ok(MaxAge {
        after,
        jitter: keys.optional("jitter", fraction)?.unwrap_or(0.1),
        claim: claim.is_some(),
        close: close(&mut keys, Some(CloseCode::GOING_AWAY))?,
        end_silent_after: end_silent_after(&mut keys)?,
    })
}

fn drain(value: Value) -> Result<Drain, Error> {
    let allowed = ["within", "endSilentAfter", "code", "reason"];
    let mut keys = Object::of(Some("drain"), value, &allowed)?;
    let within = keys.optional("within", |key, value| {
        duration(key, value, Duration::ZERO, MAX_LIMIT, "0s to 24h")
    })?;
    Ok(Drain {
        within: within.unwrap_or(Duration::from_secs(30)),
        close: close(&mut keys, Some(CloseCode::GOING_AWAY))?,
        end_silent_after: end_silent_after(&mut keys)?,
    })
}

fn end_silent_after(keys: &mut Object) -> Result<Option<Duration>, Error> {
    keys.optional("endSilentAfter", |key, value| {
        duration(key, value, Duration::ZERO, MAX_LIMIT, "0s to 24h")
    })
}

mod value;

#[cfg(test)]
mod tests;
