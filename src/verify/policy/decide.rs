//! The decision: signature, list and launch profile, each against the rule for the image's name.

use super::admission::{Admission, VerifiedImage};
use super::{
    Policy, Refusal, RevocationRule, Rule, SignedIdentity, StoredList, StoredSignature, TrustFiles,
};
use crate::cms::{CmsRefusal, Revocation, certificates_from_pem};
use crate::digest::ImageDigest;
use crate::id::UnixTime;
use crate::image::Image;
use crate::policy::scope::ImageName;
use crate::profile::{JudgedProfile, LaunchProfile, judge};
use crate::siglist::{Authentic, List, ListRefusal, ListRule, VerifiedList};
use crate::signature::{self, Demand, KeyLog, PublicKey, Signed};
use der::Decode;
use std::fmt::Display;
use std::path::Path;
use x509_cert::crl::CertificateList;

/// So many of the failed candidates are told; the rest is counted.
const MAX_TOLD: usize = 4;

/// Everything that the decision looks at; bytes from the store and from trust files, unjudged.
#[derive(Debug, Clone)]
pub struct Material<'a> {
    pub image: &'a Image,
    pub signatures: Vec<StoredSignature>,
    pub lists: Vec<StoredList>,
    pub trust: TrustFiles,
}

impl<'a> Material<'a> {
    /// Collects what `policy` needs to know about `image`. `read` reads a trust file (a failure
    /// becomes a reason of the refusal); `signatures` and `lists` ask the signature store about one
    /// digest (a failure ends the gathering).
    pub fn gather<R: Display, E>(
        policy: &Policy,
        image: &'a Image,
        mut read: impl FnMut(&Path) -> Result<Vec<u8>, R>,
        mut signatures: impl FnMut(&ImageDigest) -> Result<Vec<StoredSignature>, E>,
        mut lists: impl FnMut(&ImageDigest) -> Result<Vec<StoredList>, E>,
    ) -> Result<Self, E> {
        let mut material = Self {
            image,
            signatures: Vec::new(),
            lists: Vec::new(),
            trust: TrustFiles::default(),
        };
        if let Some(rule) = policy.rule_for(image.name()) {
            for path in rule.files() {
                let content = read(path).map_err(|e| e.to_string());
                material.trust.insert(path, content);
            }
        }
        for digest in image.digests() {
            for signature in signatures(&digest)? {
                if !material.signatures.contains(&signature) {
                    material.signatures.push(signature);
                }
            }
            for list in lists(&digest)? {
                if !material.lists.contains(&list) {
                    material.lists.push(list);
                }
            }
        }
        Ok(material)
    }
}

/// May this image run with this profile? The only source of an [`Admission`].
pub fn decide(
    policy: &Policy,
    material: &Material<'_>,
    profile: &LaunchProfile,
    now: UnixTime,
) -> Result<Admission, Refusal> {
    let image = material.image;
    let mut refusal = Refusal {
        image: image.name().to_owned(),
        digest: image.manifest_digest(),
        rule: None,
        reasons: Vec::new(),
        hint: String::new(),
    };
    let Some(rule) = policy.rule_for(image.name()) else {
        refusal.reasons.push("no rule is for this image".to_owned());
        refusal.hint = "if it may run, add a [[rule]] with its name as scope".to_owned();
        return Err(refusal);
    };
    refusal.rule = Some(rule.name.as_str().into());

    // All three are judged even if the first fails: one refusal tells everything.
    let signed = signature(rule, material, now);
    let listed = list(rule, material, now);
    let judged = launch(rule, profile);
    match (signed, listed, judged) {
        (Ok(signed), Ok((list, stored)), Ok(judged)) => Ok(Admission::new(
            policy,
            rule,
            VerifiedImage::new(image.clone(), signed),
            list,
            stored,
            judged,
            now,
        )),
        (signed, listed, judged) => {
            let mut hints = Vec::new();
            let parts = [signed.err(), listed.err(), judged.err()];
            for No { reason, hint } in parts.into_iter().flatten() {
                refusal.reasons.push(reason);
                if !hints.contains(&hint) {
                    hints.push(hint);
                }
            }
            refusal.hint = hints.join("; ");
            Err(refusal)
        }
    }
}

/// One reason, and what to do about it.
struct No {
    reason: String,
    hint: String,
}

fn no(reason: impl Into<String>, hint: impl Into<String>) -> No {
    No {
        reason: reason.into(),
        hint: hint.into(),
    }
}

/// A trust file's content; what is missing or unreadable refuses.
fn trusted<'m>(material: &'m Material<'_>, what: &str, path: &Path) -> Result<&'m [u8], No> {
    let file = path.display();
    material.trust.get(path).map_err(|why| {
        no(
            format!("cannot read the {what} {file}: {why}"),
            format!("put the {what} in place at {file}"),
        )
    })
}

fn corrupt(what: &str, path: &Path, why: &dyn Display) -> No {
    let file = path.display();
    no(
        format!("the {what} {file} is unusable: {why}"),
        format!("put a good {what} in place at {file}"),
    )
}

/// The first signature, in the order of the rule's keys, that one of them made over this image under
/// a name that the rule takes: key, digest and name are of one and the same signature.
fn signature(rule: &Rule, material: &Material<'_>, now: UnixTime) -> Result<Signed, No> {
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

/// The rule's list with the highest serial, if that one is in force. A list that has run out, or
/// whose signer's certificate has, still outranks older ones: time does not roll a list back.
fn list(
    rule: &Rule,
    material: &Material<'_>,
    now: UnixTime,
) -> Result<(VerifiedList, StoredList), No> {
    let roots = certificates(rule, material)?;
    let revocation = revocation(rule, material)?;
    let wanted = ListRule {
        roots: &roots,
        tenant: &rule.tenant,
        name: &rule.list,
        min_serial: rule.min_serial,
        revocation: &revocation,
    };
    let title = format!("list `{}` of {}", rule.list, rule.tenant);
    let hint =
        "make one with `attestctl list create` and `attestctl list sign`, then `attestctl import`";

    let digests = material.image.digests();
    let (mut candidates, mut failures) = (Vec::new(), Vec::new());
    for stored in &material.lists {
        match candidate(stored, &wanted, &digests, now) {
            Ok(candidate) => candidates.push(candidate),
            Err(why) => failures.push(why.to_string()),
        }
    }
    let Some(highest) = candidates.iter().map(|c| c.authentic.list().serial()).max() else {
        let reason = match failures.len() {
            0 => format!("no {title} is in the signature store for it"),
            count => format!(
                "no {title}: none of its {count} lists counts: {}",
                told(&failures)
            ),
        };
        return Err(no(reason, hint));
    };
    candidates.retain(|c| c.authentic.list().serial() == highest);
    // The same statement signed twice is one list: the signature that still stands is taken, and of
    // two such the one with the lower certificate digest, so that the order in the store is no matter.
    candidates.sort_by_key(|c| (c.lapsed.is_some(), c.authentic.signer().certificate()));
    let tie = {
        let mut digests: Vec<_> = candidates
            .iter()
            .map(|c| c.authentic.list().digest())
            .collect();
        digests.sort();
        digests.dedup();
        digests
    };
    if tie.len() > 1 {
        let digests: Vec<String> = tie.iter().map(ToString::to_string).collect();
        return Err(no(
            format!(
                "{} different versions of {title} have the highest serial {highest}: {}",
                tie.len(),
                told(&digests)
            ),
            "sign one with a higher serial, then `attestctl import`",
        ));
    }
    let Some(chosen) = candidates.into_iter().next() else {
        return Err(no(format!("no {title}"), hint));
    };
    if let Some(why) = chosen.lapsed {
        return Err(no(format!("{title}, serial {highest}: {why}"), hint));
    }
    let list = chosen
        .authentic
        .in_force(&wanted, now)
        .map_err(|why| no(format!("{title}, serial {highest}: {why}"), hint))?;
    Ok((list, chosen.stored.clone()))
}

struct Candidate<'m> {
    authentic: Authentic,
    stored: &'m StoredList,
    /// Its signer's chain was good when the list was issued and has run out since.
    lapsed: Option<ListRefusal>,
}

fn candidate<'m>(
    stored: &'m StoredList,
    wanted: &ListRule<'_>,
    images: &[ImageDigest],
    now: UnixTime,
) -> Result<Candidate<'m>, ListRefusal> {
    let verify = |at| Authentic::verify(&stored.statement, &stored.cms, wanted, images, at);
    match verify(now) {
        Ok(authentic) => Ok(Candidate {
            authentic,
            stored,
            lapsed: None,
        }),
        Err(why @ ListRefusal::Signature(CmsRefusal::Expired { .. })) => {
            // The time is the list's own word, which is enough to outrank and never to admit.
            let issued = List::parse(&stored.statement)?.issued_at();
            match verify(issued) {
                Ok(authentic) => Ok(Candidate {
                    authentic,
                    stored,
                    lapsed: Some(why),
                }),
                Err(_) => Err(why),
            }
        }
        Err(why) => Err(why),
    }
}

fn certificates(rule: &Rule, material: &Material<'_>) -> Result<Vec<Vec<u8>>, No> {
    let mut roots = Vec::new();
    for path in &rule.user_ca {
        let pem = trusted(material, "user CA", path)?;
        roots.extend(certificates_from_pem(pem).map_err(|e| corrupt("user CA", path, &e))?);
    }
    Ok(roots)
}

/// CRLs in DER or PEM (RFC 7468, section 6).
fn revocation(rule: &Rule, material: &Material<'_>) -> Result<Revocation, No> {
    let RevocationRule::Crls(paths) = &rule.revocation else {
        return Ok(Revocation::Unchecked);
    };
    let mut crls = Vec::new();
    for path in paths {
        let bytes = trusted(material, "revocation list", path)?;
        let der = match bytes.starts_with(b"-----BEGIN") {
            false => bytes.to_vec(),
            true => match der::pem::decode_vec(bytes) {
                Ok(("X509 CRL", der)) => der,
                Ok((label, _)) => {
                    let why = format!("it is a `{label}`, not an `X509 CRL`");
                    return Err(corrupt("revocation list", path, &why));
                }
                Err(e) => return Err(corrupt("revocation list", path, &e)),
            },
        };
        CertificateList::from_der(&der).map_err(|e| corrupt("revocation list", path, &e))?;
        crls.push(der);
    }
    Ok(Revocation::Crls(crls))
}

fn launch(rule: &Rule, profile: &LaunchProfile) -> Result<JudgedProfile, No> {
    judge(profile, &rule.launch).map_err(|objections| {
        let texts: Vec<String> = objections.iter().map(ToString::to_string).collect();
        no(
            format!("the container may not have: {}", texts.join(", ")),
            "start it without, or name it under `allow` of the rule's [rule.launch]",
        )
    })
}

/// The first few, and how many more there are.
fn told(texts: &[String]) -> String {
    let mut distinct: Vec<&str> = Vec::new();
    for text in texts {
        if !distinct.contains(&text.as_str()) {
            distinct.push(text);
        }
    }
    let told = distinct
        .iter()
        .take(MAX_TOLD)
        .copied()
        .collect::<Vec<_>>()
        .join("; ");
    match distinct.len().saturating_sub(MAX_TOLD) {
        0 => told,
        more => format!("{told}; and {more} more"),
    }
}
