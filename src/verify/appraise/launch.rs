//! Checks of the launch profile (C-…): measured in clear text, equal to the record's, and judged by
//! the challenger's own rules, whatever the host's policy allowed.

use super::expect::{ArgsRule, EnvRule};
use super::facts::Facts;
use super::{Answer, Problem, all_of, ok, refused, unknown};
use crate::canon::canonical;
use crate::check::Check;
use crate::digest::{FileDigest, ProfileDigest};
use crate::event::{Enter, EnterVerdict, Event, Launch};
use crate::profile::{
    Area, How, LaunchProfile, NamespaceUse, Peer, judge, judge_added, loads_code,
};
use std::collections::BTreeSet;

/// Where engines and CNI keep network namespaces that they made (not those of other processes).
const ENGINE_NETWORKS: [&str; 4] = [
    "/run/netns/",
    "/var/run/netns/",
    "/run/docker/netns/",
    "/var/run/docker/netns/",
];

pub(super) fn answer(check: Check, facts: &Facts<'_>) -> Answer {
    let launch = measured(facts)?;
    let profile = &launch.profile;
    match check {
        Check::CArgs => arguments(facts, profile),
        Check::CEnv => environment(facts, profile),
        Check::CCaps => {
            let caps = &profile.process.capabilities.effective;
            let (user, seccomp) = (&profile.process.user, &profile.seccomp);
            let detail = format!(
                "uid {}, gid {}, {} capabilities, seccomp {seccomp}",
                user.uid,
                user.gid,
                caps.len()
            );
            let mut problems = objections(facts, profile, Area::Caps);
            problems.extend(wider_enters(facts, profile)?);
            all_of(problems, detail)
        }
        Check::CNs => {
            let kinds = profile
                .namespaces
                .iter()
                .map(|n| format!("{} {}", n.kind, spelled(n.how)));
            all_of(
                objections(facts, profile, Area::Ns),
                kinds.collect::<Vec<_>>().join(", "),
            )
        }
        Check::CMount => {
            let binds = profile.mounts.iter().filter(|m| m.kind == "bind").count();
            let detail = format!(
                "{} mounts, {binds} of them bind mounts",
                profile.mounts.len()
            );
            all_of(objections(facts, profile, Area::Mount), detail)
        }
        Check::CDev => {
            let detail = format!("{} devices", profile.devices.len());
            all_of(objections(facts, profile, Area::Dev), detail)
        }
        Check::CHook => {
            let mut problems = objections(facts, profile, Area::Hook);
            problems.extend(additions(facts)?);
            all_of(problems, format!("{} hooks", profile.hooks.len()))
        }
        Check::CPeer => peers(facts, profile),
        // The match in `super::answer` sends nothing else here.
        _ => unknown("not a check of the launch profile"),
    }
}

/// The launch event, if it is the one that the record vouches for.
pub(super) fn measured<'a>(facts: &'a Facts<'_>) -> Result<&'a Launch, Problem> {
    let launch = facts.log()?.one("attestrun.launch", |event| match event {
        Event::Launch(launch) => Some(launch.as_ref()),
        _ => None,
    })?;
    let claim = &facts.record()?.claim;
    let differs = |what, found: String, recorded: String| {
        Err(Problem::Refused(format!(
            "measured {what} {found}, the record has {recorded}"
        )))
    };
    match launch.profile.digest() {
        Ok(digest) if digest == claim.profile => {}
        Ok(digest) => return differs("profile", digest.to_string(), claim.profile.to_string()),
        Err(error) => return Err(Problem::Refused(error.to_string())),
    }
    match launch.bundle_config == claim.bundle_config {
        true => Ok(launch),
        false => differs(
            "config.json",
            launch.bundle_config.to_string(),
            claim.bundle_config.to_string(),
        ),
    }
}

/// The program of the host with which the container began, if the challenger names it.
pub(super) fn brought(facts: &Facts<'_>) -> Option<FileDigest> {
    let program = measured(facts).ok()?.profile.brought()?;
    let named = facts.expect.launch.rules().name_program(program);
    named.then_some(program)
}

fn objections(facts: &Facts<'_>, profile: &LaunchProfile, area: Area) -> Vec<String> {
    match judge(profile, &facts.expect.launch.rules()) {
        Ok(_) => Vec::new(),
        Err(found) => found
            .iter()
            .filter(|o| o.area == area)
            .map(ToString::to_string)
            .collect(),
    }
}

/// What hooks added and the challenger does not allow them.
fn additions(facts: &Facts<'_>) -> Result<Vec<String>, Problem> {
    let rules = facts.expect.launch.rules();
    let added = facts.log()?.events.iter().filter_map(|event| match event {
        Event::Hooked(added) => Some(added),
        _ => None,
    });
    Ok(added
        .filter_map(|added| judge_added(added, &rules).err())
        .flatten()
        .map(|objection| objection.to_string())
        .collect())
}

fn arguments(facts: &Facts<'_>, profile: &LaunchProfile) -> Answer {
    let (program, found) = (&profile.process.program, &profile.process.args_digest);
    let accepted = match &facts.expect.launch.args {
        ArgsRule::Any(_) => return ok(format!("{program} with any arguments (named), {found}")),
        ArgsRule::OneOf(accepted) => accepted,
    };
    let digests = accepted.iter().filter_map(|argv| canonical(argv).ok());
    match digests
        .map(|bytes| ProfileDigest::of(&bytes).to_string())
        .any(|digest| digest == *found)
    {
        true => ok(format!("{program}, {found}")),
        false => refused(format!(
            "{program} was started with arguments {found}, which are not expected ones"
        )),
    }
}

fn environment(facts: &Facts<'_>, profile: &LaunchProfile) -> Answer {
    let names = &profile.process.env_names;
    let refused_name = |name: &String| match &facts.expect.launch.env {
        // Only a challenger that lists them by name accepts these.
        EnvRule::Any(_) => loads_code(name),
        EnvRule::OneOf(allowed) => !allowed.contains(name),
    };
    let problems = names.iter().filter(|name| refused_name(name));
    all_of(
        problems
            .map(|name| format!("variable {name} is not accepted"))
            .collect(),
        names.join(" "),
    )
}

/// Programs that were let in with more than the container's own capabilities.
fn wider_enters(facts: &Facts<'_>, profile: &LaunchProfile) -> Result<Vec<String>, Problem> {
    let mut problems = Vec::new();
    for event in &facts.log()?.events {
        if let Event::Enter(Enter {
            verdict: EnterVerdict::Allowed | EnterVerdict::Audited,
            path,
            capabilities,
            ..
        }) = event
        {
            let wider = capabilities
                .iter()
                .filter(|name| !profile.process.capabilities.has(name));
            problems.extend(wider.map(|name| format!("{path} was let in with {name}")));
        }
    }
    Ok(problems)
}

/// Other containers' namespaces: each must be a peer's, whom the record names, and whom the challenger
/// has accepted, too.
fn peers(facts: &Facts<'_>, profile: &LaunchProfile) -> Answer {
    let measured: BTreeSet<String> = profile.peers().iter().map(|p| p.record.hex()).collect();
    let recorded = facts.record()?.claim.peers.iter().cloned().collect();
    if measured != recorded {
        return refused("the record names other peers than the launch profile");
    }
    let (mut nobodys, mut open, mut accepted) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for joined in profile.namespaces.iter().filter(|n| is_peers(n)) {
        match &joined.peer {
            None => nobodys.push(format!("{} ({})", joined.kind, joined.path)),
            Some(peer) if facts.challenge.accepted(peer) => drop(accepted.insert(peer)),
            Some(peer) => drop(open.insert(peer)),
        }
    }
    let names = |peers: &BTreeSet<&Peer>| {
        let names = peers
            .iter()
            .map(|p| format!("{} (record {})", p.container.as_str(), p.record));
        names.collect::<Vec<_>>().join(", ")
    };
    match (nobodys.is_empty(), open.is_empty(), accepted.is_empty()) {
        (false, ..) => refused(format!(
            "joins {}, which belongs to no attested container",
            nobodys.join(", ")
        )),
        (true, false, _) => unknown(format!(
            "whether its peers are accepted, too, of whom it joins namespaces: {}; ask with --peer",
            names(&open)
        )),
        (true, true, true) => ok("no other container's namespaces"),
        (true, true, false) => ok(format!("with accepted peers: {}", names(&accepted))),
    }
}

fn is_peers(namespace: &NamespaceUse) -> bool {
    let by_engine = namespace.kind == "network"
        && !namespace.path.contains("/../")
        && ENGINE_NETWORKS
            .iter()
            .any(|directory| namespace.path.starts_with(directory));
    namespace.how == How::Joined && !by_engine
}

fn spelled(how: How) -> &'static str {
    match how {
        How::New => "new",
        How::Host => "host",
        How::Joined => "joined",
    }
}
