//! Which of the stored signatures vouches for the image.

use super::super::scope::ImageName;
use super::super::{Rule, SignedIdentity};
use super::Material;
use super::no::{No, corrupt, no, told, trusted};
use crate::id::UnixTime;
use crate::signature::{self, Demand, KeyLog, PublicKey, Signed};

/// The first signature, in the order of the rule's keys, that one of them made over this image under
/// a name that the rule takes: key, digest and name are of one and the same signature.
pub(super) fn signature(rule: &Rule, material: &Material<'_>, now: UnixTime) -> Result<Signed, No> {
    let mut keys = Vec::new();
    for path in &rule.keys {
        let bytes = trusted(material, "image key", path)?;
        let pem = std::str::from_utf8(bytes).map_err(|e| corrupt("image key", path, &e))?;
        keys.push(PublicKey::from_pem(pem).map_err(|e| corrupt("image key", path, &e))?);
    }
    let digests = material.image.digests();
    let mut failures = Vec::new();
    let demand = Demand::Key {
        keys,
        log: KeyLog::NotAsked,
    };
    for stored in &material.signatures {
        match signature::verify(&demand, stored, &digests, now) {
            Ok(signed) => match identity(rule, &signed) {
                Ok(()) => return Ok(signed),
                Err(why) => failures.push(why),
            },
            Err(why) => failures.push(why.to_string()),
        }
    }
    let reason = match material.signatures.len() {
        0 => "it is not signed: the signature store has no signature for it".to_owned(),
        count => format!("none of its {count} signatures counts: {}", told(&failures)),
    };
    Err(no(
        reason,
        "sign it with `attestctl image sign` (or cosign) and a key of the rule, then `attestctl import`",
    ))
}

/// The signed name is about the rule's repository.
fn identity(rule: &Rule, signed: &Signed) -> Result<(), String> {
    let (SignedIdentity::Scope, Some(repository)) = (rule.signed_identity, rule.scope.repository())
    else {
        return Ok(());
    };
    match signed.docker_reference().and_then(ImageName::of) {
        Some(name) if name.repository() == repository => Ok(()),
        _ => Err(format!(
            "the signature by {} is for {}, not for {repository} (a rule may say signed_identity = \"any\")",
            signed.signer(),
            match signed.docker_reference() {
                Some(name) => format!("`{name}`"),
                None => "no name".to_owned(),
            },
        )),
    }
}
