//! RFC 8785 canonical JSON: the one spelling of a value, so that its hash means the value.

use serde::Serialize;

/// A value that JSON cannot spell (a map key that is no string, a non-finite number).
#[derive(Debug, thiserror::Error)]
#[error("cannot write the value as canonical JSON (RFC 8785): {0}")]
pub struct NotCanonical(#[from] serde_json::Error);

/// The canonical bytes of `value`.
pub fn canonical<T: Serialize>(value: &T) -> Result<Vec<u8>, NotCanonical> {
    Ok(serde_json_canonicalizer::to_vec(value)?)
}

/// `#[serde(with = "canon::safe_int")]`: refuses integers that a JSON number cannot hold exactly
/// (RFC 8785, 3.2.2.3 and appendix D), both when written and when read.
pub mod safe_int {
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    /// 2^53 − 1.
    pub const MAX: u64 = (1 << 53) - 1;

    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        match *value {
            0..=MAX => to.serialize_u64(*value),
            _ => Err(ser::Error::custom(format!(
                "{value} is greater than 2^53 - 1"
            ))),
        }
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        match u64::deserialize(from)? {
            value @ 0..=MAX => Ok(value),
            value => Err(de::Error::custom(format!(
                "{value} is greater than 2^53 - 1"
            ))),
        }
    }
}
