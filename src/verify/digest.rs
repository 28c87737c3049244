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

fn parse(text: &str) -> Result<[u8; 32], NotADigest> {
    let refuse = || NotADigest(text.chars().take(80).collect());
    let hex_digits = text.strip_prefix("sha256:").ok_or_else(refuse)?;
    if hex_digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(refuse());
    }
    let mut bytes = [0u8; 32];
    hex::decode_to_slice(hex_digits, &mut bytes).map_err(|_| refuse())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
