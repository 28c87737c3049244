//! Stored signatures as Sigstore bundles: the old formats of cosign are put into the new one's terms,
//! so that one verifier judges them all.

use super::refusal::clip;
use super::statement::PAYLOAD_TYPE;
use super::{SignatureRefusal, SimpleSignature, StoredEnvelope, StoredSignature};
use crate::cms::certificates_from_pem;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sigstore_verify::types::{Bundle, DsseEnvelope, SignatureContent, pae};
use std::collections::BTreeMap;

/// The largest bundle that is looked at: attestations of scanners are long.
pub(super) const MAX_BUNDLE: usize = 16 << 20;

/// Annotations of a layer (sigstore/cosign, `pkg/oci/static/options.go`).
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

const V0_1: &str = "application/vnd.dev.sigstore.bundle+json;version=0.1";
const V0_2: &str = "application/vnd.dev.sigstore.bundle+json;version=0.2";
const V0_3: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A statement in its envelope, with what proves its signature.
pub(super) fn of_statement(stored: &StoredSignature) -> Result<Bundle, SignatureRefusal> {
    let bundle = match stored {
        StoredSignature::Bundle(bytes) => parse(bytes)?,
        StoredSignature::Envelope(StoredEnvelope {
            envelope,
            annotations,
        }) => {
            let envelope: Value = serde_json::from_slice(bounded(envelope)?).map_err(malformed)?;
            assemble(annotations, "dsseEnvelope", envelope)?
        }
        StoredSignature::Simple(_) => return Err(SignatureRefusal::NotAStatement),
    };
    match &bundle.content {
        SignatureContent::DsseEnvelope(_) => Ok(bundle),
        _ => Err(SignatureRefusal::NotAStatement),
    }
}

/// A simple-signing signature as the message signature that it is.
pub(super) fn of_simple(simple: &SimpleSignature) -> Result<Bundle, SignatureRefusal> {
    let message = json!({
        "messageDigest": {
            "algorithm": "SHA2_256",
            "digest": BASE64.encode(Sha256::digest(&simple.payload)),
        },
        "signature": simple.signature_b64,
    });
    assemble(&simple.annotations, "messageSignature", message)
}

fn parse(bytes: &[u8]) -> Result<Bundle, SignatureRefusal> {
    serde_json::from_slice(bounded(bytes)?).map_err(malformed)
}

fn bounded(bytes: &[u8]) -> Result<&[u8], SignatureRefusal> {
    match bytes.len() {
        0..=MAX_BUNDLE => Ok(bytes),
        length => Err(SignatureRefusal::TooLong(length)),
    }
}

fn malformed(why: impl ToString) -> SignatureRefusal {
    SignatureRefusal::Malformed(clip(why))
}

/// The annotation that cosign calls bundle: an entry of Rekor 1 with the log's promise.
#[derive(Deserialize)]
struct LogEntry {
    #[serde(rename = "SignedEntryTimestamp")]
    promise: String,
    #[serde(rename = "Payload")]
    payload: LogPayload,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogPayload {
    body: String,
    integrated_time: i64,
    log_index: u64,
    #[serde(rename = "logID")]
    log_id: String,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryBody {
    api_version: String,
    kind: String,
}
#[derive(Deserialize)]
struct Timestamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    token: String,
}

fn assemble(
    annotations: &BTreeMap<String, String>,
    kind: &str,
    content: Value,
) -> Result<Bundle, SignatureRefusal> {
    // An annotation that is there and empty is as good as none: cosign writes such.
    let annotation = |name| annotations.get(name).filter(|text| !text.is_empty());
    let mut material = match annotation(CERTIFICATE) {
        Some(leaf) => {
            let mut chain = certificates_from_pem(leaf.as_bytes()).map_err(malformed)?;
            if let Some(above) = annotation(CHAIN) {
                chain.extend(certificates_from_pem(above.as_bytes()).map_err(malformed)?);
            }
            let chain: Vec<_> = chain
                .iter()
                .map(|der| json!({ "rawBytes": BASE64.encode(der) }))
                .collect();
            json!({ "x509CertificateChain": { "certificates": chain } })
        }
        None => json!({ "publicKey": { "hint": "" } }),
    };
    let entry = annotation(LOG_ENTRY).map(|text| entry(text)).transpose()?;
    // Only the first version knows an entry with a promise and no proof.
    let version = if entry.is_some() { V0_1 } else { V0_2 };
    if let Some(fields) = material.as_object_mut() {
        fields.insert("tlogEntries".to_owned(), entry.into_iter().collect());
        if let Some(text) = annotation(TIMESTAMP) {
            let timestamp: Timestamp = serde_json::from_str(text).map_err(malformed)?;
            let tokens = json!({ "rfc3161Timestamps": [{ "signedTimestamp": timestamp.token }] });
            fields.insert("timestampVerificationData".to_owned(), tokens);
        }
    }
    let bundle = json!({ "mediaType": version, "verificationMaterial": material, kind: content });
    parse(bundle.to_string().as_bytes())
}

fn entry(text: &str) -> Result<Value, SignatureRefusal> {
    let entry: LogEntry = serde_json::from_str(text).map_err(malformed)?;
    let body = BASE64.decode(&entry.payload.body).map_err(malformed)?;
    let body: EntryBody = serde_json::from_slice(&body).map_err(malformed)?;
    let log = hex::decode(&entry.payload.log_id).map_err(malformed)?;
    Ok(json!({
        "logIndex": entry.payload.log_index.to_string(),
        "logId": { "keyId": BASE64.encode(log) },
        "kindVersion": { "kind": body.kind, "version": body.api_version },
        "integratedTime": entry.payload.integrated_time.to_string(),
        "inclusionPromise": { "signedEntryTimestamp": entry.promise },
        "canonicalizedBody": entry.payload.body,
    }))
}

/// What a publisher signs about a statement (DSSE, "Pre-Authentication Encoding").
pub fn to_sign(statement: &[u8]) -> Vec<u8> {
    pae(PAYLOAD_TYPE, statement)
}

/// The bundle of a statement that was signed with a key, as `cosign sign --key` makes it; `spki` is the
/// public key.
pub fn key_bundle(statement: &[u8], signature: &[u8], spki: &[u8]) -> Vec<u8> {
    json!({
        "mediaType": V0_3,
        "verificationMaterial": {
            "publicKey": { "hint": BASE64.encode(Sha256::digest(spki)) },
        },
        "dsseEnvelope": {
            "payload": BASE64.encode(statement),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{ "sig": BASE64.encode(signature) }],
        },
    })
    .to_string()
    .into_bytes()
}

/// The envelope of a bundle that has one.
pub(super) fn envelope(bundle: &Bundle) -> Result<&DsseEnvelope, SignatureRefusal> {
    match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => Ok(envelope),
        _ => Err(SignatureRefusal::NotAStatement),
    }
}
