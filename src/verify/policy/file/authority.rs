//! Authorities, and what they must have stated.

use super::super::authority::need;
use super::super::{
    AttestationDemand, Authority, KeySource, LogRule, PolicyError, ScanDemand, SignedWith, Terms,
};
use super::wire::{AttestationWire, AuthorityWire, IdentityWire, KeyWire, RuleOwn, ScanWire};
use super::{absolute, not_empty};
use crate::signature::{Identity, Need, Pattern, PatternError, Proofs, PublicKey, Subject};
use std::path::PathBuf;

/// A rule's own signers; none, if containers-policy.json(5) is to decide alone.
pub(super) fn signers(own: &mut RuleOwn, terms: &Terms) -> Result<Vec<Authority>, PolicyError> {
    let keys = std::mem::take(&mut own.keys);
    absolute(terms, &keys)?;
    let mut authorities = Vec::new();
    if !keys.is_empty() {
        authorities.push(Authority {
            name: "keys".to_owned(),
            by: SignedWith::Key {
                keys: keys.into_iter().map(KeySource::File).collect(),
                log: LogRule::NotAsked,
            },
        });
    }
    for wire in std::mem::take(&mut own.authorities) {
        authorities.push(authority(wire, terms)?);
    }
    let nobody = authorities.is_empty() && !own.containers_policy;
    not_empty(terms, "keys", nobody)?;
    Ok(authorities)
}

pub(super) fn attestation(
    wire: AttestationWire,
    terms: &Terms,
) -> Result<AttestationDemand, PolicyError> {
    not_empty(terms, "predicateType", wire.predicate_type.is_empty())?;
    Ok(AttestationDemand {
        name: wire.name,
        predicate_type: wire.predicate_type,
        authority: authority(wire.authority, terms)?,
    })
}

pub(super) fn scan(wire: ScanWire, terms: &Terms) -> Result<ScanDemand, PolicyError> {
    Ok(ScanDemand {
        authority: authority(wire.authority, terms)?,
        max_age_days: wire.max_age_days,
        max_severity: wire.max_severity,
        except: wire.except.into_iter().collect(),
    })
}

fn authority(wire: AuthorityWire, terms: &Terms) -> Result<Authority, PolicyError> {
    let rule = || terms.name.clone();
    let conflict = |field, other| PolicyError::Conflict {
        rule: rule(),
        field,
        other,
    };
    let root = |root: Option<PathBuf>, why| {
        let root = root.ok_or_else(|| PolicyError::Missing {
            rule: rule(),
            field: "trusted_root",
            why,
        })?;
        absolute(terms, [&root])?;
        Ok(root)
    };
    let by = match (wire.key, wire.keyless) {
        (Some(key), None) => {
            if wire.rfc3161timestamp == Some(true) {
                return Err(conflict("rfc3161timestamp", "a key, which has no end"));
            }
            let log = match wire.ctlog {
                Some(true) => LogRule::Demanded(root(
                    wire.trusted_root,
                    "it names the logs that `ctlog = true` asks for",
                )?),
                _ if wire.trusted_root.is_some() => {
                    return Err(conflict("trusted_root", "a key without `ctlog = true`"));
                }
                _ => LogRule::NotAsked,
            };
            SignedWith::Key {
                keys: vec![key_source(key, terms)?],
                log,
            }
        }
        (None, Some(keyless)) => {
            not_empty(terms, "identities", keyless.identities.is_empty())?;
            let identities = keyless.identities.into_iter();
            let timestamp = need(wire.rfc3161timestamp.unwrap_or(false));
            let log = need(wire.ctlog.unwrap_or(true));
            if (log, timestamp) == (Need::NotAsked, Need::NotAsked) {
                return Err(conflict(
                    "ctlog",
                    "no rfc3161timestamp: a certificate needs one of the two for its time",
                ));
            }
            SignedWith::Keyless {
                root: root(
                    wire.trusted_root,
                    "it names the certificate authorities and logs that are trusted",
                )?,
                identities: identities
                    .map(|wire| identity(wire, terms))
                    .collect::<Result<_, _>>()?,
                proofs: Proofs {
                    log,
                    timestamp,
                    sct: need(!keyless.ignore_sct),
                },
            }
        }
        _ => {
            return Err(conflict(
                "key",
                "keyless; an authority is exactly one of the two",
            ));
        }
    };
    Ok(Authority {
        name: wire.name,
        by,
    })
}

fn key_source(wire: KeyWire, terms: &Terms) -> Result<KeySource, PolicyError> {
    let wrong = |why: String| PolicyError::Wrong {
        rule: terms.name.clone(),
        field: "key",
        why,
    };
    match (wire.path, wire.data) {
        (Some(path), None) => {
            absolute(terms, [&path])?;
            Ok(KeySource::File(path))
        }
        (None, Some(pem)) => match PublicKey::from_pem(&pem) {
            Ok(_) => Ok(KeySource::Inline(pem)),
            Err(why) => Err(wrong(why.to_string())),
        },
        _ => Err(wrong(
            "exactly one of `path` and `data` must be given".to_owned(),
        )),
    }
}

fn identity(wire: IdentityWire, terms: &Terms) -> Result<Identity, PolicyError> {
    let pattern = |field: &'static str, exact: Option<String>, regexp: Option<String>| {
        let wrong = |why: String| PolicyError::Wrong {
            rule: terms.name.clone(),
            field,
            why,
        };
        let read: Result<Pattern, PatternError> = match (exact, regexp) {
            (Some(text), None) => Pattern::exact(&text),
            (None, Some(text)) => Pattern::regexp(&text),
            _ => {
                return Err(wrong(format!(
                    "exactly one of `{field}` and `{field}RegExp` must be given"
                )));
            }
        };
        read.map_err(|why| wrong(why.to_string()))
    };
    Ok(Identity {
        issuer: pattern("issuer", wire.issuer, wire.issuer_regexp)?,
        subject: Subject::Any(pattern("subject", wire.subject, wire.subject_regexp)?),
    })
}
