//! TPM 2.0 structures that a verifier reads, and the check of a quote (TPM 2.0 Library, Part 2).
//!
//! ECDSA over P-256 with SHA-256 throughout; every other algorithm is refused by name.
//! Trusts: nothing. Proves: [`VerifiedQuote`] says that the key of [`AttestationKey`] signed these
//! bytes over that qualifying data; [`QuotedPcrs`] that the quoted PCRs had exactly these values.

mod attest;
mod credential;
mod ek_certificate;
mod outer;
mod public;
mod quote;
mod sealed;
#[cfg(test)]
pub(crate) mod softkey;
#[cfg(test)]
mod tests;

pub use attest::{Attest, Body, Selection, Signature};
pub use credential::{Credential, make_credential};
pub use ek_certificate::{CertifiedEk, EkRefusal, certify};
pub use outer::NoScalar;
pub use public::{
    AttestationKey, EndorsementKey, KeyRefusal, Public, aik_template, aik_template_of,
    certifying_template, ek_template, sealed_template,
};
pub use quote::{QuoteError, QuotedPcrs, VerifiedQuote, verify_quote};
pub use sealed::{MAX_SEALED, SealedObject, SealingRandom, pcr_policy, pcr_selection, seal};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// TPM_ALG_ID (Part 2, 6.3), those that this crate knows by name.
pub mod alg {
    pub const RSA: u16 = 0x0001;
    pub const SHA1: u16 = 0x0004;
    pub const AES: u16 = 0x0006;
    pub const KEYEDHASH: u16 = 0x0008;
    pub const SHA256: u16 = 0x000B;
    pub const NULL: u16 = 0x0010;
    pub const RSASSA: u16 = 0x0014;
    pub const RSAPSS: u16 = 0x0016;
    pub const ECDSA: u16 = 0x0018;
    pub const ECC: u16 = 0x0023;
    pub const CFB: u16 = 0x0043;
    /// TPM_ECC_CURVE (Part 2, 6.4).
    pub const NIST_P256: u16 = 0x0003;
}

/// Why bytes are not the structure they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0} ends too early")]
    Truncated(&'static str),
    #[error("{0} bytes follow the {1}")]
    Trailing(usize, &'static str),
    #[error("{what}: {found} is not allowed, expected {expected}")]
    Value {
        what: &'static str,
        found: String,
        expected: &'static str,
    },
}

/// A key's Name: nameAlg ‖ H(public area) (Part 1, "Names"); here always SHA-256, 34 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TpmName([u8; 34]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a TPM name (000b and 64 lower-case hex digits)")]
pub struct NotAName(pub String);

impl TpmName {
    /// The name of the object with this TPMT_PUBLIC.
    pub fn of_public(tpmt_public: &[u8]) -> Self {
        let mut name = [0; 34];
        let (head, tail) = name.split_at_mut(2);
        head.copy_from_slice(&alg::SHA256.to_be_bytes());
        tail.copy_from_slice(&Sha256::digest(tpmt_public));
        Self(name)
    }
    /// The qualified name of a primary key of the endorsement hierarchy (TPM 2.0 Library, Part 1, "Names":
    /// QN := nameAlg ‖ H(QN of the parent ‖ Name), the hierarchy's being its handle).
    pub fn qualified_in_endorsement(&self) -> Self {
        const RH_ENDORSEMENT: u32 = 0x4000_000B;
        Self::of_public(&[&RH_ENDORSEMENT.to_be_bytes()[..], &self.0].concat())
    }
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAName> {
        match <[u8; 34]>::try_from(bytes) {
            Ok(name) if name.starts_with(&alg::SHA256.to_be_bytes()) => Ok(Self(name)),
            _ => Err(NotAName(hex::encode(
                bytes.iter().copied().take(40).collect::<Vec<_>>(),
            ))),
        }
    }
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let refuse = || NotAName(text.chars().take(80).collect());
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse());
        }
        Self::from_bytes(&hex::decode(text).map_err(|_| refuse())?)
    }
    pub const fn as_bytes(&self) -> &[u8; 34] {
        &self.0
    }
}

impl fmt::Display for TpmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for TpmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TpmName({self})")
    }
}
impl std::str::FromStr for TpmName {
    type Err = NotAName;
    fn from_str(text: &str) -> Result<Self, NotAName> {
        Self::parse(text)
    }
}
impl TryFrom<String> for TpmName {
    type Error = NotAName;
    fn try_from(text: String) -> Result<Self, NotAName> {
        Self::parse(&text)
    }
}
impl From<TpmName> for String {
    fn from(name: TpmName) -> String {
        name.to_string()
    }
}

/// What is left to read of a structure; integers are big-endian (Part 1, "Canonical form").
struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self
            .rest
            .split_first_chunk()
            .ok_or(Malformed::Truncated(self.what))?;
        self.rest = tail;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }
    /// A TPM2B: `u16` size and as many bytes.
    fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let size = usize::from(self.u16()?);
        let (head, tail) = self
            .rest
            .split_at_checked(size)
            .ok_or(Malformed::Truncated(self.what))?;
        self.rest = tail;
        Ok(head)
    }
    /// A `u16` that must have this value.
    fn exactly(
        &mut self,
        what: &'static str,
        value: u16,
        expected: &'static str,
    ) -> Result<(), Malformed> {
        match self.u16()? {
            found if found == value => Ok(()),
            found => Err(Malformed::Value {
                what,
                found: format!("{found:#06x}"),
                expected,
            }),
        }
    }
    /// A coordinate or scalar of P-256, left-padded to 32 bytes (some TPMs drop leading zeros).
    fn p256_number(&mut self, what: &'static str) -> Result<[u8; 32], Malformed> {
        let bytes = self.sized()?;
        let mut number = [0; 32];
        match 32usize
            .checked_sub(bytes.len())
            .and_then(|pad| number.get_mut(pad..))
        {
            Some(tail) if !bytes.is_empty() => {
                tail.copy_from_slice(bytes);
                Ok(number)
            }
            _ => Err(Malformed::Value {
                what,
                found: format!("{} bytes", bytes.len()),
                expected: "1 to 32",
            }),
        }
    }
    fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(Malformed::Trailing(n, self.what)),
        }
    }
}
