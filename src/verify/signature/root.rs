//! Pinned trust: certificate authorities, logs and timestamp authorities of a Sigstore instance.

use crate::digest::KeyDigest;
use serde_json::json;
use sigstore_verify::Verifier;
use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::DerPublicKey;
use std::fmt;

/// sigstore/protobuf-specs, `sigstore_trustroot.proto`, "TrustedRoot".
const MEDIA_TYPES: [&str; 2] = [
    "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    #[error("it is malformed: {0}")]
    Malformed(String),
    #[error("it is of type `{0}`, not a Sigstore trusted root")]
    WrongType(String),
    #[error("it cannot be used: {0}")]
    Unusable(String),
}

/// A pinned `trusted_root.json`, or the keys and certificates that a containers policy names.
pub struct TrustRoot {
    verifier: Verifier,
    pub(super) has: Has,
}

/// What a root has any of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Has {
    pub logs: bool,
    pub authorities: bool,
    pub certificate_logs: bool,
    pub timestamp_authorities: bool,
}

impl TrustRoot {
    pub fn from_json(bytes: &[u8]) -> Result<Self, RootError> {
        let malformed = |e: &dyn fmt::Display| RootError::Malformed(e.to_string());
        let text = std::str::from_utf8(bytes).map_err(|e| malformed(&e))?;
        let root = TrustedRoot::from_json(text).map_err(|e| malformed(&e))?;
        if !MEDIA_TYPES.contains(&root.media_type.as_str()) {
            return Err(RootError::WrongType(root.media_type));
        }
        let verifier = Verifier::new(&root).map_err(|e| RootError::Unusable(e.to_string()))?;
        Ok(Self {
            verifier,
            has: Has {
                logs: !root.tlogs.is_empty(),
                authorities: !root.certificate_authorities.is_empty(),
                certificate_logs: !root.ctlogs.is_empty(),
                timestamp_authorities: !root.timestamp_authorities.is_empty(),
            },
        })
    }

    /// From PEM files: a chain of certificates per authority, one public key per log. They have no
    /// period of validity other than the certificates' own.
    pub fn from_pems(authorities: &[&str], logs: &[&str]) -> Result<Self, RootError> {
        let authorities = authorities
            .iter()
            .map(|pem| {
                let certificates = certificates(pem)?;
                Ok(json!({ "uri": "", "certChain": { "certificates": certificates } }))
            })
            .collect::<Result<Vec<_>, RootError>>()?;
        let logs = logs
            .iter()
            .map(|pem| {
                let key = DerPublicKey::from_pem(pem).map_err(|_| {
                    RootError::Malformed("a log's key is not a PEM block `PUBLIC KEY`".to_owned())
                })?;
                let id = DerPublicKey::from_bytes(KeyDigest::of(key.as_bytes()).as_bytes());
                Ok(json!({
                    "baseUrl": "",
                    "hashAlgorithm": "SHA2_256",
                    "publicKey": { "rawBytes": key.to_base64(), "keyDetails": "" },
                    "logId": { "keyId": id.to_base64() },
                }))
            })
            .collect::<Result<Vec<_>, RootError>>()?;
        let root = json!({
            "mediaType": MEDIA_TYPES[0],
            "tlogs": logs,
            "certificateAuthorities": authorities,
        });
        Self::from_json(root.to_string().as_bytes())
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }
}

impl fmt::Debug for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustRoot({:?})", self.has)
    }
}

/// The certificates of a PEM file, as protobuf's JSON has them.
fn certificates(pem: &str) -> Result<Vec<serde_json::Value>, RootError> {
    let chain = crate::cms::certificates_from_pem(pem.as_bytes())
        .map_err(|e| RootError::Malformed(e.to_string()))?;
    Ok(chain
        .iter()
        .map(|der| json!({ "rawBytes": DerPublicKey::from_bytes(der).to_base64() }))
        .collect())
}
