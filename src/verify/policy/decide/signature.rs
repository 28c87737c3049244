//! Which of the stored signatures vouches for the image: under the rule's own authorities, and under
//! containers-policy.json(5) where the rule sends there.

use super::super::authority::{Authority, KeySource, LogRule, SignedWith};
use super::super::containers::{
    CONTAINERS_POLICY, ContainersPolicy, Data, Requirement, Signers, SigstoreSigned,
};
use super::super::scope::ImageName;
use super::super::{Rule, SignedIdentity};
use super::Material;
use super::no::{No, corrupt, no, not_understood, told, trusted};
use crate::id::UnixTime;
use crate::signature::{
    self, Demand, Identity, KeyLog, Need, Pattern, Proofs, PublicKey, Signed, Subject, TrustRoot,
};
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

const SIGN_IT: &str = "sign it with `attestctl image sign` (or cosign) and a key of the rule, then `attestctl import`";

/// The first signature that an authority of the rule made over this image under a name that the rule
/// takes: signer, digest and name are of one and the same signature.
pub(super) fn signature(rule: &Rule, material: &Material<'_>, now: UnixTime) -> Result<Signed, No> {
    let mut failures = Vec::new();
    for authority in &rule.authorities {
        let demand = demand(authority, material)?;
        match first(&demand, material, now, |signed| identity(rule, signed)) {
            Ok(signed) => return Ok(signed),
            Err(why) => failures.extend(why),
        }
    }
    Err(no(unsigned(material, &failures), SIGN_IT))
}

fn unsigned(material: &Material<'_>, failures: &[String]) -> String {
    match material.signatures.len() {
        0 => "it is not signed: the signature store has no signature for it".to_owned(),
        count => format!("none of its {count} signatures counts: {}", told(failures)),
    }
}

/// The first stored signature that satisfies the demand and has a name that fits.
fn first(
    demand: &Demand,
    material: &Material<'_>,
    now: UnixTime,
    name_fits: impl Fn(&Signed) -> Result<(), String>,
) -> Result<Signed, Vec<String>> {
    let digests = material.image.digests();
    let mut failures = Vec::new();
    for stored in &material.signatures {
        let signed = signature::verify(demand, stored, &digests, now).map_err(|e| e.to_string());
        match signed.and_then(|signed| name_fits(&signed).map(|()| signed)) {
            Ok(signed) => return Ok(signed),
            Err(why) => failures.push(why),
        }
    }
    Err(failures)
}

/// What an authority asks of a signature, with the keys and roots that it names.
pub(super) fn demand(authority: &Authority, material: &Material<'_>) -> Result<Demand, No> {
    match &authority.by {
        SignedWith::Key { keys, log } => {
            let mut public = Vec::new();
            for key in keys {
                let (place, pem) = match key {
                    KeySource::File(path) => (
                        path.as_path(),
                        Cow::Borrowed(trusted(material, "image key", path)?),
                    ),
                    KeySource::Inline(pem) => {
                        (Path::new(super::super::PATH), Cow::Borrowed(pem.as_bytes()))
                    }
                };
                public.push(public_key(&pem, place)?);
            }
            let log = match log {
                LogRule::NotAsked => KeyLog::NotAsked,
                LogRule::Demanded(root) => KeyLog::Demanded(trust_root(root, material)?),
            };
            Ok(Demand::Key { keys: public, log })
        }
        SignedWith::Keyless {
            root,
            identities,
            proofs,
        } => Ok(Demand::Keyless {
            root: trust_root(root, material)?,
            identities: identities.clone(),
            proofs: *proofs,
        }),
    }
}

fn public_key(pem: &[u8], place: &Path) -> Result<PublicKey, No> {
    let pem = std::str::from_utf8(pem).map_err(|e| corrupt("image key", place, &e))?;
    PublicKey::from_pem(pem).map_err(|e| corrupt("image key", place, &e))
}

fn trust_root(path: &Path, material: &Material<'_>) -> Result<Arc<TrustRoot>, No> {
    let json = trusted(material, "trusted root", path)?;
    TrustRoot::from_json(json)
        .map(Arc::new)
        .map_err(|e| corrupt("trusted root", path, &e))
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
            named(signed),
        )),
    }
}

fn named(signed: &Signed) -> String {
    match signed.docker_reference() {
        Some(name) => format!("`{name}`"),
        None => "no name".to_owned(),
    }
}

/// What containers-policy.json(5) says of the image: the signature that it asked for, or none where it
/// accepts anything.
pub(super) fn containers(
    rule: &Rule,
    material: &Material<'_>,
    now: UnixTime,
) -> Result<Option<Signed>, No> {
    let path = Path::new(CONTAINERS_POLICY);
    let bytes = trusted(material, "containers policy", path)?;
    let policy = ContainersPolicy::parse(bytes)
        .map_err(|e| not_understood("containers policy", path, &e))?;
    let name = material.image.name();
    let (scope, requirements) = policy.requirements_for(name);
    let refuse = |why: String| {
        no(
            format!("{CONTAINERS_POLICY}, scope `{scope}`: {why}"),
            format!(
                "change what {CONTAINERS_POLICY} asks of `{name}`, or sign the image so that it holds"
            ),
        )
    };
    let mut found = None;
    // All of them must hold, and there is at least one.
    for requirement in requirements {
        match requirement {
            Requirement::InsecureAcceptAnything => {}
            Requirement::Reject => return Err(refuse("it rejects this image".to_owned())),
            Requirement::Unsupported(what) => {
                return Err(refuse(format!("`{what}` is not supported")));
            }
            Requirement::SigstoreSigned(signed) => {
                let demand = sigstore(signed, material)?;
                let fits = |by: &Signed| signed_name(rule, signed, name, by);
                let signed = first(&demand, material, now, fits)
                    .map_err(|failures| refuse(unsigned(material, &failures)))?;
                found.get_or_insert(signed);
            }
        }
    }
    match requirements.is_empty() {
        true => Err(refuse("it has no requirement".to_owned())),
        false => Ok(found),
    }
}

fn signed_name(
    rule: &Rule,
    demand: &SigstoreSigned,
    name: &str,
    signed: &Signed,
) -> Result<(), String> {
    let fits = match (signed.docker_reference(), rule.signed_identity) {
        (Some(reference), _) => demand.identity.fits(name, reference),
        // A bundle is about no name: then the signer speaks for every repository, or does not count.
        (None, SignedIdentity::Any) => true,
        (None, SignedIdentity::Scope) => false,
    };
    match fits {
        true => Ok(()),
        false => Err(format!(
            "the signature by {} is for {}, which is not the signedIdentity",
            signed.signer(),
            named(signed)
        )),
    }
}

fn sigstore(signed: &SigstoreSigned, material: &Material<'_>) -> Result<Demand, No> {
    let mut rekor = Vec::new();
    for key in &signed.rekor {
        rekor.push(pem(key, "transparency log's key", material)?);
    }
    let logs: Vec<&str> = rekor.iter().map(String::as_str).collect();
    let root = |authorities: &[&str]| {
        TrustRoot::from_pems(authorities, &logs)
            .map(Arc::new)
            .map_err(|e| corrupt("fulcio or rekor material", Path::new(CONTAINERS_POLICY), &e))
    };
    match &signed.by {
        Signers::Keys(keys) => {
            let mut public = Vec::new();
            for key in keys {
                public.push(public_key(
                    pem(key, "image key", material)?.as_bytes(),
                    place(key),
                )?);
            }
            let log = match logs.is_empty() {
                true => KeyLog::NotAsked,
                false => KeyLog::Demanded(root(&[])?),
            };
            Ok(Demand::Key { keys: public, log })
        }
        Signers::Fulcio {
            ca,
            oidc_issuer,
            subject_email,
        } => {
            let ca = pem(ca, "certificate authority", material)?;
            let exact = |text: &str| {
                Pattern::exact(text)
                    .map_err(|e| corrupt("identity", Path::new(CONTAINERS_POLICY), &e))
            };
            Ok(Demand::Keyless {
                root: root(&[&ca])?,
                identities: vec![Identity {
                    issuer: exact(oidc_issuer)?,
                    subject: Subject::Email(exact(subject_email)?),
                }],
                proofs: Proofs {
                    log: Need::Demanded,
                    timestamp: Need::NotAsked,
                    // The format has no place for a certificate log's key.
                    sct: Need::NotAsked,
                },
            })
        }
    }
}

fn place(data: &Data) -> &Path {
    match data {
        Data::File(path) => path,
        Data::Inline(_) => Path::new(CONTAINERS_POLICY),
    }
}

fn pem(data: &Data, what: &str, material: &Material<'_>) -> Result<String, No> {
    let bytes = match data {
        Data::File(path) => trusted(material, what, path)?,
        Data::Inline(bytes) => bytes,
    };
    let text = std::str::from_utf8(bytes).map_err(|e| corrupt(what, place(data), &e))?;
    Ok(text.to_owned())
}
