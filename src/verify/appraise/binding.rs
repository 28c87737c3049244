//! Checks of keys and of the binding record (K-…, B-…, H-ROOT).

use super::facts::Facts;
use super::grounds;
use super::{Answer, Problem, all_of, ok, or_refuse, refused, unknown, waivable};
use crate::binding::{self as log, LogEntry, NotLive, Record};
use crate::check::{Check, Subject, Waiver};
use crate::digest::OrNone;
use crate::event::Event;
use crate::evidence::Root;

pub(super) fn host_key(facts: &Facts<'_>) -> Answer {
    let name = facts.host_public()?.name();
    let Some(pin) = facts.expect.host(&name) else {
        return refused(format!("the host's attestation key {name} is not pinned"));
    };
    let recorded = facts.record()?.host.host_ak_name;
    if recorded != name {
        return refused(format!(
            "the record names host key {recorded}, the quote's key is {name}"
        ));
    }
    ok(format!("{name}, pinned as `{}`", pin.name))
}

pub(super) fn vtpm_keys(facts: &Facts<'_>) -> Answer {
    let (ak, claim) = (facts.vtpm_public()?.name(), &facts.record()?.claim);
    let mut problems = Vec::new();
    if ak != claim.vtpm_ak_name {
        problems.push(format!(
            "the quote's key is {ak}, the record has {}",
            claim.vtpm_ak_name
        ));
    }
    match &facts.ek {
        Err(malformed) => problems.push(format!("endorsement key: {malformed}")),
        Ok(Err(refusal)) => problems.push(refusal.to_string()),
        Ok(Ok(ek)) if ek.name() != claim.vtpm_ek_name => {
            problems.push(format!(
                "the endorsement key is {}, the record has {}",
                ek.name(),
                claim.vtpm_ek_name
            ));
        }
        Ok(Ok(_)) => {}
    }
    all_of(problems, ak.to_string())
}

pub(super) fn distinct(facts: &Facts<'_>) -> Answer {
    let (host, ak) = (facts.host_public()?.name(), facts.vtpm_public()?.name());
    let ek = match &facts.ek {
        Ok(Ok(ek)) => ek.name(),
        _ => return unknown("the vTPM has no endorsement key of the demanded form"),
    };
    let mut problems = Vec::new();
    if host == ak || host == ek || ak == ek {
        problems.push("host and vTPM share a key".to_owned());
    }
    facts.record()?;
    if let Err(found) = facts.binding_log()?.live(&facts.r, &ak) {
        let reused = |p: &&NotLive| matches!(p, NotLive::KeyReused | NotLive::OtherKey);
        problems.extend(found.iter().filter(reused).map(ToString::to_string));
    }
    all_of(
        problems,
        "host key, vTPM key and endorsement key differ; the vTPM key was bound once",
    )
}

pub(super) fn root(facts: &Facts<'_>) -> Answer {
    let (pinned, claimed) = (facts.pin()?.root, facts.evidence.host_root);
    if pinned != claimed {
        return refused(format!(
            "the host claims a {claimed} root, it is pinned as {pinned}"
        ));
    }
    match pinned {
        Root::Hardware => ok("hardware TPM"),
        Root::Software => {
            let what =
                "the host's TPM is a software root: it proves nothing against the host's owner";
            waivable(facts, Waiver::SoftwareRoot, Problem::Refused(what.into()))
        }
    }
}

/// Whether the host's quote was made over the qualifying data that this challenge, this vTPM quote
/// and this record give.
fn host_qualified(facts: &Facts<'_>) -> Result<(), Problem> {
    match super::answer(Check::QQd, Subject::Host, facts) {
        Ok(_) => Ok(()),
        Err(Problem::Refused(_)) => Err(Problem::Refused(
            "the host's quote was made over other qualifying data".into(),
        )),
        Err(problem) => Err(problem),
    }
}

pub(super) fn covered(facts: &Facts<'_>) -> Answer {
    let (record, log) = (facts.record()?, facts.binding_log()?);
    let position = match &log.earlier {
        // of this record: found then, with the entry before it
        Some(earlier) => earlier.position(),
        None => bound(&log.entries, record, facts)?,
    };
    host_qualified(facts)?;
    ok(format!(
        "r = {}, entry {position} of the host's log",
        facts.r
    ))
}

/// Where the host's log binds the record, after the entry that the record names.
fn bound(entries: &[LogEntry], record: &Record, facts: &Facts<'_>) -> Result<usize, Problem> {
    let ak = log::ak_digest(&record.claim.vtpm_ak_name);
    let bound = |e: &LogEntry| e.kind == log::Kind::Bind && e.r == facts.r && e.ak == ak;
    let Some(position) = entries.iter().position(bound) else {
        return Err(Problem::Refused(format!(
            "the host's log does not bind record {}",
            facts.r
        )));
    };
    let before = position
        .checked_sub(1)
        .and_then(|before| entries.get(before));
    let prev = hex::encode(before.map_or([0; 32], |entry| entry.value()));
    match prev == record.host.prev {
        true => Ok(position),
        false => Err(Problem::Refused(format!(
            "the record follows log entry {}, in the log it is {prev}",
            record.host.prev
        ))),
    }
}

pub(super) fn container(facts: &Facts<'_>) -> Answer {
    let (found, asked) = (&facts.record()?.claim.container, facts.challenge.container);
    match found == asked {
        true => ok(found.to_string()),
        false => refused(format!("asked about {asked}, the record is about {found}")),
    }
}

pub(super) fn image(facts: &Facts<'_>) -> Answer {
    let claim = &facts.record()?.claim;
    let OrNone::Is(image) = claim.image else {
        // Whether that may be is one question, asked here and there.
        return grounds::origin(facts);
    };
    let mut problems = Vec::new();
    if !facts.expect.images.contains(&image) {
        problems.push(format!("image {image} is not an expected one"));
    }
    let measured = or_refuse(facts.measured_image(), &problems)?;
    if measured.manifest != image {
        problems.push(format!(
            "measured {}, the record has {image}",
            measured.manifest
        ));
    }
    if claim.image_config != measured.config {
        problems.push(format!(
            "measured config {}, the record has {}",
            measured.config, claim.image_config
        ));
    }
    all_of(problems, format!("{image} ({})", measured.name))
}

pub(super) fn epoch(facts: &Facts<'_>) -> Answer {
    let (host, log, quote) = (&facts.record()?.host, facts.log()?, facts.host_quote()?);
    let link = log.one("attestrun.host-link", |event| match event {
        Event::HostLink(link) => Some(link),
        _ => None,
    })?;
    let mut problems = Vec::new();
    if link.host_ak_name != host.host_ak_name {
        problems.push(format!(
            "PCR 0 links to host key {}, the record to {}",
            link.host_ak_name, host.host_ak_name
        ));
    }
    if link.host_boot != host.host_boot {
        problems.push(format!(
            "PCR 0 links to boot {}, the record to {}",
            link.host_boot, host.host_boot
        ));
    }
    if link.host_reset != host.host_reset {
        problems.push(format!(
            "PCR 0 links to resetCount {}, the record to {}",
            link.host_reset, host.host_reset
        ));
    }
    if quote.reset() != host.host_reset {
        problems.push(format!(
            "the host was reset since: resetCount {}, the record has {}",
            quote.reset(),
            host.host_reset
        ));
    }
    all_of(
        problems,
        format!("boot {}, resetCount {}", host.host_boot, host.host_reset),
    )
}

pub(super) fn live(facts: &Facts<'_>) -> Answer {
    let ak = facts.record()?.claim.vtpm_ak_name;
    match facts.binding_log()?.live(&facts.r, &ak) {
        Ok(live) => ok(format!("bound by entry {}, not ended", live.position())),
        Err(problems) => refused(
            problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
        ),
    }
}

pub(super) fn order(facts: &Facts<'_>) -> Answer {
    host_qualified(facts)?;
    let size = facts.evidence.batch.size();
    if size > 1 && !facts.challenge.batch {
        return refused(format!(
            "the host's quote covers {size} challenges, a quote for this one alone was asked for"
        ));
    }
    ok(format!(
        "the host's quote covers the vTPM's{}",
        match size {
            1 => String::new(),
            _ => format!(", and those of {} other challenges", size - 1),
        }
    ))
}
