//! Public keys that sign images.

use crate::digest::KeyDigest;
use sigstore_verify::crypto::{KeyAlgorithm, SigningScheme, verify_signature};
use sigstore_verify::types::{DerPublicKey, SignatureBytes};
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a PEM block `PUBLIC KEY` (SubjectPublicKeyInfo)")]
    NotAPublicKey,
    #[error("unsupported public key: {0} (ECDSA P-256 and P-384, Ed25519 and RSA are supported)")]
    Unsupported(String),
}

/// A public key from a policy, with the signature schemes that it is used with.
#[derive(Clone)]
pub struct PublicKey {
    der: DerPublicKey,
    schemes: &'static [SigningScheme],
}

impl PublicKey {
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = DerPublicKey::from_pem(pem).map_err(|_| KeyError::NotAPublicKey)?;
        let algorithm =
            KeyAlgorithm::from_spki(&der).map_err(|e| KeyError::Unsupported(e.to_string()))?;
        let schemes: &[_] = match algorithm {
            KeyAlgorithm::EcdsaP256 => &[SigningScheme::EcdsaP256Sha256],
            // cosign 2 signs with SHA-256 whatever the key, cosign 3 with the curve's own hash.
            KeyAlgorithm::EcdsaP384 => &[
                SigningScheme::EcdsaP384Sha384,
                SigningScheme::EcdsaP384Sha256,
            ],
            KeyAlgorithm::Ed25519 => &[SigningScheme::Ed25519],
            KeyAlgorithm::Rsa => &[SigningScheme::RsaPkcs1Sha256],
            other => return Err(KeyError::Unsupported(format!("{other:?}"))),
        };
        Ok(Self { der, schemes })
    }
    /// SHA-256 of the SubjectPublicKeyInfo: the name of the key in verdicts.
    pub fn fingerprint(&self) -> KeyDigest {
        KeyDigest::of(self.der.as_bytes())
    }
    /// Whether this key made `signature` over `message`.
    pub(super) fn made(&self, signature: &[u8], message: &[u8]) -> bool {
        let signature = SignatureBytes::from_bytes(signature);
        self.schemes
            .iter()
            .any(|scheme| verify_signature(&self.der, message, &signature, *scheme).is_ok())
    }
    pub(super) fn der(&self) -> &DerPublicKey {
        &self.der
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}
