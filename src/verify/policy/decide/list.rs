//! Which of the stored signature lists counts.

use super::super::{ListDemand, RevocationRule, StoredList};
use super::Material;
use super::no::{No, corrupt, no, told, trusted};
use crate::cms::{CmsRefusal, Revocation, certificates_from_pem, revocation_list};
use crate::digest::ImageDigest;
use crate::id::UnixTime;
use crate::siglist::{Authentic, List, ListRefusal, ListRule, VerifiedList};

/// The rule's list with the highest serial, if that one is in force. A list that has run out, or
/// whose signer's certificate has, still outranks older ones: time does not roll a list back.
pub(super) fn list(
    demand: &ListDemand,
    material: &Material<'_>,
    now: UnixTime,
) -> Result<(VerifiedList, StoredList), No> {
    let roots = certificates(demand, material)?;
    let revocation = revocation(demand, material)?;
    let wanted = ListRule {
        roots: &roots,
        tenant: &demand.tenant,
        name: &demand.name,
        min_serial: demand.min_serial,
        revocation: &revocation,
    };
    let title = format!("list `{}` of {}", demand.name, demand.tenant);
    let hint =
        "make one with `attestctl list create` and `attestctl list sign`, then `attestctl import`";

    let digests = material.image.digests();
    let (mut candidates, mut failures) = (Vec::new(), Vec::new());
    for stored in &material.lists {
        match candidate(stored, &wanted, &digests, now) {
            Ok(candidate) => keep_highest(&mut candidates, candidate),
            Err(why) => failures.push(why.to_string()),
        }
    }
    let Some(highest) = candidates.first().map(Candidate::serial) else {
        let reason = match failures.len() {
            0 => format!("no {title} is in the signature store for it"),
            count => format!(
                "no {title}: none of its {count} lists counts: {}",
                told(&failures)
            ),
        };
        return Err(no(reason, hint));
    };
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

impl Candidate<'_> {
    fn serial(&self) -> u64 {
        self.authentic.list().serial()
    }
}

/// Of lists that may be long, one is held at a time, or those that share the highest serial.
fn keep_highest<'m>(candidates: &mut Vec<Candidate<'m>>, new: Candidate<'m>) {
    let highest = candidates.first().map_or(0, Candidate::serial);
    if new.serial() > highest {
        candidates.clear();
    }
    if new.serial() >= highest {
        candidates.push(new);
    }
}

fn candidate<'m>(
    stored: &'m StoredList,
    wanted: &ListRule<'_>,
    images: &[ImageDigest],
    now: UnixTime,
) -> Result<Candidate<'m>, ListRefusal> {
    let verify = |at| Authentic::verify(&stored.statement, &stored.signature, wanted, images, at);
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

fn certificates(demand: &ListDemand, material: &Material<'_>) -> Result<Vec<Vec<u8>>, No> {
    let mut roots = Vec::new();
    for path in &demand.user_ca {
        let pem = trusted(material, "user CA", path)?;
        roots.extend(certificates_from_pem(pem).map_err(|e| corrupt("user CA", path, &e))?);
    }
    Ok(roots)
}

fn revocation(demand: &ListDemand, material: &Material<'_>) -> Result<Revocation, No> {
    let RevocationRule::Crls(paths) = &demand.revocation else {
        return Ok(Revocation::Unchecked);
    };
    let mut crls = Vec::new();
    for path in paths {
        let bytes = trusted(material, "revocation list", path)?;
        let der = revocation_list(bytes).map_err(|e| corrupt("revocation list", path, &e))?;
        crls.push(der);
    }
    Ok(Revocation::Crls(crls))
}
