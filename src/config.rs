//! Plugin configuration: JSON in, a checked [`Config`] out, or an error that names the key.
//!
//! Strict on purpose: an unknown key, a wrong type or a value out of range is refused, so that a
//! typing error shows when the configuration is applied and not when a pod dies.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::frame::{Close, CloseCode, MAX_CONTROL_PAYLOAD_LEN};

/// Longest reason of a Close frame in bytes: a control frame's payload less the status code.
const MAX_REASON_LEN: usize = MAX_CONTROL_PAYLOAD_LEN - 2;
/// Shortest time that can be waited for: the resolution of Envoy's plugin timer.
const MIN_DURATION: Duration = Duration::from_millis(1);
/// Longest time limit of a closing handshake.
const MAX_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Longest `maxAge.after`.
const MAX_AGE: Duration = Duration::from_secs(366 * 24 * 3600);

/// A checked configuration: which half this attachment is, and how it behaves.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// `"attach": "http"`, the half that follows the frames.
    Http(Box<HttpConfig>),
    /// `"attach": "network"`, the half that closes the connection. It has no other key.
    Network,
}

/// Configuration of the HTTP half.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// False: track, count and log, change nothing.
    pub enforce: bool,
    /// How long a Close frame may stay unanswered; `None`: for ever.
    pub close_handshake_timeout: Option<Duration>,
    /// How long the server may keep TCP open after both Close frames; `None`: for ever.
    pub tcp_close_timeout: Option<Duration>,
    /// Send the client the answer it was owed when the server drops TCP without answering.
    pub answer_client_close: bool,
    /// The Close frame for clients of a server that drops TCP with no Close frame at all.
    pub abnormal_close: Option<Close>,
    /// Let a WebSocket go when it is older than this.
    pub max_age: Option<MaxAge>,
    /// Let every WebSocket go.
    pub drain: Option<Drain>,
}

/// `maxAge`: when, and with which Close frame, an old WebSocket is let go.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxAge {
    /// Age at which it is let go.
    pub after: Duration,
    /// By which fraction of `after`, 0 to 1, ages are spread.
    pub jitter: f64,
    /// The Close frame.
    pub close: Close,
}

/// `drain`: how, and with which Close frame, every open WebSocket is let go.
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// The closes are spread evenly over this time.
    pub within: Duration,
    /// The Close frame.
    pub close: Close,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            enforce: true,
            close_handshake_timeout: Some(Duration::from_secs(10)),
            tcp_close_timeout: Some(Duration::from_secs(1)),
            answer_client_close: true,
            abnormal_close: None,
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
        if let Some(MaxAge { after, jitter, close }) = &self.max_age {
            write!(f, ", maxAge {after:?}, jitter {jitter}, {}", close.status())?;
        }
        if let Some(Drain { within, close }) = &self.drain {
            write!(f, ", drain within {within:?}, {}", close.status())?;
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
            ("maxAge", &keys.max_age),
            ("drain", &keys.drain),
        ];
        match misplaced.iter().find(|(_, value)| value.is_some()) {
            Some((key, _)) => Err(Error(format!(
                "`{key}` is misplaced: the network half takes only `attach`, all else belongs to \"attach\": \"http\""
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

type Value = Box<RawValue>;

/// A key that is there, whatever its value: serde alone would take `null` for an absent one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

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
#[serde(deny_unknown_fields)]
struct MaxAgeKeys {
    #[serde(default, deserialize_with = "present")]
    after: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    jitter: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    code: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    reason: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainKeys {
    #[serde(default, deserialize_with = "present")]
    within: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    code: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    reason: Option<Value>,
}

fn optional<T>(
    key: &str,
    value: Option<Value>,
    read: impl FnOnce(&str, &Value) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    value.map(|value| read(key, &value)).transpose()
}

fn required<T>(
    key: &str,
    value: Option<Value>,
    read: impl FnOnce(&str, &Value) -> Result<T, Error>,
) -> Result<T, Error> {
    optional(key, value, read)?.ok_or_else(|| Error(format!("`{key}` is missing")))
}

/// Reads a JSON object. serde would also take an array, value by value.
fn object<T: DeserializeOwned>(key: Option<&str>, value: &Value) -> Result<T, Error> {
    let name = key.map_or("the configuration".into(), |key| format!("`{key}`"));
    if !value.get().starts_with('{') {
        return Err(Error(format!("{name} is {}: expected an object", value.get())));
    }
    serde_json::from_str(value.get()).map_err(|e| match key {
        None => Error(e.to_string()),
        Some(_) => Error(format!("{name}: {}", without_position(&e))),
    })
}

/// What serde says, less the position, which counts from the start of the value and not of the
/// configuration.
fn without_position(error: &serde_json::Error) -> String {
    error.to_string().split(" at line ").next().unwrap_or_default().to_owned()
}

fn read<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T, Error> {
    serde_json::from_str(value.get())
        .map_err(|e| Error(format!("`{key}` is {}: {}", value.get(), without_position(&e))))
}

fn abnormal_close(key: &str, value: &Value) -> Result<Close, Error> {
    let keys: CloseKeys = object(Some(key), value)?;
    let code = required(&format!("{key}.code"), keys.code, code)?;
    close(key, code, keys.reason)
}

fn max_age(key: &str, value: &Value) -> Result<MaxAge, Error> {
    let keys: MaxAgeKeys = object(Some(key), value)?;
    let after = required(&format!("{key}.after"), keys.after, |key, value| {
        duration(key, value, MIN_DURATION, MAX_AGE, "0.001s to 366 days")
    })?;
    let jitter = optional(&format!("{key}.jitter"), keys.jitter, |key, value| {
        let jitter: f64 = read(key, value)?;
        if (0.0..=1.0).contains(&jitter) {
            Ok(jitter)
        } else {
            Err(Error::value(key, jitter, "0 to 1"))
        }
    })?;
    let code = optional(&format!("{key}.code"), keys.code, code)?.unwrap_or(CloseCode::GOING_AWAY);
    Ok(MaxAge { after, jitter: jitter.unwrap_or(0.1), close: close(key, code, keys.reason)? })
}

fn drain(key: &str, value: &Value) -> Result<Drain, Error> {
    let keys: DrainKeys = object(Some(key), value)?;
    let within = optional(&format!("{key}.within"), keys.within, |key, value| {
        duration(key, value, Duration::ZERO, MAX_LIMIT, "0s to 24h")
    })?;
    let code = optional(&format!("{key}.code"), keys.code, code)?.unwrap_or(CloseCode::GOING_AWAY);
    Ok(Drain {
        within: within.unwrap_or(Duration::from_secs(30)),
        close: close(key, code, keys.reason)?,
    })
}

fn code(key: &str, value: &Value) -> Result<CloseCode, Error> {
    let code: u16 = read(key, value)?;
    CloseCode::new(code)
        .ok_or_else(|| Error::value(key, code, "1000 to 1003, 1007 to 1014, 3000 to 4999"))
}

fn close(parent: &str, code: CloseCode, reason: Option<Value>) -> Result<Close, Error> {
    let key = format!("{parent}.reason");
    let reason: String = optional(&key, reason, read)?.unwrap_or_default();
    Close::new(code, &reason).ok_or_else(|| {
        Error(format!(
            "`{key}` is {} bytes long: allowed is at most {MAX_REASON_LEN} bytes of UTF-8",
            reason.len()
        ))
    })
}

/// A time limit; `"0s"` turns it off.
fn limit(key: &str, value: &Value) -> Result<Option<Duration>, Error> {
    let limit = duration(key, value, Duration::ZERO, MAX_LIMIT, "0s (never), or 0.001s to 24h")?;
    Ok((!limit.is_zero()).then_some(limit))
}

fn duration(
    key: &str,
    value: &Value,
    min: Duration,
    max: Duration,
    allowed: &str,
) -> Result<Duration, Error> {
    let text: String = read(key, value)?;
    let Some(duration) = parse_duration(&text) else {
        return Err(Error::value(
            key,
            text,
            "a duration such as \"10s\", \"0.5s\", \"500ms\", \"30m\", \"1h\"",
        ));
    };
    let too_short_to_wait = !duration.is_zero() && duration < MIN_DURATION;
    if too_short_to_wait || duration < min || duration > max {
        return Err(Error::value(key, text, allowed));
    }
    Ok(duration)
}

/// A protobuf JSON duration (`"10s"`, `"0.5s"`, at most nine digits behind the point) or, as in
/// Istio's own fields, the same with one of the units `h`, `m` or `ms`. Never negative.
fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 4] =
        [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];
    let (number, nanos_per_unit) =
        UNITS.iter().find_map(|(unit, nanos)| Some((text.strip_suffix(unit)?, *nanos)))?;
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(nanos_per_unit)?;
    // At most 10^9 × 3.6 × 10^12: fits 128 bits, and the quotient 64.
    let fraction = match fraction.len() {
        0 => 0,
        len => fraction.parse::<u128>().ok()? * u128::from(nanos_per_unit) / 10u128.pow(len as u32),
    };
    Some(Duration::from_nanos(whole.checked_add(u64::try_from(fraction).ok()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(json: &str) -> HttpConfig {
        match Config::parse(json.as_bytes()) {
            Ok(Config::Http(config)) => *config,
            other => panic!("{json}: {other:?}"),
        }
    }

    fn error(json: &str) -> String {
        match Config::parse(json.as_bytes()) {
            Err(error) => error.to_string(),
            Ok(config) => panic!("{json} was taken: {config:?}"),
        }
    }

    #[test]
    fn defaults() {
        assert_eq!(http(r#"{"attach": "http"}"#), HttpConfig::default());
        assert_eq!(Config::parse(br#"{"attach":"network"}"#), Ok(Config::Network));
    }

    #[test]
    fn every_key() {
        let config = http(
            r#"{"attach": "http", "enforce": false, "closeHandshakeTimeout": "0.5s",
                "tcpCloseTimeout": "0s", "answerClientClose": false,
                "abnormalClose": {"code": 1012, "reason": "weiß"},
                "maxAge": {"after": "1h", "jitter": 0, "code": 4000, "reason": "old"},
                "drain": {"within": "90s"}}"#,
        );
        let close = |code, reason| Close::new(CloseCode::new(code).unwrap(), reason).unwrap();
        assert_eq!(
            config,
            HttpConfig {
                enforce: false,
                close_handshake_timeout: Some(Duration::from_millis(500)),
                tcp_close_timeout: None,
                answer_client_close: false,
                abnormal_close: Some(close(1012, "weiß")),
                max_age: Some(MaxAge {
                    after: Duration::from_secs(3600),
                    jitter: 0.0,
                    close: close(4000, "old"),
                }),
                drain: Some(Drain { within: Duration::from_secs(90), close: close(1001, "") }),
            }
        );
    }

    #[test]
    fn a_configuration_in_words() {
        assert_eq!(
            HttpConfig::default().to_string(),
            "enforce true, closeHandshakeTimeout 10s, tcpCloseTimeout 1s, answerClientClose true"
        );
        let config = http(
            r#"{"attach": "http", "tcpCloseTimeout": "0s", "abnormalClose": {"code": 1011},
                "maxAge": {"after": "1h", "reason": "old"}, "drain": {"code": 1012}}"#,
        );
        assert_eq!(
            config.to_string(),
            "enforce true, closeHandshakeTimeout 10s, tcpCloseTimeout never, answerClientClose true, \
             abnormalClose code 1011, maxAge 3600s, jitter 0.1, code 1001 \"old\", \
             drain within 30s, code 1012"
        );
    }

    #[test]
    fn durations() {
        let nanos = |n| Some(Duration::from_nanos(n));
        for (text, expected) in [
            ("10s", nanos(10_000_000_000)),
            ("0.5s", nanos(500_000_000)),
            ("0s", nanos(0)),
            ("0.000000001s", nanos(1)),
            ("1.000000001s", nanos(1_000_000_001)),
            ("250ms", nanos(250_000_000)),
            ("1.5h", nanos(5_400_000_000_000)),
            ("30m", nanos(1_800_000_000_000)),
            ("0.0000000001s", None),
            ("-1s", None),
            ("+1s", None),
            ("1.s", None),
            (".5s", None),
            ("s", None),
            ("10", None),
            ("10 s", None),
            ("1e3s", None),
            ("1h30m", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
            ("", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    /// Each bad configuration, and what its error has to name.
    #[test]
    fn errors_name_the_key_and_what_is_allowed() {
        for (json, expected) in [
            ("", vec!["`attach` is missing"]),
            ("  \n", vec!["`attach` is missing"]),
            ("{}", vec!["`attach` is missing", "network"]),
            ("[]", vec!["the configuration is []", "expected an object"]),
            ("null", vec!["expected an object"]),
            ("{\"attach\": \"http\"", vec!["EOF"]),
            (r#"{"attach": "http"} x"#, vec!["trailing characters"]),
            (r#"{"attach": "tcp"}"#, vec!["`attach`", "tcp", "\"http\" or \"network\""]),
            (r#"{"attach": 1}"#, vec!["`attach` is 1", "expected a string"]),
            (r#"{"attach": "http", "attach": "network"}"#, vec!["duplicate field `attach`"]),
            (
                r#"{"attach": "http", "enforced": true}"#,
                vec!["unknown field `enforced`", "`enforce`"],
            ),
            (
                r#"{"attach": "http", "enforce": "true"}"#,
                vec!["`enforce` is \"true\"", "expected a boolean"],
            ),
            (
                r#"{"attach": "http", "closeHandshakeTimeout": 10}"#,
                vec!["`closeHandshakeTimeout` is 10", "expected a string"],
            ),
            (
                r#"{"attach": "http", "closeHandshakeTimeout": "10"}"#,
                vec!["`closeHandshakeTimeout` is \"10\"", "\"0.5s\""],
            ),
            (
                r#"{"attach": "http", "tcpCloseTimeout": "-1s"}"#,
                vec!["`tcpCloseTimeout` is \"-1s\""],
            ),
            (
                r#"{"attach": "http", "tcpCloseTimeout": "25h"}"#,
                vec!["`tcpCloseTimeout` is \"25h\"", "0.001s to 24h"],
            ),
            (
                r#"{"attach": "http", "tcpCloseTimeout": "0.0001s"}"#,
                vec!["`tcpCloseTimeout`", "0.001s to 24h"],
            ),
            (r#"{"attach": "http", "answerClientClose": 0}"#, vec!["`answerClientClose` is 0"]),
            (r#"{"attach": "http", "abnormalClose": 1011}"#, vec!["`abnormalClose` is 1011"]),
            (r#"{"attach": "http", "abnormalClose": {}}"#, vec!["`abnormalClose.code` is missing"]),
            (
                r#"{"attach": "http", "abnormalClose": {"code": 1006}}"#,
                vec!["`abnormalClose.code` is 1006", "1000 to 1003"],
            ),
            (
                r#"{"attach": "http", "abnormalClose": {"code": 70000}}"#,
                vec!["`abnormalClose.code` is 70000"],
            ),
            (
                r#"{"attach": "http", "abnormalClose": {"code": 1011, "text": ""}}"#,
                vec!["`abnormalClose`", "unknown field `text`"],
            ),
            (r#"{"attach": "http", "maxAge": {"jitter": 0.1}}"#, vec!["`maxAge.after` is missing"]),
            (r#"{"attach": "http", "maxAge": {"after": "0s"}}"#, vec!["`maxAge.after` is \"0s\""]),
            (
                r#"{"attach": "http", "maxAge": {"after": "1h", "jitter": 1.5}}"#,
                vec!["`maxAge.jitter` is 1.5", "0 to 1"],
            ),
            (r#"{"attach": "http", "drain": {"code": 999}}"#, vec!["`drain.code` is 999"]),
            (r#"{"attach": "http", "drain": ["1s"]}"#, vec!["`drain` is [\"1s\"]", "an object"]),
            (
                r#"{"attach": "http", "drain": {"after": "1s"}}"#,
                vec!["`drain`", "unknown field `after`"],
            ),
            (r#"{"attach": "network", "enforce": true}"#, vec!["`enforce` is misplaced"]),
            (r#"{"attach": "network", "drain": {}}"#, vec!["`drain` is misplaced"]),
        ] {
            let error = error(json);
            for part in expected {
                assert!(error.contains(part), "{json}: {error:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn a_reason_is_counted_in_bytes() {
        let json = |reason: &str| {
            format!(
                r#"{{"attach": "http", "abnormalClose": {{"code": 1011, "reason": "{reason}"}}}}"#
            )
        };
        http(&json(&"x".repeat(123)));
        http(&json(&"ß".repeat(61)));
        assert!(error(&json(&"x".repeat(124))).contains("`abnormalClose.reason` is 124 bytes long"));
        assert!(error(&json(&"ß".repeat(62))).contains("at most 123 bytes"));
    }

    /// JSON null is a value of the wrong type, not an absent key.
    #[test]
    fn null_is_refused() {
        for key in ["enforce", "abnormalClose", "maxAge", "drain", "tcpCloseTimeout"] {
            let error = error(&format!(r#"{{"attach": "http", "{key}": null}}"#));
            assert!(error.contains(key), "{error}");
        }
    }
}
