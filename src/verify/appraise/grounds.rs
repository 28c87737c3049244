//! Checks of why the container was let through: what it is made of, who vouches for its programs, and
//! what its mounts may do. Whatever is less than a signed image under a signed list needs a waiver of
//! its own name.

use super::facts::Facts;
use super::{Answer, Problem, files, ok, refused, waivable};
use crate::check::Waiver;
use crate::event::{Event, Grounds, MountsRule, NoImage, NoList, Origin, ProgramsRule, Verdict};

pub(super) fn measured<'a>(facts: &'a Facts<'_>) -> Result<&'a Grounds, Problem> {
    facts.log()?.one("attestrun.grounds", |event| match event {
        Event::Grounds(grounds) => Some(grounds),
        _ => None,
    })
}

pub(super) fn origin(facts: &Facts<'_>) -> Answer {
    let (grounds, claim) = (measured(facts)?, &facts.record()?.claim);
    let origin = grounds.origin;
    if claim.image.is_none() {
        let none = no_image(facts)?;
        let what = format!("rootfs {} belongs to no image", none.rootfs);
        return match origin {
            Origin::Bundle => waivable(facts, Waiver::NoImage, Problem::Refused(what)),
            Origin::Build => waivable(
                facts,
                Waiver::Build,
                Problem::Refused("a build, on no image".to_owned()),
            ),
            Origin::Image | Origin::Sandbox => {
                refused(format!("measured as `{origin}`, and {what}"))
            }
        };
    }
    let image = facts.measured_image()?;
    let vouched = match &image.verdict {
        Verdict::Key { fingerprint, .. } => Some(format!("signed by key {fingerprint}")),
        Verdict::Keyless {
            subject, issuer, ..
        } => Some(format!("signed by {subject} of {issuer}")),
        Verdict::Named {} | Verdict::Unsigned {} => None,
    };
    match (origin, vouched, &image.verdict) {
        (Origin::Image, Some(by), _) => ok(format!("image, {by}")),
        (Origin::Image, None, Verdict::Unsigned {}) => {
            let what = "nobody that counts signed the image".to_owned();
            waivable(facts, Waiver::UnsignedImage, Problem::Refused(what))
        }
        (Origin::Sandbox, None, Verdict::Named {}) => {
            let what = "a pod's sandbox: the policy names image and arguments".to_owned();
            waivable(facts, Waiver::Sandbox, Problem::Refused(what))
        }
        (Origin::Build, None, Verdict::Unsigned {}) => {
            let what = format!("a build, on image {}", image.manifest);
            waivable(facts, Waiver::Build, Problem::Refused(what))
        }
        _ => refused(format!(
            "measured as `{origin}`, which the image's verdict contradicts"
        )),
    }
}

/// What a record without an image must be accompanied by.
pub(super) fn no_image<'a>(facts: &'a Facts<'_>) -> Result<&'a NoImage, Problem> {
    facts.log()?.one("attestrun.no-image", |event| match event {
        Event::NoImage(none) => Some(none),
        _ => None,
    })
}

pub(super) fn programs(facts: &Facts<'_>) -> Answer {
    let (grounds, claim) = (measured(facts)?, &facts.record()?.claim);
    let programs = grounds.programs;
    let listed = programs == ProgramsRule::Listed;
    if listed == claim.siglist.is_none() {
        return refused(format!(
            "programs are `{programs}`, the record has list {}",
            claim.siglist
        ));
    }
    if listed {
        return ok(format!("those of list {}", claim.siglist));
    }
    let none = facts.log()?.one("attestrun.no-list", |event| match event {
        Event::NoList(none) => Some(none),
        _ => None,
    })?;
    let NoList {
        programs: said,
        rule,
    } = none;
    if *said != programs {
        return refused(format!(
            "programs are `{programs}` in PCR 5, and `{said}` in PCR 7"
        ));
    }
    let by = format!("rule `{rule}`");
    match programs {
        ProgramsRule::Args if grounds.origin == Origin::Sandbox => {
            let what = format!("no list: the one command that {by} spells out");
            waivable(facts, Waiver::Sandbox, Problem::Refused(what))
        }
        ProgramsRule::Named => {
            let what = format!("no list: programs that {by} names by digest");
            waivable(facts, Waiver::NoList, Problem::Refused(what))
        }
        ProgramsRule::Any => {
            let what = format!("no list: any program may run under {by}");
            waivable(facts, Waiver::AnyProgram, Problem::Refused(what))
        }
        ProgramsRule::Args | ProgramsRule::Listed => {
            refused(format!("programs are `{programs}`, which is for sandboxes"))
        }
    }
}

/// The answer of a check about lists where the record says that there is none.
pub(super) fn without_list(facts: &Facts<'_>) -> Option<Answer> {
    let none = facts
        .record
        .as_ref()
        .is_ok_and(|r| r.claim.siglist.is_none());
    none.then(|| programs(facts))
}

pub(super) fn mounts(facts: &Facts<'_>) -> Answer {
    let rule = measured(facts)?.mounts;
    match rule {
        MountsRule::Programs | MountsRule::Measure => files::mounts(facts, rule),
        MountsRule::Any => {
            files::mounts(facts, rule)?;
            let what = "mounts may hide programs of the image".to_owned();
            waivable(facts, Waiver::AnyMounts, Problem::Refused(what))
        }
    }
}
