//! The file that holds a key of the host's: both halves as the TPM gave them, and the
//! authorization value without which the TPM does not use the key.
//!
//! The private half is encrypted by the TPM. The authorization value is the secret here: the file
//! belongs to root, mode 0600; who writes and reads it is the caller.

use std::{fmt, marker::PhantomData};
use verify::tpm2::{Public, TpmName, alg};

/// What a key is for: one file is never taken for the other.
pub trait Role {
    /// Names the format and its version.
    const MAGIC: &'static [u8];

    /// Whether `public` (TPMT_PUBLIC) is of that kind.
    fn check(public: &[u8]) -> Result<(), BlobError> {
        Public::parse(public).map(drop).map_err(BlobError::Public)
    }
}

/// The host's attestation key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Aik {}

impl Role for Aik {
    const MAGIC: &'static [u8] = b"attestrun host aik 1\n";
}

/// The CA that certifies this host's vTPMs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum VtpmCa {}

impl Role for VtpmCa {
    const MAGIC: &'static [u8] = b"attestrun vtpm ca 1\n";
}

/// The secret behind the kept states of vTPMs, sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Master {}

impl Role for Master {
    const MAGIC: &'static [u8] = b"attestrun vtpm master 1\n";

    fn check(public: &[u8]) -> Result<(), BlobError> {
        match public.starts_with(&alg::KEYEDHASH.to_be_bytes()) {
            true => Ok(()),
            false => Err(BlobError::Kind),
        }
    }
}

pub type AikBlob = KeyBlob<Aik>;
pub type VtpmCaBlob = KeyBlob<VtpmCa>;
pub type MasterBlob = KeyBlob<Master>;

const AUTH: usize = 32;
/// Longer than any TPM2B_PUBLIC or TPM2B_PRIVATE of an ECC key.
const MAX_PART: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    #[error("does not begin as a file of such a key, version 1")]
    Magic,
    #[error("ends too early")]
    Truncated,
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    #[error("the {0} part has {1} bytes")]
    Size(&'static str, usize),
    #[error("the public part is no sealed data's")]
    Kind,
    #[error("the public part is malformed: {0}")]
    Public(verify::tpm2::Malformed),
}

/// A key of the host's at rest.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBlob<R> {
    /// TPMT_PUBLIC.
    public: Vec<u8>,
    /// What is inside the TPM2B_PRIVATE.
    private: Vec<u8>,
    auth: [u8; AUTH],
    role: PhantomData<R>,
}

impl<R: Role> KeyBlob<R> {
    /// No key file is longer.
    pub const MAX_BYTES: usize = R::MAGIC.len() + 2 * (2 + MAX_PART) + AUTH;

    pub(super) fn new(
        public: Vec<u8>,
        private: Vec<u8>,
        auth: [u8; AUTH],
    ) -> Result<Self, BlobError> {
        for (name, part) in [("public", &public), ("private", &private)] {
            if part.is_empty() || part.len() > MAX_PART {
                return Err(BlobError::Size(name, part.len()));
            }
        }
        R::check(&public)?;
        Ok(Self {
            public,
            private,
            auth,
            role: PhantomData,
        })
    }

    /// TPMT_PUBLIC.
    pub fn public(&self) -> &[u8] {
        &self.public
    }
    pub fn name(&self) -> TpmName {
        TpmName::of_public(&self.public)
    }
    pub(super) fn private(&self) -> &[u8] {
        &self.private
    }
    pub(super) const fn auth(&self) -> &[u8; AUTH] {
        &self.auth
    }

    /// The file's bytes: magic, TPM2B_PUBLIC, TPM2B_PRIVATE, authorization value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = R::MAGIC.to_vec();
        for part in [&self.public, &self.private] {
            // At most MAX_PART, see `new`.
            out.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(part);
        }
        out.extend(self.auth);
        out
    }

    /// Strict: the bytes of `encode` and no others.
    pub fn parse(bytes: &[u8]) -> Result<Self, BlobError> {
        let mut rest = bytes.strip_prefix(R::MAGIC).ok_or(BlobError::Magic)?;
        let public = sized(&mut rest)?.to_vec();
        let private = sized(&mut rest)?.to_vec();
        let (auth, end) = rest.split_first_chunk().ok_or(BlobError::Truncated)?;
        match end.len() {
            0 => Self::new(public, private, *auth),
            more => Err(BlobError::Trailing(more)),
        }
    }
}

fn sized<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BlobError> {
    let (size, tail) = rest.split_first_chunk().ok_or(BlobError::Truncated)?;
    let size = usize::from(u16::from_be_bytes(*size));
    let (part, tail) = tail.split_at_checked(size).ok_or(BlobError::Truncated)?;
    *rest = tail;
    Ok(part)
}

/// Without the secret.
impl<R: Role> fmt::Debug for KeyBlob<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyBlob({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> AikBlob {
        // A template is a public area with an empty point; give it one.
        let mut public = verify::tpm2::aik_template();
        public.truncate(public.len() - 4);
        for coordinate in [[1; 32], [2; 32]] {
            public.extend(32u16.to_be_bytes());
            public.extend(coordinate);
        }
        AikBlob::new(public, vec![9; 126], [7; 32]).unwrap()
    }

    #[test]
    fn accept_what_was_encoded() {
        assert_eq!(AikBlob::parse(&blob().encode()), Ok(blob()));
    }

    #[test]
    fn refuse_every_cut_and_every_addition() {
        let bytes = blob().encode();
        for end in 0..bytes.len() {
            assert!(AikBlob::parse(&bytes[..end]).is_err(), "{end}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(AikBlob::parse(&longer), Err(BlobError::Trailing(1)));
    }

    #[test]
    fn refuse_other_versions_and_empty_parts() {
        let mut other = blob().encode();
        other[Aik::MAGIC.len() - 2] = b'2';
        assert_eq!(AikBlob::parse(&other), Err(BlobError::Magic));
        let aik = blob().encode();
        assert_eq!(VtpmCaBlob::parse(&aik), Err(BlobError::Magic));
        assert_eq!(
            AikBlob::new(blob().public, vec![], [0; 32]),
            Err(BlobError::Size("private", 0))
        );
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let text = format!("{:?}", blob());
        assert!(text.starts_with("KeyBlob(000b"), "{text}");
        assert!(!text.contains("07070707") && !text.contains("7, 7"));
    }
}
