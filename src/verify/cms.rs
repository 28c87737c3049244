//! Signatures by a user's certificate over a list's bytes, CMS detached (RFC 5652) or DSSE, and the chain
//! behind them (RFC 5280).
//!
//! Trusts: the user CAs that a policy names, and the time it is given. Proves: the owner of a
//! certificate for this tenant signed exactly these bytes. The revocation question is never left
//! open by accident: it is answered by [`Revocation`], which policies spell out.

use crate::digest::KeyDigest;
use crate::id::UnixTime;
use sha2::{Digest as _, Sha256};

mod build;
mod chain;
mod constraints;
mod dsse;
mod envelope;

pub use build::{BuildError, build_detached};
pub(crate) use chain::is_tenant;
pub use chain::{PemError, certificates_from_pem, revocation_list};
pub use dsse::{build_bundle, detach};

/// A signature with its certificates has some 2 KiB; chains end far below this.
pub const MAX_SIGNATURE: usize = 256 * 1024;

/// How a signer's certificates are checked for revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    /// Not at all; a policy says so with `revocation = "unchecked"`.
    Unchecked,
    /// Against these CRLs (DER): every certificate of the chain must be covered by one that has not
    /// run out. No CRL at all refuses.
    Crls(Vec<Vec<u8>>),
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmsRefusal {
    #[error("the signature has {0} bytes, more than {MAX_SIGNATURE}")]
    TooLong(usize),
    #[error("the signature is not a DER-encoded CMS SignedData: {0}")]
    Malformed(String),
    #[error("the signature is no DSSE envelope in a Sigstore bundle: {0}")]
    Bundle(String),
    #[error("the signature carries content of its own; a detached one is expected")]
    NotDetached,
    #[error("the signature has {0} signers; exactly one is expected")]
    Signers(usize),
    #[error("the signature carries unsigned attributes or CRLs, which nothing vouches for")]
    Unsigned,
    #[error("{0}")]
    Attributes(&'static str),
    #[error("digest algorithm {0} is not SHA-256")]
    DigestAlgorithm(String),
    #[error(
        "signature algorithm {0} is not supported (ECDSA P-256 or P-384, or RSA PKCS#1, with SHA-256)"
    )]
    SignatureAlgorithm(String),
    #[error("the signature has {0} certificates that fit its signer; exactly one is expected")]
    SignerCertificate(usize),
    #[error("the signature is over other content (sha256:{signed}; this is sha256:{actual})")]
    AlteredContent { signed: String, actual: String },
    #[error("the signature was not made by the key of its certificate")]
    Signature,
    #[error("no user CA was given")]
    NoRoots,
    #[error("a user CA certificate cannot be read: {0}")]
    Root(String),
    #[error("no chain leads from the certificate of {subject} to one of the user CAs: {detail}")]
    Untrusted { subject: String, detail: String },
    #[error("a certificate in the chain of {subject} ran out at {not_after}")]
    Expired {
        subject: String,
        not_after: UnixTime,
    },
    #[error("a certificate in the chain of {subject} is valid only from {not_before}")]
    NotYetValid {
        subject: String,
        not_before: UnixTime,
    },
    #[error("a certificate in the chain of {0} was revoked")]
    Revoked(String),
    #[error("the revocation lists do not settle the chain of {subject}: {detail}")]
    RevocationUnknown { subject: String, detail: String },
    #[error("the certificate of {0} is a CA's; a user's is expected")]
    CaAsUser(String),
    #[error("the certificate of {subject} does not have {extension} as a critical extension")]
    NotCritical {
        subject: String,
        extension: &'static str,
    },
    #[error("the certificate of {0} does not have the key usage digitalSignature")]
    KeyUsage(String),
    #[error("the certificate of {0} does not have the extended key usage codeSigning")]
    ExtendedKeyUsage(String),
    #[error(
        "the certificate of {subject} is good for {days} days, more than {}",
        chain::MAX_DAYS
    )]
    Lifetime { subject: String, days: u64 },
    #[error("the certificate of {subject} has a weak key: {detail}")]
    WeakKey { subject: String, detail: String },
    #[error(
        "the certificate of {subject} names no tenant: {detail} (expected is one subjectAltName URI:spiffe://<domain>/tenant/<name>)"
    )]
    NoTenant { subject: String, detail: String },
    #[error("the time {0} is before 1970")]
    Time(UnixTime),
}

/// What a second verifier needs: the chain that was found, and what its last key signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    root: Vec<u8>,
    chain: Vec<Vec<u8>>,
    digest: [u8; 32],
    signature: Vec<u8>,
}

impl Proof {
    /// The user CA's certificate (DER) at which the chain ends.
    pub fn root(&self) -> &[u8] {
        &self.root
    }
    /// The certificates below it (DER), each signed by the one before; the signer's is the last.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }
    /// SHA-256 of the bytes that were signed: the envelope's, not the list's.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }
    /// The signature as r and s (IEEE P1363), if a P-256 key made it.
    pub fn p1363(&self) -> Option<[u8; 64]> {
        p1363(&self.signature)
    }
}

/// RFC 3279, 2.2.3: a sequence of two numbers. An RSA signature is longer.
fn p1363(signature: &[u8]) -> Option<[u8; 64]> {
    #[derive(der::Sequence)]
    struct EcdsaSigValue<'a> {
        r: der::asn1::UintRef<'a>,
        s: der::asn1::UintRef<'a>,
    }
    let numbers = <EcdsaSigValue<'_> as der::Decode>::from_der(signature).ok()?;
    let mut raw = [0; 64];
    let (r, s) = raw.split_at_mut(32);
    for (place, number) in [(r, numbers.r), (s, numbers.s)] {
        let bytes = number.as_bytes();
        let start = place.len().checked_sub(bytes.len())?;
        place.get_mut(start..)?.copy_from_slice(bytes);
    }
    Some(raw)
}

/// The owner of a certificate, who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSigner {
    certificate: KeyDigest,
    subject: String,
    tenant: String,
    proof: Proof,
}

impl VerifiedSigner {
    /// For a verifier of another kind to say the same.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }
    /// SHA-256 of the certificate's DER.
    pub fn certificate(&self) -> KeyDigest {
        self.certificate
    }
    /// The distinguished name (RFC 4514), for people; nothing is decided by it.
    pub fn subject(&self) -> &str {
        &self.subject
    }
    /// `spiffe://<domain>/tenant/<name>`: the name that policies authorise.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }
}

/// Verifies that `signature` (CMS, or DSSE in a bundle) is a detached signature over `content` by a user whose certificate
/// chains to one of `roots` (DER) at the time `now`. Which tenant may sign what is the caller's
/// question.
pub fn verify_detached(
    content: &[u8],
    signature: &[u8],
    roots: &[Vec<u8>],
    now: UnixTime,
    revocation: &Revocation,
) -> Result<VerifiedSigner, CmsRefusal> {
    verify_content(&Content::of(content), signature, roots, now, revocation)
}

/// Bytes that were hashed once: a list may be long.
pub(crate) struct Content<'a> {
    bytes: &'a [u8],
    digest: [u8; 32],
}

impl<'a> Content<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        let digest = Sha256::digest(bytes).into();
        Self { bytes, digest }
    }
    /// SHA-256.
    pub(crate) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

/// As [`verify_detached`].
pub(crate) fn verify_content(
    content: &Content<'_>,
    signature: &[u8],
    roots: &[Vec<u8>],
    now: UnixTime,
    revocation: &Revocation,
) -> Result<VerifiedSigner, CmsRefusal> {
    let signed = match dsse::is_bundle(signature) {
        true => dsse::open(content, signature)?,
        false => {
            let envelope = envelope::open(signature)?;
            same_content(&envelope.message_digest, content)?;
            envelope.verified()?
        }
    };
    let certificates = &signed.certificates;
    let path = chain::verify(certificates, roots, now, revocation)?;
    let tenant = chain::user_profile(&certificates.leaf)?;
    Ok(VerifiedSigner {
        certificate: KeyDigest::of(&certificates.leaf_der),
        subject: chain::subject(&certificates.leaf),
        tenant,
        proof: Proof {
            root: path.root,
            chain: path.chain,
            digest: signed.digest,
            signature: signed.signature,
        },
    })
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

fn same_content(signed: &[u8], content: &Content<'_>) -> Result<(), CmsRefusal> {
    match signed == content.digest {
        true => Ok(()),
        false => Err(CmsRefusal::AlteredContent {
            signed: hex::encode(signed),
            actual: hex::encode(content.digest),
        }),
    }
}

#[cfg(test)]
mod tests;
