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
