//! One type per thing that is hashed: all are SHA-256 (FIPS 180-4), none may stand in for another.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// Text that is not `sha256:` and 64 lower-case hex digits (OCI image-spec, "Digests").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest of the form sha256:<64 lower-case hex digits>")]
pub struct NotADigest(pub String);

macro_rules! digests {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// SHA-256 of `bytes`.
            pub fn of(bytes: &[u8]) -> Self {
                Self(Sha256::digest(bytes).into())
            }
            /// A digest that was computed elsewhere.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
            /// From 64 lower-case hex digits, without the algorithm.
            pub fn from_hex(digits: &str) -> Option<Self> {
                from_hex(digits).map(Self)
            }
            /// 64 lower-case hex digits, without the algorithm.
            pub fn hex(&self) -> String {
                hex::encode(self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
        impl FromStr for $name {
            type Err = NotADigest;
            fn from_str(text: &str) -> Result<Self, NotADigest> {
                parse(text).map(Self)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NotADigest;
            fn try_from(text: String) -> Result<Self, NotADigest> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(digest: $name) -> String {
                digest.to_string()
            }
        }
    )*};
}

digests! {
    /// An image manifest or image index.
    ImageDigest;
    /// An image configuration (docker's "image ID").
    ConfigDigest;
    /// A layer's uncompressed tar (`rootfs.diff_ids`).
    DiffId;
    /// A blob in a content store, compressed or not.
    BlobDigest;
    /// The content of a regular file.
    FileDigest;
    /// A rootfs manifest (mtree) of the merged tree.
    RootfsDigest;
    /// A signature list's statement bytes.
    ListDigest;
    /// A policy file's bytes.
    PolicyDigest;
    /// A certificate (DER) or a public key (SubjectPublicKeyInfo, DER).
    KeyDigest;
    /// The sealed config.json.
    BundleDigest;
    /// The canonical launch profile.
    ProfileDigest;
    /// A binding record, `r` (see [`crate::binding`]).
    RecordDigest;
}

/// A digest, or the word `none`: said, never left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OrNone<D> {
    None,
    Is(D),
}

impl<D> OrNone<D> {
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
    pub fn digest(&self) -> Option<&D> {
        match self {
            Self::None => None,
            Self::Is(digest) => Some(digest),
        }
    }
}
impl<D: PartialEq> PartialEq<D> for OrNone<D> {
    fn eq(&self, other: &D) -> bool {
        matches!(self, Self::Is(digest) if digest == other)
    }
}
impl<D> From<D> for OrNone<D> {
    fn from(digest: D) -> Self {
        Self::Is(digest)
    }
}
impl<D: fmt::Display> fmt::Display for OrNone<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str(NONE),
            Self::Is(digest) => digest.fmt(f),
        }
    }
}
impl<D: fmt::Display> Serialize for OrNone<D> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de, D: FromStr<Err = NotADigest>> Deserialize<'de> for OrNone<D> {
    fn deserialize<R: serde::Deserializer<'de>>(from: R) -> Result<Self, R::Error> {
        let text = String::deserialize(from)?;
        match text.as_str() {
            NONE => Ok(Self::None),
            text => text.parse().map(Self::Is).map_err(serde::de::Error::custom),
        }
    }
}

const NONE: &str = "none";

fn parse(text: &str) -> Result<[u8; 32], NotADigest> {
    let refuse = || NotADigest(text.chars().take(80).collect());
    let digits = text.strip_prefix("sha256:").ok_or_else(refuse)?;
    from_hex(digits).ok_or_else(refuse)
}

/// Without an allocation: lists have a million of them.
fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 32];
    let (pairs, rest) = digits.as_bytes().as_chunks();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(bytes)
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_a_word() {
        let read = |text: &str| serde_json::from_str::<OrNone<FileDigest>>(text);
        let is = OrNone::Is(FileDigest::of(b"abc"));
        assert_eq!(read(&serde_json::to_string(&is).unwrap()).unwrap(), is);
        assert_eq!(
            serde_json::to_string(&OrNone::<FileDigest>::None).unwrap(),
            "\"none\""
        );
        assert_eq!(read("\"none\"").unwrap(), OrNone::None);
        for bad in ["null", "\"\"", "\"None\""] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_ne!(OrNone::None, FileDigest::of(b"abc"));
    }

    #[test]
    fn one_text_per_digest() {
        let d = FileDigest::of(b"abc");
        assert_eq!(d.to_string().parse(), Ok(d));
        for bad in [
            "",
            "sha256:",
            "ba7816bf",
            &d.hex(),
            &d.to_string().to_uppercase(),
            &format!("sha256:{}", d.hex().to_uppercase()),
            &format!("{d}0"),
            &format!(" {d}"),
        ] {
            assert!(bad.parse::<FileDigest>().is_err(), "{bad}");
        }
        assert_eq!(FileDigest::from_hex(&d.hex()), Some(d));
        let (short, long) = (&d.hex()[..63], format!("{}0", d.hex()));
        let other = d.hex().replace('a', "g");
        for bad in [
            "",
            short,
            &long,
            &d.hex().to_uppercase(),
            &other,
            &d.to_string(),
        ] {
            assert_eq!(FileDigest::from_hex(bad), None, "{bad}");
        }
    }
}
