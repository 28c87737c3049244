//! The two logs (L-…): the container's events against the vTPM's PCRs, the binding log against
//! host PCR 13, and the order of events.

use super::facts::Facts;
use super::rolling::BindingLog;
use super::{Answer, Problem, all_of, ok, refused, unknown};
use crate::digest::FileDigest;
use crate::event::{Enter, EnterVerdict, Event, EventError, How};
use crate::imalog::{self, EncodedPath, Entry, ParseError, Template, Values};
use crate::pcr::{self, HOST_BINDING_PCR, PcrIndex};
use std::collections::BTreeSet;

/// A container's log: its replay, its executed files, and its events as far as they are known.
///
/// What an earlier answer proved is not read again: the log then begins with what is left of it
/// ([`Self::settled`]), and `files` holds the new ones alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerLog {
    pub replay: Values,
    /// The very first entry is the host link.
    pub host_link_first: bool,
    /// What an earlier answer showed, and was accepted for.
    pub earlier: Earlier,
    /// Executed: in PCR 10, in their order.
    pub files: Vec<(EncodedPath, FileDigest)>,
    /// Of the rootfs, measured by themselves: in PCR 10 before `attestrun.files-done`. The TPM proves
    /// which stand before it.
    pub measured_files: Vec<(EncodedPath, FileDigest)>,
    /// In all other PCRs, in their order.
    pub events: Vec<Event>,
    /// Entries that are no event of ours.
    pub unknown: Vec<EventError>,
    /// Entries that this challenger may not read.
    pub opaque: usize,
}

/// What is kept of entries that were judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Earlier {
    /// Executed files, each once, in their order.
    pub files: Vec<(EncodedPath, FileDigest)>,
    pub measured_files: usize,
    /// Programs that were let in.
    pub entered: usize,
}

/// Events and files that are kept of a log: beyond that it is read in full each time.
const MAX_KEPT_EVENTS: usize = 1024;
const MAX_KEPT_FILES: usize = 1 << 16;

impl ContainerLog {
    fn empty() -> Self {
        Self {
            replay: Values::ZERO,
            host_link_first: false,
            earlier: Earlier::default(),
            files: Vec::new(),
            measured_files: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
            opaque: 0,
        }
    }
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Ok(Self::of(&imalog::parse(bytes)?))
    }
    pub fn of(entries: &[Entry]) -> Self {
        let first = entries.first().map(Event::from_entry);
        let host_link_first = matches!(first, Some(Ok(Event::HostLink(_))));
        let log = Self {
            host_link_first,
            ..Self::empty()
        };
        log.with(entries)
    }
    /// The log of which `self` is the beginning, and `bytes` the rest.
    pub fn continued(self, bytes: &[u8]) -> Result<Self, ParseError> {
        Ok(self.with(&imalog::parse(bytes)?))
    }

    fn with(mut self, entries: &[Entry]) -> Self {
        for entry in entries {
            self.replay.add(entry);
            match entry.template() {
                Template::ImaNg { digest, path } => self.files.push((path.clone(), *digest)),
                Template::Opaque { .. } => self.opaque += 1,
                Template::ImaBuf { .. } => match Event::from_entry(entry) {
                    Ok(event) => {
                        if matches!(event, Event::FilesDone(_)) {
                            self.measured_files.append(&mut self.files);
                        }
                        self.events.push(event);
                    }
                    Err(error) => self.unknown.push(error),
                },
            }
        }
        self
    }

    /// What has to be known of this log for judging what follows it, if all of it is accepted: every event
    /// but those that say that a program was let run, and the files that ran. None: not before the start,
    /// when files of PCR 10 may still turn out to be measured alone, nor beyond what is worth keeping.
    pub(super) fn settled(&self) -> Option<Self> {
        let known = self.unknown.is_empty() && self.opaque == 0;
        let files: Vec<_> = self.programs().cloned().collect();
        let (passed, events): (Vec<_>, Vec<_>) = self.events.iter().cloned().partition(is_passed);
        let entered = passed.iter().filter(|e| matches!(e, Event::Enter(_)));
        let short = files.len() <= MAX_KEPT_FILES && events.len() <= MAX_KEPT_EVENTS;
        (known && short && events.contains(&Event::Start)).then(|| Self {
            replay: self.replay.clone(),
            host_link_first: self.host_link_first,
            earlier: Earlier {
                measured_files: self.all_measured_files(),
                entered: self.earlier.entered + entered.count(),
                files,
            },
            events,
            ..Self::empty()
        })
    }

    /// Executed files of the whole log, each once, in their order.
    pub fn programs(&self) -> impl Iterator<Item = &(EncodedPath, FileDigest)> {
        let mut seen = BTreeSet::new();
        self.all_files().filter(move |file| seen.insert(*file))
    }
    /// Entries about executed files; of those that were kept one for each.
    pub fn measured(&self) -> usize {
        self.earlier.files.len() + self.files.len()
    }
    fn all_files(&self) -> impl Iterator<Item = &(EncodedPath, FileDigest)> {
        self.earlier.files.iter().chain(&self.files)
    }
    pub fn all_measured_files(&self) -> usize {
        self.earlier.measured_files + self.measured_files.len()
    }

    /// The event of a kind that a log holds exactly once.
    pub(super) fn one<'a, T>(
        &'a self,
        name: &str,
        pick: impl Fn(&'a Event) -> Option<&'a T>,
    ) -> Result<&'a T, Problem> {
        let mut found = self.events.iter().filter_map(pick);
        match (found.next(), found.next()) {
            (Some(event), None) => Ok(event),
            (None, _) => Err(Problem::Unknown(format!("the log has no event `{name}`"))),
            (Some(_), Some(_)) => Err(Problem::Refused(format!(
                "the log has event `{name}` more than once"
            ))),
        }
    }
}

/// Whether an event says that a program ran as it may: it is judged once, and changes nothing for later ones.
/// (That its file is measured is known by the files.)
fn is_passed(event: &Event) -> bool {
    match event {
        Event::Exec(_) => true,
        Event::Enter(enter) => enter.verdict == EnterVerdict::Allowed,
        Event::Inside(inside) => inside.verdict == EnterVerdict::Allowed,
        _ => false,
    }
}

/// The events that each closed PCR holds, once each and in this order, before its separator; or the
/// one that says why it does not hold these.
const CLOSED: [(u32, &[&str], &[&str]); 8] = [
    (0, &["attestrun.host-link", "attestrun.runtime"], &[]),
    (1, &["attestrun.launch"], &[]),
    (2, &["attestrun.image"], &["attestrun.no-image"]),
    (3, &[], &[]),
    (4, &["attestrun.rootfs", "attestrun.rootfs-done"], &[]),
    (5, &["attestrun.policy", "attestrun.grounds"], &[]),
    (6, &[], &[]),
    (
        7,
        &["attestrun.user", "attestrun.list"],
        &["attestrun.no-list"],
    ),
];

/// What is wrong with the order of events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Order {
    #[error("the log does not begin with the host link")]
    First,
    #[error("PCR {pcr} holds [{found}], expected [{expected}]")]
    Closed {
        pcr: u32,
        found: String,
        expected: String,
    },
    #[error("PCR 11 does not begin with exactly one tier record")]
    Tier,
    #[error("the container was started more than once")]
    Started,
    #[error("PCR 10 says more than once that the rootfs's files end")]
    Files,
    #[error("`{0}` stands before the start")]
    BeforeStart(&'static str),
    #[error("`{0}` stands after the start, or after a process entered")]
    AfterStart(&'static str),
}

/// Every rule of [`crate::event`]'s table that a log breaks.
fn broken_rules(log: &ContainerLog) -> Vec<Order> {
    let events = &log.events;
    let mut broken = Vec::new();
    if !log.host_link_first {
        broken.push(Order::First);
    }
    for (pcr, demanded, instead) in CLOSED {
        let found: Vec<&str> = events
            .iter()
            .filter(|e| u32::from(e.pcr()) == pcr)
            .map(Event::name)
            .collect();
        let closed = |events: &[&'static str]| -> Vec<&str> {
            let events = events.iter().copied();
            events.chain([crate::event::SEPARATOR]).collect()
        };
        let expected = closed(demanded);
        if found != expected && (instead.is_empty() || found != closed(instead)) {
            let (found, expected) = (found.join(", "), expected.join(", "));
            broken.push(Order::Closed {
                pcr,
                found,
                expected,
            });
        }
    }
    let tiers = events
        .iter()
        .filter(|e| matches!(e, Event::Tier(_)))
        .count();
    let first = events.iter().find(|e| e.pcr() == pcr::LIFE);
    if tiers != 1 || !matches!(first, Some(Event::Tier(_))) {
        broken.push(Order::Tier);
    }
    let ends = events.iter().filter(|e| matches!(e, Event::FilesDone(_)));
    if ends.count() > 1 {
        broken.push(Order::Files);
    }
    // `exec` may enter a container that was created and not yet started, as under runc
    let (mut started, mut in_use) = (false, false);
    for event in events {
        match event {
            Event::Start if started => broken.push(Order::Started),
            Event::Start => (started, in_use) = (true, true),
            Event::Hooked(_) if !started => broken.push(Order::BeforeStart(event.name())),
            Event::Exec(exec) if exec.how != How::Enter && !started => {
                broken.push(Order::BeforeStart(event.name()))
            }
            // measured at the start: a process may have entered before
            Event::Mount(_) if !started => {}
            Event::Exec(_) | Event::Enter(_) | Event::Inside(_) => in_use = true,
            // Faults may come at any time; everything else was closed before.
            Event::Hooked(_) | Event::Fault(_) => {}
            _ if in_use => broken.push(Order::AfterStart(event.name())),
            _ => {}
        }
    }
    broken
}

pub(super) fn host_parse(facts: &Facts<'_>) -> Answer {
    let problems = [
        facts.record.as_ref().err(),
        facts.binding_log.as_ref().err(),
    ];
    let problems = problems.into_iter().flatten().cloned().collect();
    let entries = facts.binding_log.as_ref().map_or(0, BindingLog::len);
    all_of(
        problems,
        format!("binding record; binding log of {entries} entries"),
    )
}

pub(super) fn host_replay(facts: &Facts<'_>) -> Answer {
    let log = facts.binding_log()?;
    let Some(start) = facts.pin()?.start() else {
        return unknown("the pinned start value of PCR 13 is malformed");
    };
    let Some(quoted) = facts
        .host
        .values()
        .and_then(|values| values.get(HOST_BINDING_PCR))
    else {
        return unknown("the host's PCR values are not proved");
    };
    match log.replay(start) {
        replayed if replayed == *quoted => ok(format!(
            "PCR {HOST_BINDING_PCR} after {} entries",
            log.len()
        )),
        replayed => refused(format!(
            "PCR {HOST_BINDING_PCR} is {}, the binding log gives {}",
            hex::encode(quoted),
            hex::encode(replayed)
        )),
    }
}

pub(super) fn parse(facts: &Facts<'_>) -> Answer {
    match &facts.log {
        Err(error) => refused(error.to_string()),
        Ok(log) => all_of(
            log.unknown.iter().map(ToString::to_string).collect(),
            format!(
                "{} events, {} executed files, {} files of the rootfs",
                log.events.len(),
                log.measured(),
                log.all_measured_files()
            ),
        ),
    }
}

/// What is hidden cannot be judged, and no policy can want it so.
pub(super) fn opaque(facts: &Facts<'_>) -> Answer {
    let log = facts.log()?;
    match log.opaque {
        0 => ok("every entry is in clear text"),
        n => refused(format!(
            "{n} of the log's entries are opaque: the host's agent does not know this challenger as the \
             container's owner, nor as one who looks after the fleet"
        )),
    }
}

pub(super) fn replay(facts: &Facts<'_>) -> Answer {
    facts.log()?;
    match &facts.container.pcrs {
        Some(Ok(_)) => ok("PCRs 0 to 11, from zero"),
        Some(Err(_)) => refused("the log does not explain the quoted PCRs"),
        None => unknown("the vTPM's quote is not verified"),
    }
}

/// No extended value, no digest and no name is taken from anywhere but the content.
pub(super) fn template_hashes(facts: &Facts<'_>) -> Answer {
    if let Err(ParseError::TemplateHash { .. } | ParseError::BufferDigest { .. }) = &facts.log {
        return parse(facts);
    }
    facts.log()?;
    ok("recomputed from the content")
}

pub(super) fn order(facts: &Facts<'_>) -> Answer {
    let broken = broken_rules(facts.log()?);
    all_of(
        broken.iter().map(ToString::to_string).collect(),
        "host link first; PCRs 0 to 7 closed; PCR 9 empty",
    )
}

pub(super) fn paths(facts: &Facts<'_>) -> Answer {
    if let Err(ParseError::Path { .. }) = &facts.log {
        return parse(facts);
    }
    let log = facts.log()?;
    let recorded = log.events.iter().filter_map(|event| match event {
        Event::Exec(exec) => Some(&exec.path),
        Event::Inside(inside) => Some(&inside.path),
        // What was denied is named as it was asked for, which need not be a path.
        Event::Enter(Enter {
            verdict: EnterVerdict::Allowed | EnterVerdict::Audited,
            path,
            ..
        }) => Some(path),
        _ => None,
    });
    let problems = recorded
        .filter_map(|path| EncodedPath::parse(path).err())
        .map(|e| e.to_string());
    all_of(problems.collect(), format!("{} paths", log.measured()))
}

pub(super) fn violations(facts: &Facts<'_>) -> Answer {
    if let Err(ParseError::Violation { .. }) = &facts.log {
        return parse(facts);
    }
    facts.log()?;
    ok("none")
}

/// A PCR that nobody extends.
pub(super) fn is_empty(log: &ContainerLog, pcr: PcrIndex) -> bool {
    log.replay.get(pcr) == [0; 32]
}
