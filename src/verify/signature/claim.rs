//! What a signature says of itself before anybody has verified it: enough to file it, proof of nothing.

use super::bundle::{envelope, of_statement};
use super::simple::Payload;
use super::statement::Statement;
use super::{SignatureRefusal, StoredSignature};
use crate::cms;
use crate::digest::ImageDigest;
use crate::policy::StoredList;
use crate::siglist::PREDICATE_TYPE;

/// Unproved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Manifests or indexes; a statement may name several.
    pub images: Vec<ImageDigest>,
    /// Of a statement.
    pub predicate_type: Option<String>,
    /// Of a simple signature.
    pub docker_reference: Option<String>,
}

impl StoredSignature {
    /// The signature list that an attestation carries, if it carries one: a statement and its detached
    /// signature, unproved.
    pub fn signature_list(&self) -> Option<StoredList> {
        let bytes = match self {
            Self::Simple(_) => return None,
            Self::Bundle(bytes) => bytes.clone(),
            Self::Envelope(_) => serde_json::to_vec(&of_statement(self).ok()?).ok()?,
        };
        if self.claim().ok()?.predicate_type.as_deref() != Some(PREDICATE_TYPE) {
            return None;
        }
        let (statement, signature) = cms::detach(&bytes).ok()?;
        Some(StoredList {
            statement: statement.into(),
            signature,
        })
    }

    pub fn claim(&self) -> Result<Claim, SignatureRefusal> {
        let malformed = |e: serde_json::Error| SignatureRefusal::Malformed(e.to_string());
        if let Self::Simple(simple) = self {
            let payload: Payload = serde_json::from_slice(&simple.payload).map_err(malformed)?;
            let critical = payload.critical;
            return Ok(Claim {
                images: vec![critical.image.docker_manifest_digest],
                predicate_type: None,
                docker_reference: Some(critical.identity.docker_reference),
            });
        }
        let bundle = of_statement(self)?;
        let payload = &envelope(&bundle)?.payload;
        let statement: Statement = serde_json::from_slice(payload.as_bytes()).map_err(malformed)?;
        let mut images = statement.images()?;
        images.sort_unstable();
        images.dedup();
        Ok(Claim {
            images,
            predicate_type: Some(statement.predicate_type),
            docker_reference: None,
        })
    }
}
