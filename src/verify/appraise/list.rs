//! Checks of the signature list, its signer, and what was executed against it (P-…).

use super::facts::Facts;
use super::grounds::without_list;
use super::launch;
use super::log::ContainerLog;
use super::{Answer, Problem, all_of, ok, or_refuse, refused, unknown, waivable};
use crate::check::Waiver;
use crate::digest::FileDigest;
use crate::event::{Enter, EnterVerdict, Event, Inside, KernelCheck};
use crate::imalog::EncodedPath;
use crate::siglist::{ListRefusal, NotListed};
use std::collections::BTreeSet;

pub(super) fn certificate(facts: &Facts<'_>) -> Answer {
    if let Some(answer) = without_list(facts) {
        return answer;
    }
    let signer = match &facts.signed.signer {
        Ok(signer) => signer,
        Err(refusal) => return refused(refusal.to_string()),
    };
    let mut problems = Vec::new();
    if signer.tenant() != facts.expect.tenant {
        problems.push(format!(
            "signer is of tenant {}, expected {}",
            signer.tenant(),
            facts.expect.tenant
        ));
    }
    let claim = &or_refuse(facts.record(), &problems)?.claim;
    if claim.user_cert != signer.certificate() {
        problems.push(format!(
            "signer's certificate is {}, the record has {}",
            signer.certificate(),
            claim.user_cert
        ));
    }
    let user = facts.log().and_then(|log| {
        log.one("attestrun.user", |event| match event {
            Event::User(user) => Some(user),
            _ => None,
        })
    });
    let user = or_refuse(user, &problems)?;
    let measured = (
        user.certificate,
        user.subject.as_str(),
        user.tenant.as_str(),
    );
    if measured != (signer.certificate(), signer.subject(), signer.tenant()) {
        problems.push(format!(
            "measured user {} {} of {}",
            user.certificate, user.subject, user.tenant
        ));
    }
    all_of(
        problems,
        format!("{}, {}", signer.subject(), signer.tenant()),
    )
}

pub(super) fn list(facts: &Facts<'_>) -> Answer {
    if let Some(answer) = without_list(facts) {
        return answer;
    }
    let list = match &facts.signed.list {
        Some(Ok(list)) => list,
        // The signer's own failures have their own check.
        Some(Err(ListRefusal::Signature(_) | ListRefusal::OtherTenant { .. })) => {
            return refused("the list is not signed by a user of the tenant");
        }
        Some(Err(refusal)) => return refused(format!("signature list: {refusal}")),
        None => {
            return unknown("without a record it is not known which image the list must be about");
        }
    };
    let (claim, log) = (&facts.record()?.claim, facts.log()?);
    let measured = log.one("attestrun.list", |event| match event {
        Event::List(list) => Some(list),
        _ => None,
    })?;
    let mut problems = Vec::new();
    if claim.siglist != list.digest() {
        problems.push(format!(
            "the list is {}, the record has {}",
            list.digest(),
            claim.siglist
        ));
    }
    let found = (measured.digest, measured.name.as_str(), measured.serial);
    if found != (list.digest(), list.name(), list.serial()) {
        problems.push(format!(
            "measured list {} `{}` serial {}",
            found.0, found.1, found.2
        ));
    }
    all_of(
        problems,
        format!(
            "`{}` serial {}, {} files",
            list.name(),
            list.serial(),
            list.list().files().len()
        ),
    )
}

/// The kernel's own word on the list's signer: a second verifier, which may lack an algorithm. One that
/// disagreed has ended the container.
pub(super) fn kernel(facts: &Facts<'_>) -> Answer {
    let log = facts.log()?;
    let said = |event: &Event| matches!(event, Event::KernelKeys(_));
    if let Some(answer) = without_list(facts) {
        return match log.events.iter().any(said) {
            false => answer,
            true => refused("the kernel checked a list, and there is none"),
        };
    }
    let keys = log.one("attestrun.kernel-keys", |event| match event {
        Event::KernelKeys(keys) => Some(keys),
        _ => None,
    })?;
    let what = match keys.checked {
        KernelCheck::Signature if keys.why.is_empty() => {
            return ok("chain and signature of the list, by the kernel too");
        }
        KernelCheck::Signature => {
            return refused(format!("a whole check with a reason: {}", keys.why));
        }
        KernelCheck::Chain => format!("the kernel checked the chain alone: {}", keys.why),
        KernelCheck::None => format!("the kernel checked nothing: {}", keys.why),
    };
    waivable(facts, Waiver::KernelKeys, Problem::Refused(what))
}

/// Every executed file is a listed program, at its path or by its content (a copy of a listed program
/// is that program, and so the runtime judges it), or the engine's init that the challenger names;
/// and every record has its file in PCR 10.
pub(super) fn unlisted(facts: &Facts<'_>) -> Answer {
    if let Some(answer) = without_list(facts) {
        return match unmeasured(facts.log()?) {
            problems if problems.is_empty() => answer,
            problems => refused(problems.join("; ")),
        };
    }
    let (list, log) = (facts.list()?, facts.log()?);
    let brought = launch::brought(facts);
    let mut problems = Vec::new();
    for (path, digest) in &log.files {
        match list.allows(&path.decode(), digest) {
            // Other content than the path's is the next check's.
            Ok(_) | Err(NotListed::Content { .. }) => {}
            Err(_) if list.allows_digest(digest).is_ok() => {}
            Err(_) if brought == Some(*digest) => {}
            Err(not) => problems.push(not.to_string()),
        }
    }
    problems.extend(unmeasured(log));
    all_of(problems, format!("{} files, all listed", log.measured()))
}

/// Programs that the challenger wants to have been executed (a container's own agent, say).
pub(super) fn missing(facts: &Facts<'_>) -> Answer {
    let (log, demanded) = (facts.log()?, &facts.expect.must_run);
    let ran = |path: &&String| log.programs().any(|(ran, _)| ran.as_str() == path.as_str());
    let problems: Vec<_> = demanded
        .iter()
        .filter(|path| !ran(path))
        .map(|path| format!("{path} was not executed"))
        .collect();
    all_of(problems, format!("{} demanded", demanded.len()))
}

/// Contents: no listed path was executed with a content that the list does not name.
pub(super) fn contents(facts: &Facts<'_>) -> Answer {
    if let Some(answer) = without_list(facts) {
        return answer;
    }
    let (list, log) = (facts.list()?, facts.log()?);
    let mut problems = Vec::new();
    for (path, digest) in &log.files {
        if let Err(not @ NotListed::Content { .. }) = list.allows(&path.decode(), digest) {
            problems.push(not.to_string());
        }
    }
    all_of(problems, format!("{} files", log.measured()))
}

/// Records of PCR 11 whose file is not in PCR 10.
fn unmeasured(log: &ContainerLog) -> Vec<String> {
    let claims = log.events.iter().filter_map(|event| match event {
        Event::Exec(exec) => Some((exec.path.as_str(), Some(&exec.digest))),
        Event::Enter(Enter {
            verdict: EnterVerdict::Allowed | EnterVerdict::Audited,
            path,
            digest,
            ..
        }) => Some((path.as_str(), digest.as_ref())),
        Event::Inside(Inside {
            verdict: EnterVerdict::Allowed | EnterVerdict::Audited,
            path,
            digest,
            ..
        }) => Some((path.as_str(), Some(digest))),
        _ => None,
    });
    let mut claims = claims.peekable();
    if claims.peek().is_none() {
        return Vec::new();
    }
    let measured: BTreeSet<(&str, &FileDigest)> = log
        .programs()
        .map(|(path, digest)| (EncodedPath::as_str(path), digest))
        .collect();
    let missing = claims.filter(|(path, digest)| match digest {
        Some(digest) => !measured.contains(&(*path, *digest)),
        None => true,
    });
    missing
        .map(|(path, _)| format!("{path} was started, but its file is not in PCR 10"))
        .collect()
}
