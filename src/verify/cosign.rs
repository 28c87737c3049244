//! cosign "simple signing" payloads, verified with a public key that a policy names.
//!
//! Trusts: the key. Proves: the key's owner said which manifest (or index) digest goes by which
//! repository name. Format: sigstore/cosign `specs/SIGNATURE_SPEC.md`.

use crate::canon::{NotCanonical, canonical};
use crate::digest::{ImageDigest, KeyDigest};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sigstore_verify::crypto::{KeyAlgorithm, SigningScheme, verify_signature};
use sigstore_verify::types::{DerPublicKey, SignatureBytes};
use std::fmt;

/// `critical.type` of a payload (SIGNATURE_SPEC.md, "Simple Signing").
const PAYLOAD_TYPE: &str = "cosign container image signature";
/// cosign's own payloads have some 240 bytes, skopeo's some 300.
pub const MAX_PAYLOAD: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a PEM block `PUBLIC KEY` (SubjectPublicKeyInfo)")]
    NotAPublicKey,
    #[error("unsupported public key: {0} (ECDSA P-256, Ed25519 and RSA are supported)")]
    Unsupported(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureRefusal {
    #[error("the signature is not base64")]
    NotBase64,
    #[error("the payload has {0} bytes, more than {MAX_PAYLOAD}")]
    TooLong(usize),
    #[error("the signature was not made over this payload by key {0}")]
    WrongKey(KeyDigest),
    #[error("the signed payload is malformed: {0}")]
    Malformed(String),
    #[error("the signed payload has type `{0}`, not `{PAYLOAD_TYPE}`")]
    WrongType(String),
    #[error("the signature is about image {0}")]
    OtherImage(ImageDigest),
}

/// A public key from a policy, with the one signature scheme that it is used with.
#[derive(Clone)]
pub struct PublicKey {
    der: DerPublicKey,
    scheme: SigningScheme,
}

impl PublicKey {
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = DerPublicKey::from_pem(pem).map_err(|_| KeyError::NotAPublicKey)?;
        let algorithm =
            KeyAlgorithm::from_spki(&der).map_err(|e| KeyError::Unsupported(e.to_string()))?;
        // cosign signs with SHA-256 whatever the key; P-384 keys are left out because tools disagree
        // there (SHA-256 in cosign 2, SHA-384 in sigstore's later tables).
        let scheme = match algorithm {
            KeyAlgorithm::EcdsaP256 => SigningScheme::EcdsaP256Sha256,
            KeyAlgorithm::Ed25519 => SigningScheme::Ed25519,
            KeyAlgorithm::Rsa => SigningScheme::RsaPkcs1Sha256,
            other => return Err(KeyError::Unsupported(format!("{other:?}"))),
        };
        Ok(Self { der, scheme })
    }
    /// SHA-256 of the SubjectPublicKeyInfo: the name of the key in verdicts.
    pub fn fingerprint(&self) -> KeyDigest {
        KeyDigest::of(self.der.as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

/// A simple-signing signature that one key made about one image digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy {
    key: KeyDigest,
    docker_reference: String,
    image: ImageDigest,
}

impl SignedBy {
    /// Of the key, see [`PublicKey::fingerprint`].
    pub fn fingerprint(&self) -> KeyDigest {
        self.key
    }
    /// The name that was signed: cosign writes the repository, skopeo repository and tag.
    pub fn docker_reference(&self) -> &str {
        &self.docker_reference
    }
    pub fn image(&self) -> ImageDigest {
        self.image
    }
}

/// Verifies `signature_b64` over `payload` with `key`, and that the payload is about one of `want`.
/// An empty `want` refuses: there is nothing that the signature could be about.
pub fn verify_simple(
    key: &PublicKey,
    payload: &[u8],
    signature_b64: &str,
    want: &[ImageDigest],
) -> Result<SignedBy, SignatureRefusal> {
    if payload.len() > MAX_PAYLOAD {
        return Err(SignatureRefusal::TooLong(payload.len()));
    }
    let signature = BASE64
        .decode(signature_b64)
        .map_err(|_| SignatureRefusal::NotBase64)?;
    let signature = SignatureBytes::from_bytes(&signature);
    verify_signature(&key.der, payload, &signature, key.scheme)
        .map_err(|_| SignatureRefusal::WrongKey(key.fingerprint()))?;
    // Only now is the payload read.
    let parsed: Payload =
        serde_json::from_slice(payload).map_err(|e| SignatureRefusal::Malformed(e.to_string()))?;
    let critical = parsed.critical;
    if critical.kind != PAYLOAD_TYPE {
        return Err(SignatureRefusal::WrongType(
            critical.kind.chars().take(80).collect(),
        ));
    }
    let image = critical.image.docker_manifest_digest;
    if !want.contains(&image) {
        return Err(SignatureRefusal::OtherImage(image));
    }
    Ok(SignedBy {
        key: key.fingerprint(),
        docker_reference: critical.identity.docker_reference,
        image,
    })
}

/// The payload that a publisher signs about `image` under the name `docker_reference`.
pub fn simple_payload(
    docker_reference: &str,
    image: &ImageDigest,
) -> Result<Vec<u8>, NotCanonical> {
    canonical(&Payload {
        critical: Critical {
            identity: Identity {
                docker_reference: docker_reference.to_owned(),
            },
            image: SignedImage {
                docker_manifest_digest: *image,
            },
            kind: PAYLOAD_TYPE.to_owned(),
        },
        optional: None,
    })
}

/// `critical` is strict, as a reader must understand all of it (containers/image
/// `docs/containers-signature.5.md`, "critical"); `optional` is the signer's own.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    optional: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: ImageDigest,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::image_key;

    // Made by cosign 3.1.1; see tests/vectors/cosign/README.md.
    const COSIGN_PUB: &str = include_str!("../../tests/vectors/cosign/cosign.pub");
    const OTHER_PUB: &str = include_str!("../../tests/vectors/cosign/other.pub");
    const PAYLOAD: &[u8] = include_bytes!("../../tests/vectors/cosign/payload.json");
    const SIGNATURE: &str = include_str!("../../tests/vectors/cosign/signature.b64");
    const MANIFEST: &[u8] = include_bytes!("../../tests/vectors/cosign/manifest.json");

    fn verify(pem: &str, payload: &[u8], signature: &str) -> Result<SignedBy, SignatureRefusal> {
        let key = PublicKey::from_pem(pem).unwrap();
        verify_simple(&key, payload, signature, &[ImageDigest::of(MANIFEST)])
    }
    fn signature() -> &'static str {
        SIGNATURE.trim_end()
    }

    #[test]
    fn accept_cosign() {
        let signed = verify(COSIGN_PUB, PAYLOAD, signature()).unwrap();
        assert_eq!(signed.docker_reference(), "127.0.0.1:5511/demo");
        assert_eq!(signed.image(), ImageDigest::of(MANIFEST));
        assert_eq!(
            signed.fingerprint(),
            PublicKey::from_pem(COSIGN_PUB).unwrap().fingerprint()
        );
    }

    #[test]
    fn accept_own_payload() {
        let key = image_key();
        let image = ImageDigest::of(MANIFEST);
        let payload = simple_payload("localhost/demo", &image).unwrap();
        let signed = verify(&key.public_pem(), &payload, &key.sign_base64(&payload)).unwrap();
        assert_eq!(signed.docker_reference(), "localhost/demo");
    }

    #[test]
    fn accept_optional_claims_of_skopeo() {
        let key = image_key();
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"h/sk:v1"}},"image":{{"docker-manifest-digest":"{}"}},"type":"{PAYLOAD_TYPE}"}},"optional":{{"creator":"containers/image 5.39.1","timestamp":1795423070}}}}"#,
            ImageDigest::of(MANIFEST)
        );
        let signature = key.sign_base64(payload.as_bytes());
        assert!(verify(&key.public_pem(), payload.as_bytes(), &signature).is_ok());
    }

    #[test]
    fn refuse_wrong_key() {
        assert!(matches!(
            verify(OTHER_PUB, PAYLOAD, signature()),
            Err(SignatureRefusal::WrongKey(_))
        ));
    }

    #[test]
    fn refuse_wrong_digest() {
        let key = PublicKey::from_pem(COSIGN_PUB).unwrap();
        let signed_for = ImageDigest::of(MANIFEST);
        for want in [vec![], vec![ImageDigest::of(b"another")]] {
            assert_eq!(
                verify_simple(&key, PAYLOAD, signature(), &want),
                Err(SignatureRefusal::OtherImage(signed_for))
            );
        }
    }

    #[test]
    fn refuse_altered_payload_or_signature_in_any_bit() {
        for bit in 0..PAYLOAD.len() * 8 {
            let mut altered = PAYLOAD.to_vec();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(
                verify(COSIGN_PUB, &altered, signature()),
                Err(SignatureRefusal::WrongKey(_))
            ));
        }
        let raw = BASE64.decode(signature()).unwrap();
        for bit in 0..raw.len() * 8 {
            let mut altered = raw.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(COSIGN_PUB, PAYLOAD, &BASE64.encode(altered)).is_err());
        }
    }

    #[test]
    fn refuse_corrupt_base64() {
        for bad in [
            "%%%",
            "MEUC=IF",
            &signature()[1..],
            &format!("{}\n", signature()),
        ] {
            assert_eq!(
                verify(COSIGN_PUB, PAYLOAD, bad),
                Err(SignatureRefusal::NotBase64),
                "{bad:?}"
            );
        }
        assert!(matches!(
            verify(COSIGN_PUB, PAYLOAD, ""),
            Err(SignatureRefusal::WrongKey(_))
        ));
    }

    #[test]
    fn refuse_wrong_type_and_malformed_payloads() {
        let key = image_key();
        let good = String::from_utf8(PAYLOAD.to_vec()).unwrap();
        let judge = |payload: &str| {
            verify(
                &key.public_pem(),
                payload.as_bytes(),
                &key.sign_base64(payload.as_bytes()),
            )
        };
        assert!(judge(&good).is_ok());
        assert!(matches!(
            judge(&good.replace("cosign container", "atomic container")),
            Err(SignatureRefusal::WrongType(_))
        ));
        for bad in [
            "".to_owned(),
            "{}".to_owned(),
            format!("{good}x"),
            good.replace("\"critical\":{", "\"critical\":{\"extra\":1,"),
            good.replace("\"critical\":{", "\"critical\":{\"type\":\"x\","),
            good.replace("sha256:a6", "sha256:A6"),
            good.replace("\"optional\":null", "\"optional\":[]"),
        ] {
            assert!(
                matches!(judge(&bad), Err(SignatureRefusal::Malformed(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            judge(&" ".repeat(MAX_PAYLOAD + 1)),
            Err(SignatureRefusal::TooLong(_))
        ));
    }

    #[test]
    fn refuse_unusable_keys() {
        assert_eq!(
            PublicKey::from_pem("").unwrap_err(),
            KeyError::NotAPublicKey
        );
        assert_eq!(
            PublicKey::from_pem(&COSIGN_PUB.replace("PUBLIC", "PRIVATE")).unwrap_err(),
            KeyError::NotAPublicKey
        );
        let broken = COSIGN_PUB.replace("MFkw", "MFkx");
        assert!(matches!(
            PublicKey::from_pem(&broken),
            Err(KeyError::Unsupported(_))
        ));
    }
}
