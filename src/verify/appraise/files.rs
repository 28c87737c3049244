//! The rootfs's files that are measured by themselves, in PCR 10 before `attestrun.files-done`, and what
//! stands in bind mounts.

use super::facts::Facts;
use super::log::ContainerLog;
use super::{Answer, Problem, all_of, launch};
use crate::event::{Event, Measure, MountContent, MountsRule};
use crate::imalog::EncodedPath;
use std::collections::BTreeMap;

/// What is wrong with the measured files, if they are measured as the policy has it.
pub(super) fn wrong(facts: &Facts<'_>, measure: Measure) -> Result<Vec<String>, Problem> {
    let log = facts.log()?;
    let done = log.events.iter().find_map(|event| match event {
        Event::FilesDone(done) => Some(done),
        _ => None,
    });
    let mut problems = Vec::new();
    match (measure, done) {
        (Measure::Manifest, None) => {}
        (Measure::Manifest, Some(_)) => {
            problems.push("files are measured by themselves, which the policy does not say".into());
        }
        (_, None) => problems.push(format!(
            "the policy has measure `{measure}`, and PCR 10 has no end of the rootfs's files"
        )),
        (_, Some(done)) => {
            let found = log.all_measured_files();
            if done.measure != measure || done.files != found as u64 {
                problems.push(format!(
                    "PCR 10 has {found} files of the rootfs and says {} by `{}`, the policy has `{measure}`",
                    done.files, done.measure
                ));
            }
        }
    }
    let paths = log.measured_files.iter().map(|(path, _)| path.as_str());
    if !paths.clone().zip(paths.skip(1)).all(|(a, b)| a < b) {
        problems.push("the rootfs's files in PCR 10 are not in the order of their paths".into());
    }
    if measure == Measure::Listed
        && let Ok(list) = facts.list()
    {
        let other = |digest| list.allows_digest(digest).is_err();
        let strange = log
            .measured_files
            .iter()
            .filter(|(_, digest)| other(digest));
        problems.extend(strange.map(|(path, _)| {
            format!(
                "{} is among the listed files, and not on the list",
                EncodedPath::as_str(path)
            )
        }));
    }
    Ok(problems)
}

/// For the finding's text.
pub(super) fn said(log: &ContainerLog, measure: Measure) -> String {
    match measure {
        Measure::Manifest => String::new(),
        Measure::Files | Measure::Listed => format!(
            "; measure `{measure}`: {} files by themselves in PCR 10",
            log.all_measured_files()
        ),
    }
}

/// Under `mounts = "measure"`: each bind mount's content is in the log, and is what is expected.
pub(super) fn mounts(facts: &Facts<'_>, rule: MountsRule) -> Answer {
    let log = facts.log()?;
    let started = log.events.contains(&Event::Start);
    let mut found: BTreeMap<&str, &MountContent> = BTreeMap::new();
    let mut problems = Vec::new();
    for event in &log.events {
        if let Event::Mount(mount) = event
            && found.insert(&mount.destination, mount).is_some()
        {
            problems.push(format!(
                "the mount at {} is measured twice",
                mount.destination
            ));
        }
    }
    let measures = rule == MountsRule::Measure;
    let bound: Vec<&str> = match measures {
        false => Vec::new(),
        true => {
            let mounts = launch::measured(facts)?.profile.mounts.iter();
            let bound = mounts.filter(|mount| mount.kind == "bind");
            bound.map(|mount| mount.destination.as_str()).collect()
        }
    };
    for destination in found.keys().filter(|at| !bound.contains(at)) {
        problems.push(format!(
            "the mount at {destination} is measured, which is not sealed so"
        ));
    }
    if started {
        let missing = bound.iter().filter(|at| !found.contains_key(**at));
        problems.extend(missing.map(|at| format!("the mount at {at} is not measured")));
    }
    for (destination, accepted) in &facts.expect.mounts {
        match found.get(destination.as_str()) {
            Some(mount) if accepted.contains(&mount.manifest) => {}
            Some(mount) => problems.push(format!(
                "what is mounted at {destination} is {}, which is not expected",
                mount.manifest
            )),
            None => problems.push(format!(
                "what is mounted at {destination} is expected to be measured, and is not"
            )),
        }
    }
    let said = found.values().map(|mount| {
        let access = if mount.read_only {
            "read-only"
        } else {
            "writable"
        };
        format!(
            ", {} ({}, {access}) {}",
            mount.destination, mount.kind, mount.manifest
        )
    });
    all_of(
        problems,
        format!("mounts `{rule}`{}", said.collect::<String>()),
    )
}
