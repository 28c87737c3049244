//! One signature over an image, or one attestation about it, against one demand.
//!
//! ```text
//! StoredSignature ─bytes┐
//! Demand: keys, or pinned authorities + identities; log, timestamps ├▶ Signed | SignatureRefusal
//! ImageDigest, …: what it may be about ┘                               Attested
//! ```
//! Trusts: what the demand names. Proves: one and the same signature satisfies the key (or the
//! identity), the log and timestamp demands, the kind of statement and the image. An empty list of
//! keys, identities, logs or images refuses. Formats: sigstore/cosign `specs/SIGNATURE_SPEC.md` and
//! `specs/BUNDLE_SPEC.md`; sigstore/protobuf-specs, bundles v0.1 to v0.3.

use crate::digest::{ImageDigest, KeyDigest};
use crate::id::UnixTime;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

mod bundle;
mod claim;
mod identity;
mod key;
mod proof;
mod refusal;
mod root;
mod simple;
mod statement;

pub use bundle::{key_bundle, to_sign};
pub use claim::Claim;
pub use identity::{Identity, Pattern, PatternError, Subject};
pub use key::{KeyError, PublicKey};
pub use refusal::SignatureRefusal;
pub use root::{RootError, TrustRoot};
pub use simple::{MAX_PAYLOAD, simple_payload};
pub use statement::{SIGN_PREDICATE, sign_statement};

/// What a policy asks of one signature; all of it of the same one.
#[derive(Debug, Clone)]
pub enum Demand {
    /// Made by one of these keys.
    Key { keys: Vec<PublicKey>, log: KeyLog },
    /// Made by the key of a short-lived certificate of one of these identities.
    Keyless {
        root: Arc<TrustRoot>,
        identities: Vec<Identity>,
        proofs: Proofs,
    },
}

/// Whether a signature by key must stand in a transparency log.
#[derive(Debug, Clone)]
pub enum KeyLog {
    NotAsked,
    /// In one of this root's logs.
    Demanded(Arc<TrustRoot>),
}

/// What must stand beside a certificate. A trusted time, from a log or from a timestamp authority, is
/// always needed: without one nobody knows whether the certificate was valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proofs {
    /// An entry in one of the root's transparency logs.
    pub log: Need,
    /// An RFC 3161 timestamp by one of the root's authorities.
    pub timestamp: Need,
    /// The certificate's entry in one of the root's certificate logs (RFC 6962).
    pub sct: Need,
}

impl Proofs {
    /// What the public-good instance of Sigstore gives, and cosign asks for.
    pub const LOGGED: Self = Self {
        log: Need::Demanded,
        timestamp: Need::NotAsked,
        sct: Need::Demanded,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Demanded,
    /// Not required. What is there all the same must be good.
    NotAsked,
}

/// A signature as stores keep it; bytes, no judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredSignature {
    /// cosign 1 and 2, skopeo, podman.
    Simple(SimpleSignature),
    /// An attestation of cosign 1 and 2.
    Envelope(StoredEnvelope),
    /// A Sigstore bundle (JSON): cosign 3.
    Bundle(Vec<u8>),
}

/// A simple-signing payload and its signature; `annotations` are those of the layer, without the
/// signature: certificate, chain, log entry, timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimpleSignature {
    pub payload: Vec<u8>,
    pub signature_b64: String,
    pub annotations: BTreeMap<String, String>,
}

/// A DSSE envelope (JSON) with the annotations of its layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEnvelope {
    pub envelope: Vec<u8>,
    pub annotations: BTreeMap<String, String>,
}

/// A signature that satisfied a demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    signer: Signer,
    image: ImageDigest,
    docker_reference: Option<String>,
    log: Option<Logged>,
    timestamps: Vec<UnixTime>,
}

/// Who made a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// The owner of this key, see [`PublicKey::fingerprint`].
    Key(KeyDigest),
    Identity {
        /// The certificate's alternative name: an email address or a URI.
        subject: String,
        /// Who vouched for it (OpenID Connect).
        issuer: String,
        certificate: KeyDigest,
    },
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "key {key}"),
            Self::Identity {
                subject, issuer, ..
            } => write!(f, "{subject} of {issuer}"),
        }
    }
}

/// Where a signature stands in a transparency log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    pub index: u64,
    /// When the log took it; logs of Rekor's second version say no time.
    pub at: Option<UnixTime>,
}

impl Signed {
    pub fn signer(&self) -> &Signer {
        &self.signer
    }
    /// The manifest or index that the signature is about; one of those asked for.
    pub fn image(&self) -> ImageDigest {
        self.image
    }
    /// The name that was signed: cosign writes the repository, skopeo repository and tag. Bundles
    /// carry none.
    pub fn docker_reference(&self) -> Option<&str> {
        self.docker_reference.as_deref()
    }
    /// The log's entry, where the demand looked at one.
    pub fn log(&self) -> Option<Logged> {
        self.log
    }
    /// All times that were proved, of logs and timestamp authorities.
    pub fn timestamps(&self) -> &[UnixTime] {
        &self.timestamps
    }
}

/// A statement about an image whose signature satisfied a demand.
#[derive(Debug, Clone, PartialEq)]
pub struct Attested {
    signed: Signed,
    statement: Vec<u8>,
    predicate: serde_json::Value,
}

impl Attested {
    pub fn signed(&self) -> &Signed {
        &self.signed
    }
    /// The statement's bytes as they were signed.
    pub fn statement(&self) -> &[u8] {
        &self.statement
    }
    /// What it states.
    pub fn predicate(&self) -> &serde_json::Value {
        &self.predicate
    }
}

/// Does this signature say that one of the images `want` is the signer's, as `demand` asks?
pub fn verify(
    demand: &Demand,
    stored: &StoredSignature,
    want: &[ImageDigest],
    now: UnixTime,
) -> Result<Signed, SignatureRefusal> {
    proof::demandable(demand, want)?;
    match stored {
        StoredSignature::Simple(simple) => proof::simple(demand, simple, want, now),
        other => Ok(proof::statement(demand, other, want, SIGN_PREDICATE, now)?.signed),
    }
}

/// Does this attestation state something of type `predicate_type` about one of the images `want`, as
/// `demand` asks?
pub fn verify_attestation(
    demand: &Demand,
    stored: &StoredSignature,
    want: &[ImageDigest],
    predicate_type: &str,
    now: UnixTime,
) -> Result<Attested, SignatureRefusal> {
    proof::demandable(demand, want)?;
    proof::statement(demand, stored, want, predicate_type, now)
}

#[cfg(test)]
mod tests;
