//! in-toto statements (in-toto/attestation `spec/v1/statement.md`): what is said about which image.

use super::SignatureRefusal;
use super::refusal::clip;
use crate::digest::ImageDigest;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What cosign states when it signs an image (sigstore/cosign `specs/BUNDLE_SPEC.md`).
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const V1: &str = "https://in-toto.io/Statement/v1";
/// In attestations of cosign 1 and 2.
const V0_1: &str = "https://in-toto.io/Statement/v0.1";

/// What a statement says.
pub(super) struct Said {
    pub image: ImageDigest,
    pub predicate: serde_json::Value,
}

/// Reads a statement that must be of type `predicate_type` and about one of `want`.
pub(super) fn read(
    payload_type: &str,
    payload: &[u8],
    want: &[ImageDigest],
    predicate_type: &str,
) -> Result<Said, SignatureRefusal> {
    if payload_type != PAYLOAD_TYPE {
        return Err(SignatureRefusal::WrongStatement(clip(payload_type)));
    }
    let statement: Statement =
        serde_json::from_slice(payload).map_err(|e| SignatureRefusal::Malformed(e.to_string()))?;
    let known =
        statement.kind == V1 || (statement.kind == V0_1 && predicate_type != SIGN_PREDICATE);
    if !known {
        return Err(SignatureRefusal::WrongStatement(clip(statement.kind)));
    }
    if statement.predicate_type != predicate_type {
        return Err(SignatureRefusal::OtherPredicate {
            found: clip(statement.predicate_type),
            wanted: predicate_type.to_owned(),
        });
    }
    let subjects = statement.images()?;
    match subjects.iter().find(|subject| want.contains(subject)) {
        Some(image) => Ok(Said {
            image: *image,
            predicate: statement.predicate,
        }),
        None => Err(match subjects.first() {
            Some(other) => SignatureRefusal::OtherImage(*other),
            None => SignatureRefusal::Malformed("the statement has no subject".to_owned()),
        }),
    }
}

/// The statement that a publisher signs about `image`, byte for byte as cosign writes it.
pub fn sign_statement(image: &ImageDigest) -> Vec<u8> {
    format!(
        r#"{{"_type":"{V1}","subject":[{{"digest":{{"sha256":"{}"}},"annotations":{{}}}}],"predicateType":"{SIGN_PREDICATE}","predicate":{{}}}}"#,
        image.hex()
    )
    .into_bytes()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<StatedSubject>,
    pub(super) predicate_type: String,
    #[serde(default)]
    predicate: serde_json::Value,
}

impl Statement {
    /// The subjects that can be images; there are other algorithms, but no image of ours has them.
    pub(super) fn images(&self) -> Result<Vec<ImageDigest>, SignatureRefusal> {
        let hex = self.subject.iter().filter_map(|s| s.digest.get("sha256"));
        hex.map(|hex| {
            format!("sha256:{hex}")
                .parse()
                .map_err(|_| SignatureRefusal::Malformed(format!("subject digest {}", clip(hex))))
        })
        .collect()
    }
}

#[derive(Deserialize)]
struct StatedSubject {
    digest: BTreeMap<String, String>,
}
