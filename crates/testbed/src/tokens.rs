//! Tokens (RFC 7519) for those who check them: Envoy's `jwt_authn`, by itself and as Istio configures it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{json, Value};

/// Whose tokens they are.
pub const ISSUER: &str = "testbed";

const SECRET: &[u8] = b"a secret of thirty-two bytes, no?";

/// A token that expires at `exp`, in seconds after 1970.
///
/// # Panics
/// Never: the key fits the algorithm.
pub fn token(exp: u64) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let claims = json!({ "iss": ISSUER, "exp": exp });
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
}

/// The keys that tell such a token from another: the same secret, as RFC 7518 §6.4 has it.
pub fn keys() -> Value {
    json!({ "keys": [{
        "kty": "oct", "alg": "HS256", "k": "YSBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXRlcywgbm8_",
    }]})
}

/// The time since 1970.
///
/// # Panics
/// Where the clock is wrong by decades.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}
