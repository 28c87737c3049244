//! cosign "simple signing" payloads: which manifest (or index) digest goes by which repository name
//! (sigstore/cosign `specs/SIGNATURE_SPEC.md`).

use super::SignatureRefusal;
use super::refusal::clip;
use crate::canon::{NotCanonical, canonical};
use crate::digest::ImageDigest;
use serde::{Deserialize, Serialize};

/// `critical.type` of a payload (SIGNATURE_SPEC.md, "Simple Signing").
pub(super) const PAYLOAD_TYPE: &str = "cosign container image signature";
/// cosign's own payloads have some 240 bytes, skopeo's some 300.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What a payload says.
pub(super) struct Said {
    pub image: ImageDigest,
    pub docker_reference: String,
}

/// Reads a payload that must be about one of `want`.
pub(super) fn read(payload: &[u8], want: &[ImageDigest]) -> Result<Said, SignatureRefusal> {
    let parsed: Payload =
        serde_json::from_slice(payload).map_err(|e| SignatureRefusal::Malformed(e.to_string()))?;
    let critical = parsed.critical;
    if critical.kind != PAYLOAD_TYPE {
        return Err(SignatureRefusal::WrongType(clip(critical.kind)));
    }
    let image = critical.image.docker_manifest_digest;
    if !want.contains(&image) {
        return Err(SignatureRefusal::OtherImage(image));
    }
    Ok(Said {
        image,
        docker_reference: critical.identity.docker_reference,
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
pub(super) struct Payload {
    pub(super) critical: Critical,
    optional: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Critical {
    pub(super) identity: Identity,
    pub(super) image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Identity {
    pub(super) docker_reference: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SignedImage {
    pub(super) docker_manifest_digest: ImageDigest,
}
