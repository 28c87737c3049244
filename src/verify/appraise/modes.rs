//! Checks of policy, modes, programs that measure, root file system, tier, faults and age.

use super::facts::Facts;
use super::files;
use super::grounds;
use super::log::is_empty;
use super::{Answer, Problem, all_of, ok, or_refuse, refused, waivable};
use crate::check::Waiver;
use crate::event::{
    AUDITED, Enforce, Enter, EnterMode, EnterVerdict, Event, Inside, Latitude, Policy, RootfsCheck,
    TierName,
};
use crate::pcr;

fn measured_policy<'a>(facts: &'a Facts<'_>) -> Result<&'a Policy, Problem> {
    facts.log()?.one("attestrun.policy", |event| match event {
        Event::Policy(policy) => Some(policy),
        _ => None,
    })
}

pub(super) fn policy(facts: &Facts<'_>) -> Answer {
    let claim = &facts.record()?.claim;
    let mut problems = Vec::new();
    if !facts.expect.policies.contains(&claim.policy) {
        problems.push(format!("policy {} is not an expected one", claim.policy));
    }
    let measured = or_refuse(measured_policy(facts), &problems)?;
    // The entry that let the image be, or its absence.
    let judged_by = match claim.image.is_none() {
        false => or_refuse(facts.measured_image(), &problems)?.rule.as_str(),
        true => or_refuse(grounds::no_image(facts), &problems)?
            .rule
            .as_str(),
    };
    if measured.digest != claim.policy {
        problems.push(format!(
            "measured policy {}, the record has {}",
            measured.digest, claim.policy
        ));
    }
    if measured.rule != judged_by {
        problems.push(format!(
            "rule `{}` admitted, the image was judged by `{judged_by}`",
            measured.rule
        ));
    }
    all_of(
        problems,
        format!("{}, rule `{}`", claim.policy, measured.rule),
    )
}

pub(super) fn mode(facts: &Facts<'_>) -> Answer {
    let (claim, measured) = (&facts.record()?.claim, measured_policy(facts)?);
    let allowed = facts.expect.enter;
    let mut problems = Vec::new();
    if measured.enforce.name() != claim.mode {
        problems.push(format!(
            "measured mode {}, the record has {}",
            measured.enforce, claim.mode
        ));
    }
    if measured.enter > allowed {
        problems.push(format!(
            "enter is `{}`, at most `{allowed}` is accepted",
            measured.enter
        ));
    }
    let audited = &or_refuse(grounds::measured(facts), &problems)?.audited;
    if measured.enforce == Enforce::Enforce && !audited.is_empty() {
        problems.push(format!(
            "the mode is enforce, and yet let through: {}",
            audited.join("; ")
        ));
    }
    if !problems.is_empty() {
        return refused(problems.join("; "));
    }
    match measured.enforce {
        Enforce::Enforce => ok(format!("enforce, enter {}", measured.enter)),
        Enforce::Audit => {
            let what = match audited.as_slice() {
                [] => "the policy was only recorded, not enforced".to_owned(),
                some => format!(
                    "the policy was only recorded, not enforced; let through: {}",
                    some.join("; ")
                ),
            };
            waivable(facts, Waiver::Audit, Problem::Refused(what))
        }
    }
}

pub(super) fn runtime(facts: &Facts<'_>) -> Answer {
    let claim = &facts.record()?.claim;
    let mut problems = Vec::new();
    for (name, expected, recorded) in [
        ("attestrun", &facts.expect.runtimes, claim.runtime),
        ("swtpm", &facts.expect.swtpms, claim.swtpm),
    ] {
        if !expected.contains(&recorded) {
            problems.push(format!("{name} {recorded} is not an expected build"));
        }
    }
    let measured = facts.log().and_then(|log| {
        log.one("attestrun.runtime", |event| match event {
            Event::Runtime(runtime) => Some(runtime),
            _ => None,
        })
    });
    let measured = or_refuse(measured, &problems)?;
    for (name, recorded, found) in [
        ("attestrun", claim.runtime, measured.attestrun.sha256),
        ("swtpm", claim.swtpm, measured.swtpm.sha256),
    ] {
        if found != recorded {
            problems.push(format!(
                "measured {name} {found}, the record has {recorded}"
            ));
        }
    }
    all_of(
        problems,
        format!(
            "attestrun {}, swtpm {}",
            measured.attestrun.version, measured.swtpm.version
        ),
    )
}

pub(super) fn rootfs(facts: &Facts<'_>) -> Answer {
    let log = facts.log()?;
    let measured = log.one("attestrun.rootfs", |event| match event {
        Event::Rootfs(rootfs) => Some(rootfs),
        _ => None,
    })?;
    let done = log.one("attestrun.rootfs-done", |event| match event {
        Event::RootfsDone(done) => Some(done),
        _ => None,
    })?;
    let mut problems = Vec::new();
    if !facts.expect.rootfs.contains(&measured.manifest) {
        problems.push(format!(
            "rootfs manifest {} is not an expected one",
            measured.manifest
        ));
    }
    if done.manifest != measured.manifest {
        problems.push(format!(
            "measuring ended with manifest {}, it began with {}",
            done.manifest, measured.manifest
        ));
    }
    let policy = measured_policy(facts)?;
    let demanded = policy.rootfs;
    problems.extend(files::wrong(facts, policy.measure)?);
    // A tree that was read in full and is the expected one needs nobody to compare it with.
    if measured.check > demanded && measured.check != RootfsCheck::Measured {
        problems.push(format!(
            "checked `{}`, the policy demanded `{demanded}`",
            measured.check
        ));
    }
    let stubs = match measured.stubs.is_empty() {
        true => String::new(),
        false => format!(", put in by the engine: {}", measured.stubs.join(" ")),
    };
    let stubs = stubs + &files::said(log, policy.measure);
    let (entries, bytes) = (measured.entries, measured.bytes);
    let weaker = |by, what: &str| match problems.is_empty() {
        true => waivable(
            facts,
            by,
            Problem::Refused(format!("{entries} entries, {bytes} bytes: {what}{stubs}")),
        ),
        false => refused(problems.join("; ")),
    };
    match measured.check {
        RootfsCheck::Boot => weaker(
            Waiver::RootfsBoot,
            "what did not change in this boot was not read again",
        ),
        RootfsCheck::Watched => weaker(
            Waiver::RootfsWatched,
            "a process of the host vouches that nothing changed since it was read in this boot",
        ),
        RootfsCheck::Stat => weaker(Waiver::RootfsStat, "contents were not compared"),
        RootfsCheck::Full | RootfsCheck::Measured => all_of(
            problems,
            format!("{entries} entries, {bytes} bytes, checked in full{stubs}"),
        ),
    }
}

pub(super) fn tier(facts: &Facts<'_>) -> Answer {
    let (claim, policy) = (&facts.record()?.claim, measured_policy(facts)?);
    let effective = facts.log()?.one("attestrun.tier", |event| match event {
        Event::Tier(tier) => Some(tier),
        _ => None,
    })?;
    if effective.tier != policy.tier || claim.tier != policy.tier.name() {
        return refused(format!(
            "tier {} took effect, the policy has {}, the record {}",
            effective.tier, policy.tier, claim.tier
        ));
    }
    match effective.tier {
        TierName::None => {
            let what =
                "tier none: what the container executes by itself is neither recorded nor enforced";
            waivable(facts, Waiver::TierNone, Problem::Refused(what.into()))
        }
        TierName::Fanotify => {
            let what = match effective.memory_files {
                Latitude::Any => {
                    "tier fanotify: what execve opens is judged; memory files, later mounts and mapped code are not"
                }
                Latitude::Deny => {
                    "tier fanotify: what execve opens is judged, memory files are not executed; later mounts and mapped code are not judged"
                }
            };
            waivable(facts, Waiver::TierFanotify, Problem::Refused(what.into()))
        }
    }
}

/// PCR 8 is empty, and nobody entered whom the recorded mode keeps out.
pub(super) fn faults(facts: &Facts<'_>) -> Answer {
    let log = facts.log()?;
    let policy = measured_policy(facts).ok();
    let audit = policy.is_some_and(|policy| policy.enforce == Enforce::Audit);
    let (mut problems, mut audited): (Vec<String>, Vec<String>) = Default::default();
    for event in &log.events {
        match event {
            Event::Fault(fault) if audit && fault.kind == AUDITED => {
                audited.push(fault.detail.clone());
            }
            Event::Fault(fault) => problems.push(format!("{}: {}", fault.kind, fault.detail)),
            // Its fault says the same.
            Event::Enter(enter) if audit && enter.verdict == EnterVerdict::Audited => {}
            Event::Enter(enter) => problems.extend(wrong_enter(enter, policy)),
            Event::Inside(inside) => problems.extend(wrong_inside(inside, audit)),
            _ => {}
        }
    }
    if problems.is_empty() && audited.is_empty() && !is_empty(log, pcr::FAULTS) {
        problems.push(format!("PCR {} is not empty", pcr::FAULTS));
    }
    if problems.is_empty() && !audited.is_empty() {
        let what = format!("let through in audit mode: {}", audited.join("; "));
        return waivable(facts, Waiver::Audit, Problem::Refused(what));
    }
    all_of(problems, format!("PCR {} is empty", pcr::FAULTS))
}

/// Whether an enter record is itself a fault; without a policy event every one is.
fn wrong_enter(enter: &Enter, policy: Option<&Policy>) -> Option<String> {
    let path = &enter.path;
    match (enter.verdict, policy.map(|policy| policy.enter)) {
        (EnterVerdict::Audited, _) => Some(format!(
            "{path} was let in against the policy: {}",
            enter.reason
        )),
        (EnterVerdict::Denied, _) => Some(format!("denied: {path}: {}", enter.reason)),
        (EnterVerdict::Allowed, Some(EnterMode::Listed | EnterMode::Any)) => None,
        (EnterVerdict::Allowed, Some(EnterMode::Deny)) => {
            Some(format!("{path} was let in although enter is `deny`"))
        }
        (EnterVerdict::Allowed, None) => {
            Some(format!("{path} was let in under no recorded policy"))
        }
    }
}

/// Whether an execution inside is itself a fault; one that was audited in audit mode has its fault.
fn wrong_inside(inside: &Inside, audit: bool) -> Option<String> {
    match inside.verdict {
        EnterVerdict::Allowed => None,
        EnterVerdict::Audited if audit => None,
        EnterVerdict::Audited => Some(format!("{} was executed against the policy", inside.path)),
        EnterVerdict::Denied => Some(format!("denied inside: {}", inside.path)),
    }
}

pub(super) fn age(facts: &Facts<'_>) -> Answer {
    let (asked, now) = (facts.challenge.asked_at, facts.challenge.now);
    let Some(age) = now
        .secs()
        .checked_sub(asked.secs())
        .and_then(|age| u64::try_from(age).ok())
    else {
        return refused(format!("asked at {asked}, which is later than now ({now})"));
    };
    match age <= facts.expect.max_age_secs {
        true => ok(format!("{age} s after asking")),
        false => refused(format!(
            "judged {age} s after asking, {} s are allowed",
            facts.expect.max_age_secs
        )),
    }
}
