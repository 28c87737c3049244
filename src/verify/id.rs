//! Names that become paths or keys: validated once, here.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("container id is empty")]
    Empty,
    #[error("container id is too long: a file name has at most 255 bytes")]
    TooLong,
    #[error(
        "invalid container ID format: `{0}` (allowed are letters, digits, `_`, `+`, `-`, `.`; not `.` or `..`)"
    )]
    Format(String),
    #[error("run id `{0}` is not 32 lower-case hex digits")]
    RunId(String),
    #[error("a nonce has 20 to 64 bytes, this one {0}")]
    NonceLength(usize),
    #[error("`{0}` is not an RFC 3339 time in UTC")]
    Time(String),
}

/// A container's id as the engine chose it: runc's alphabet (`[\w+-.]+`, libcontainer/factory_linux.go).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        match text {
            "" => Err(IdError::Empty),
            t if t.len() > 255 => Err(IdError::TooLong),
            t if t == "."
                || t == ".."
                || !t
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b)) =>
            {
                Err(IdError::Format(t.chars().take(80).collect()))
            }
            t => Ok(Self(t.to_owned())),
        }
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One run of a container: 128 random bits; ids repeat between engines, run ids do not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(hex::encode(bytes))
    }
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.len() == 32
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::RunId(text.chars().take(80).collect()))
        }
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A challenger's nonce: 160 bits (Guo et al. 2019) or more, used once.
#[derive(Clone, PartialEq, Eq)]
pub struct Nonce(Vec<u8>);

impl Nonce {
    pub const MIN: usize = 20;
    pub const MAX: usize = 64;

    pub fn new(bytes: Vec<u8>) -> Result<Self, IdError> {
        match bytes.len() {
            Self::MIN..=Self::MAX => Ok(Self(bytes)),
            n => Err(IdError::NonceLength(n)),
        }
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({})", hex::encode(&self.0))
    }
}

/// Seconds since 1970-01-01T00:00:00Z; written as RFC 3339 in UTC (`2026-11-23T15:00:00Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnixTime(i64);

impl UnixTime {
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs)
    }
    pub const fn secs(self) -> i64 {
        self.0
    }
    pub fn parse(text: &str) -> Result<Self, IdError> {
        match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(t) if t.offset().local_minus_utc() == 0 => Ok(Self(t.timestamp())),
            _ => Err(IdError::Time(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp(self.0, 0) {
            Some(t) => write!(f, "{}", t.format("%Y-%m-%dT%H:%M:%SZ")),
            None => write!(f, "@{}", self.0),
        }
    }
}

macro_rules! through_text {
    ($($name:ident, $parse:path;)*) => {$(
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                $parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}
through_text! {
    ContainerId, ContainerId::parse;
    RunId, RunId::parse;
    UnixTime, UnixTime::parse;
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_path_components() {
        for good in ["a", "c1", "a.b-c_d+e", "..."] {
            assert!(ContainerId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "ä",
            "a\0",
            "a\n",
            &"x".repeat(256),
        ] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nonces_have_160_bits_or_more() {
        assert_eq!(Nonce::new(vec![0; 19]), Err(IdError::NonceLength(19)));
        assert!(Nonce::new(vec![0; 20]).is_ok());
        assert_eq!(Nonce::new(vec![0; 65]), Err(IdError::NonceLength(65)));
    }

    #[test]
    fn times_are_utc() {
        let t = UnixTime::parse("2026-11-23T15:00:00Z").unwrap();
        assert_eq!(t.to_string(), "2026-11-23T15:00:00Z");
        assert!(UnixTime::parse("2026-11-23T15:00:00+01:00").is_err());
        assert!(UnixTime::parse("2026-11-23").is_err());
    }
}
