//! Plugin configuration: JSON in, a checked [`Config`] out, or an error that names the key.
//!
//! Strict on purpose: an unknown key, a wrong type or a value out of range is refused, so that a
//! typing error shows when the configuration is applied and not when a pod dies.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use self::value::{close, code, duration, limit, object, optional, present, read, required, Value};
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
    /// How long the side that owes an answer to a Close frame may be silent; `None`: no limit.
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
        let limit = |limit: Option<Duration>| limit.map_or("never".into(), |l| format!("{l:?}"));
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
        let silent = |time: Option<Duration>| {
            time.map_or(String::new(), |time| format!(", endSilentAfter {time:?}"))
        };
        if let Some(MaxAge { after, jitter, claim, close, end_silent_after }) = &self.max_age {
            write!(f, ", maxAge")?;
            if let Some(after) = after {
                write!(f, " after {after:?}, jitter {jitter},")?;
            }
            let claim = if *claim { " claim exp," } else { "" };
            write!(f, "{claim} {}{}", close.status(), silent(*end_silent_after))?;
        }
        if let Some(Drain { within, close, end_silent_after }) = &self.drain {
            let silent = silent(*end_silent_after);
            write!(f, ", drain within {within:?}, {}{silent}", close.status())?;
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
        let text: Value = serde_json::from_slice(json).map_err(|e| Error(e.to_string()))?;
        let keys: Keys = object(None, &text)?;
        let Some(attach) = &keys.attach else {
            return Err(Error("`attach` is missing: \"http\" or \"network\"".into()));
        };
        match read::<String>("attach", attach)?.as_str() {
            "http" => Self::http(keys),
            "network" => Self::network(&keys),
            other => Err(Error::value("attach", other, "\"http\" or \"network\"")),
        }
    }

    fn network(keys: &Keys) -> Result<Self, Error> {
        let misplaced = [
            ("enforce", &keys.enforce),
            ("closeHandshakeTimeout", &keys.close_handshake_timeout),
            ("tcpCloseTimeout", &keys.tcp_close_timeout),
            ("answerClientClose", &keys.answer_client_close),
            ("abnormalClose", &keys.abnormal_close),
            ("missingCloseIsFailure", &keys.missing_close_is_failure),
            ("maxAge", &keys.max_age),
            ("drain", &keys.drain),
        ];
        match misplaced.iter().find(|(_, value)| value.is_some()) {
            Some((key, _)) => Err(Error(format!(
                "`{key}` is misplaced: the network filter takes only `attach`, all else belongs to \"attach\": \"http\""
            ))),
            None => Ok(Self::Network),
        }
    }

    fn http(keys: Keys) -> Result<Self, Error> {
        let default = HttpConfig::default();
        Ok(Self::Http(Box::new(HttpConfig {
            enforce: optional("enforce", keys.enforce, read)?.unwrap_or(default.enforce),
            close_handshake_timeout: optional(
                "closeHandshakeTimeout",
                keys.close_handshake_timeout,
                limit,
            )?
            .unwrap_or(default.close_handshake_timeout),
            tcp_close_timeout: optional("tcpCloseTimeout", keys.tcp_close_timeout, limit)?
                .unwrap_or(default.tcp_close_timeout),
            answer_client_close: optional("answerClientClose", keys.answer_client_close, read)?
                .unwrap_or(default.answer_client_close),
            abnormal_close: optional("abnormalClose", keys.abnormal_close, abnormal_close)?,
            missing_close_is_failure: optional(
                "missingCloseIsFailure",
                keys.missing_close_is_failure,
                read,
            )?
            .unwrap_or(default.missing_close_is_failure),
            max_age: optional("maxAge", keys.max_age, max_age)?,
            drain: optional("drain", keys.drain, drain)?,
        })))
    }
}

/// What is wrong with a configuration, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    fn value(key: &str, value: impl fmt::Debug, allowed: &str) -> Self {
        Self(format!("`{key}` is {value:?}: allowed is {allowed}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// The keys as they stand. Their values are kept as text, so that each is read where its full name
/// is known and an error can give it; serde refuses unknown and repeated keys by itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Keys {
    #[serde(default, deserialize_with = "present")]
    attach: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    enforce: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    close_handshake_timeout: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    tcp_close_timeout: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    answer_client_close: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    abnormal_close: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    missing_close_is_failure: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    max_age: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    drain: Option<Value>,
}

/// The keys of every object that describes a Close frame to send, and when.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseKeys {
    #[serde(default, deserialize_with = "present")]
    code: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    reason: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MaxAgeKeys {
    #[serde(default, deserialize_with = "present")]
    after: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    jitter: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    claim: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    end_silent_after: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    code: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    reason: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DrainKeys {
    #[serde(default, deserialize_with = "present")]
    within: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    end_silent_after: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    code: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    reason: Option<Value>,
}

fn abnormal_close(key: &str, value: &Value) -> Result<Close, Error> {
    let keys: CloseKeys = object(Some(key), value)?;
    let code = required(&format!("{key}.code"), keys.code, code)?;
    close(key, code, keys.reason)
}

fn max_age(key: &str, value: &Value) -> Result<MaxAge, Error> {
    let keys: MaxAgeKeys = object(Some(key), value)?;
    let after = optional(&format!("{key}.after"), keys.after, |key, value| {
        duration(key, value, MIN_DURATION, MAX_AGE, "0.001s to 366 days")
    })?;
    let claim =
        optional(&format!("{key}.claim"), keys.claim, |key, value| {
            match read::<String>(key, value)?.as_str() {
                "exp" => Ok(()),
                other => Err(Error::value(key, other, "\"exp\"")),
            }
        })?;
    if after.is_none() && claim.is_none() {
        return Err(Error(format!("`{key}` needs `{key}.after` or `{key}.claim`, or both")));
    }
    let jitter = optional(&format!("{key}.jitter"), keys.jitter, |key, value| {
        let jitter: f64 = read(key, value)?;
        if (0.0..=1.0).contains(&jitter) {
            Ok(jitter)
        } else {
            Err(Error::value(key, jitter, "0 to 1"))
        }
    })?;
    Ok(MaxAge {
        after,
        jitter: jitter.unwrap_or(0.1),
        claim: claim.is_some(),
        close: going_away(key, keys.code, keys.reason)?,
        end_silent_after: end_silent_after(key, keys.end_silent_after)?,
    })
}

fn drain(key: &str, value: &Value) -> Result<Drain, Error> {
    let keys: DrainKeys = object(Some(key), value)?;
    let within = optional(&format!("{key}.within"), keys.within, |key, value| {
        duration(key, value, Duration::ZERO, MAX_LIMIT, "0s to 24h")
    })?;
    Ok(Drain {
        within: within.unwrap_or(Duration::from_secs(30)),
        close: going_away(key, keys.code, keys.reason)?,
        end_silent_after: end_silent_after(key, keys.end_silent_after)?,
    })
}

fn end_silent_after(parent: &str, value: Option<Value>) -> Result<Option<Duration>, Error> {
    optional(&format!("{parent}.endSilentAfter"), value, |key, value| {
        duration(key, value, Duration::ZERO, MAX_LIMIT, "0s to 24h")
    })
}

/// The Close frame of `code` and `reason`; 1001 if there is no code.
fn going_away(key: &str, value: Option<Value>, reason: Option<Value>) -> Result<Close, Error> {
    let code = optional(&format!("{key}.code"), value, code)?.unwrap_or(CloseCode::GOING_AWAY);
    close(key, code, reason)
}

mod value;

#[cfg(test)]
mod tests;
