//! The values of the configuration's keys, and what is said about a bad one.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Error, MAX_LIMIT, MAX_REASON_LEN, MIN_DURATION};
use crate::frame::{Close, CloseCode};

/// JSON as it stands. Instead of serde's derived readers, `serde_json::Value` and `RawValue`: a repeated key is refused, an error can give a key's full name, and neither serde's
/// words for a wrong type nor the formatting of floats in them come into the module, which together
/// are a sixth of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    Array,
    Object(Vec<(String, Value)>),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<Value>()?.is_some() {}
        Ok(Value::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = items.next_entry::<Key, Value>()? {
            if entries.iter().any(|(other, _)| *other == key.0) {
                return Err(A::Error::custom(format_args!("duplicate field `{}`", key.0)));
            }
            entries.push((key.0, value));
        }
        Ok(Value::Object(entries))
    }
}

/// The key of an object: serde's own reader of strings has words for a wrong type too.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(Reader)? {
            Value::Text(key) => Ok(Self(key)),
            _ => Err(D::Error::custom("a key is no string")),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => {
                let sign = if *value < 0.0 { "-" } else { "" };
                match value.abs() {
                    // More than a fraction of billionths can have.
                    whole if whole >= 1e9 => write!(f, "{sign}{}", whole as u64),
                    small => write!(f, "{sign}{}", Decimal((small * 1e9).round() as u64)),
                }
            }
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Array => f.write_str("an array"),
            Self::Object(_) => f.write_str("an object"),
        }
    }
}

/// A number of billionths, as a decimal fraction.
pub(super) struct Decimal(pub(super) u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ONE: u64 = 1_000_000_000;
        let fraction = format!("{:09}", self.0 % ONE);
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{}", self.0 / ONE),
            digits => write!(f, "{}.{digits}", self.0 / ONE),
        }
    }
}

/// An object, of which one key after the other is read.
pub(super) struct Object {
    /// Its full name; `None` for the configuration itself.
    name: Option<&'static str>,
    entries: Vec<(String, Value)>,
}

impl Object {
    /// The object that stands under `name`, which may have the keys `allowed`.
    pub(super) fn of(
        name: Option<&'static str>,
        value: Value,
        allowed: &[&str],
    ) -> Result<Self, Error> {
        let title = match name {
            Some(name) => format!("`{name}`"),
            None => "the configuration".to_owned(),
        };
        let Value::Object(entries) = value else {
            return Err(Error(format!("{title} is {value}: expected an object")));
        };
        if let Some((key, _)) = entries.iter().find(|(key, _)| !allowed.contains(&key.as_str())) {
            let allowed = allowed.join("`, `");
            let message = format!("unknown field `{key}`, expected one of `{allowed}`");
            return Err(Error(match name {
                Some(_) => format!("{title}: {message}"),
                None => message,
            }));
        }
        Ok(Self { name, entries })
    }

    /// Reads the value of `key` with `read`, if it is there.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str, Value) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Some(at) = self.entries.iter().position(|(other, _)| other == key) else {
            return Ok(None);
        };
        let (_, value) = self.entries.swap_remove(at);
        read(&self.full(key), value).map(Some)
    }

    /// The same for one that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str, Value) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.optional(key, read)?.ok_or_else(|| Error(format!("`{}` is missing", self.full(key))))
    }

    /// Any key that has not been read.
    pub(super) fn left(&self) -> Option<&str> {
        self.entries.first().map(|(key, _)| key.as_str())
    }

    fn full(&self, key: &str) -> String {
        match self.name {
            Some(name) => format!("{name}.{key}"),
            None => key.to_owned(),
        }
    }
}

fn unexpected<T>(key: &str, value: &Value, expected: &str) -> Result<T, Error> {
    Err(Error(format!("`{key}` is {value}: expected {expected}")))
}

pub(super) fn boolean(key: &str, value: Value) -> Result<bool, Error> {
    match value {
        Value::Bool(value) => Ok(value),
        other => unexpected(key, &other, "a boolean"),
    }
}

pub(super) fn text(key: &str, value: Value) -> Result<String, Error> {
    match value {
        Value::Text(value) => Ok(value),
        other => unexpected(key, &other, "a string"),
    }
}

pub(super) fn fraction(key: &str, value: Value) -> Result<f64, Error> {
    match value {
        Value::Number(number) if (0.0..=1.0).contains(&number) => Ok(number),
        Value::Number(_) => Err(Error::value(key, &value, "0 to 1")),
        other => unexpected(key, &other, "a number"),
    }
}

pub(super) fn code(key: &str, value: Value) -> Result<CloseCode, Error> {
    let Value::Number(number) = value else {
        return unexpected(key, &value, "a number");
    };
    // What is no u16 becomes another number.
    let code = number as u16;
    (f64::from(code) == number)
        .then(|| CloseCode::new(code))
        .flatten()
        .ok_or_else(|| Error::value(key, &value, "1000 to 1003, 1007 to 1014, 3000 to 4999"))
}

/// The Close frame of an object's `code`, or of `default`, and its `reason`.
pub(super) fn close(keys: &mut Object, default: Option<CloseCode>) -> Result<Close, Error> {
    let code = match default {
        Some(default) => keys.optional("code", code)?.unwrap_or(default),
        None => keys.required("code", code)?,
    };
    let reason = keys.optional("reason", text)?.unwrap_or_default();
    Close::new(code, &reason).ok_or_else(|| {
        Error(format!(
            "`{}` is {} bytes long: allowed is at most {MAX_REASON_LEN} bytes of UTF-8",
            keys.full("reason"),
            reason.len()
        ))
    })
}

/// A time limit; `"0s"` turns it off.
pub(super) fn limit(key: &str, value: Value) -> Result<Option<Duration>, Error> {
    let limit = duration(key, value, Duration::ZERO, MAX_LIMIT, "0s (never), or 0.001s to 24h")?;
    Ok((!limit.is_zero()).then_some(limit))
}

pub(super) fn duration(
    key: &str,
    value: Value,
    min: Duration,
    max: Duration,
    allowed: &str,
) -> Result<Duration, Error> {
    let text = text(key, value)?;
    let Some(duration) = parse_duration(&text) else {
        return Err(Error::value(
            key,
            &Value::Text(text),
            "a duration such as \"10s\", \"0.5s\", \"500ms\", \"30m\", \"1h\"",
        ));
    };
    let too_short_to_wait = !duration.is_zero() && duration < MIN_DURATION;
    if too_short_to_wait || duration < min || duration > max {
        return Err(Error::value(key, &Value::Text(text), allowed));
    }
    Ok(duration)
}

/// A protobuf JSON duration (`"10s"`, `"0.5s"`, at most nine digits behind the point) or, as in
/// Istio's own fields, the same with one of the units `h`, `m` or `ms`. Never negative.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
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
