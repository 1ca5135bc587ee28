//! The values of the configuration's keys, and what is said about a bad one.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Error, MAX_LIMIT, MAX_REASON_LEN, MIN_DURATION};
use crate::frame::{Close, CloseCode};

pub(super) type Value = Box<RawValue>;

/// A key that is there, whatever its value: serde alone would take `null` for an absent one.
pub(super) fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

pub(super) fn optional<T>(
    key: &str,
    value: Option<Value>,
    read: impl FnOnce(&str, &Value) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    value.map(|value| read(key, &value)).transpose()
}

pub(super) fn required<T>(
    key: &str,
    value: Option<Value>,
    read: impl FnOnce(&str, &Value) -> Result<T, Error>,
) -> Result<T, Error> {
    optional(key, value, read)?.ok_or_else(|| Error(format!("`{key}` is missing")))
}

/// Reads a JSON object. serde would also take an array, value by value.
pub(super) fn object<T: DeserializeOwned>(key: Option<&str>, value: &Value) -> Result<T, Error> {
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
pub(super) fn without_position(error: &serde_json::Error) -> String {
    error.to_string().split(" at line ").next().unwrap_or_default().to_owned()
}

pub(super) fn read<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T, Error> {
    serde_json::from_str(value.get())
        .map_err(|e| Error(format!("`{key}` is {}: {}", value.get(), without_position(&e))))
}

pub(super) fn code(key: &str, value: &Value) -> Result<CloseCode, Error> {
    let code: u16 = read(key, value)?;
    CloseCode::new(code)
        .ok_or_else(|| Error::value(key, code, "1000 to 1003, 1007 to 1014, 3000 to 4999"))
}

pub(super) fn close(parent: &str, code: CloseCode, reason: Option<Value>) -> Result<Close, Error> {
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
pub(super) fn limit(key: &str, value: &Value) -> Result<Option<Duration>, Error> {
    let limit = duration(key, value, Duration::ZERO, MAX_LIMIT, "0s (never), or 0.001s to 24h")?;
    Ok((!limit.is_zero()).then_some(limit))
}

pub(super) fn duration(
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
