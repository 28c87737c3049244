//! The other envelope over the same bytes: DSSE in a Sigstore bundle that carries the signer's X.509
//! chain (secure-systems-lab/dsse `protocol.md`; sigstore/protobuf-specs `sigstore_bundle.proto`).
//!
//! What else a bundle may carry (log entries, timestamps) is not looked at: the user CA decides.

use super::envelope::{Certificates, MAX_CERTIFICATES, Signed};
use super::{BuildError, CmsRefusal, Content, MAX_SIGNATURE};
use crate::canon::canonical;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sigstore_verify::types::pae;

/// in-toto Attestation Framework, "Envelope".
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Bundles of every version, in both spellings.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// Of those that name a whole chain, the latest.
const V0_2: &str = "application/vnd.dev.sigstore.bundle+json;version=0.2";

/// Unknown members are others' business; the known ones may not come twice.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Dsse,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    #[serde(skip_serializing_if = "Option::is_none")]
    x509_certificate_chain: Option<Chain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Raw>,
}

#[derive(Serialize, Deserialize)]
struct Chain {
    certificates: Vec<Raw>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    raw_bytes: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse {
    /// Empty in a detached signature: the statement lies beside it.
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
}

fn refuse(why: impl ToString) -> CmsRefusal {
    CmsRefusal::Bundle(why.to_string().chars().take(200).collect())
}

/// Is this one, rather than a CMS signature (DER begins with 0x30)?
pub(super) fn is_bundle(signature: &[u8]) -> bool {
    signature.first() == Some(&b'{')
}

/// A signature by the first certificate of the bundle over exactly `content`; who that is has still to
/// be asked.
pub(super) fn open(content: &Content<'_>, bytes: &[u8]) -> Result<Signed, CmsRefusal> {
    if bytes.len() > MAX_SIGNATURE {
        return Err(CmsRefusal::TooLong(bytes.len()));
    }
    let bundle = parse(bytes)?;
    let envelope = &bundle.dsse_envelope;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(refuse(format!(
            "its payloadType is `{}`, not {PAYLOAD_TYPE}",
            envelope.payload_type
        )));
    }
    if !envelope.payload.is_empty() {
        super::same_content(
            &super::sha256(&decode("payload", &envelope.payload)?),
            content,
        )?;
    }
    let signature = match envelope.signatures.as_slice() {
        [one] => decode("signature", &one.sig)?,
        others => return Err(CmsRefusal::Signers(others.len())),
    };
    let certificates = certificates(&bundle.verification_material)?;
    let message = pae(PAYLOAD_TYPE, content.bytes);
    certificates.verify_any(&message, &signature)?;
    Ok(Signed {
        certificates,
        digest: Sha256::digest(&message).into(),
        signature,
    })
}

fn parse(bytes: &[u8]) -> Result<Bundle, CmsRefusal> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(refuse)?;
    match bundle.media_type.starts_with(BUNDLE) {
        true => Ok(bundle),
        false => Err(refuse(format!("its mediaType is `{}`", bundle.media_type))),
    }
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, CmsRefusal> {
    let decoded = BASE64.decode(text);
    decoded.map_err(|e| refuse(format!("its {what} is not base64: {e}")))
}

fn certificates(material: &Material) -> Result<Certificates, CmsRefusal> {
    let raw: Vec<&Raw> = match (&material.x509_certificate_chain, &material.certificate) {
        (Some(chain), None) => chain.certificates.iter().collect(),
        (None, Some(one)) => vec![one],
        _ => {
            return Err(refuse(
                "it names no certificate; one of x509CertificateChain and certificate is expected",
            ));
        }
    };
    if raw.is_empty() || raw.len() > MAX_CERTIFICATES {
        return Err(CmsRefusal::SignerCertificate(raw.len()));
    }
    let der = raw.iter().map(|one| decode("certificate", &one.raw_bytes));
    Certificates::of(der.collect::<Result<_, _>>()?)
}

/// The statement in a bundle, and the bundle without it: what stands beside a statement in a store and
/// in evidence, so that nothing is kept twice. Nothing is verified.
pub fn detach(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), CmsRefusal> {
    let mut bundle = parse(bytes)?;
    let statement = decode("payload", &bundle.dsse_envelope.payload)?;
    bundle.dsse_envelope.payload.clear();
    let detached = canonical(&bundle).map_err(refuse)?;
    Ok((statement, detached))
}

/// A bundle over `content` with the signer's chain. `sign` gets the bytes to sign (DSSE's
/// pre-authentication encoding) and returns an ECDSA P-256 signature in DER; the result is checked
/// against the certificate before it is handed out.
pub fn build_bundle<E>(
    content: &[u8],
    leaf_der: &[u8],
    intermediates: &[Vec<u8>],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, BuildError<E>> {
    let message = pae(PAYLOAD_TYPE, content);
    let signature = sign(&message).map_err(BuildError::Sign)?;
    let mut chain = vec![leaf_der.to_vec()];
    chain.extend_from_slice(intermediates);
    let certificates =
        Certificates::of(chain.clone()).map_err(|e| BuildError::Certificate(e.to_string()))?;
    if certificates.verify_any(&message, &signature).is_err() {
        return Err(BuildError::OtherKey);
    }
    let raw = |der: &Vec<u8>| Raw {
        raw_bytes: BASE64.encode(der),
    };
    let bundle = Bundle {
        media_type: V0_2.to_owned(),
        verification_material: Material {
            x509_certificate_chain: Some(Chain {
                certificates: chain.iter().map(raw).collect(),
            }),
            certificate: None,
        },
        dsse_envelope: Dsse {
            payload: BASE64.encode(content),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![Signature {
                sig: BASE64.encode(signature),
            }],
        },
    };
    canonical(&bundle).map_err(|e| BuildError::Encoding(e.to_string()))
}

#[cfg(test)]
#[path = "dsse_tests.rs"]
mod tests;
