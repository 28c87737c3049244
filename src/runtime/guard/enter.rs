//! Starting and entering: the process is judged by the list, recorded, and only then allowed.
//!
//! This judges what attestrun itself is asked to start; what those programs execute later is the gate's
//! matter ([`super::gate`]).

use super::{
    Guarded,
    admit::judge,
    entry::{Entry, Seen},
    inside, mounts, view,
};
use crate::{
    ending::Holdings,
    hooks::{self, StartHook},
    ipc::Refused,
    programs::{self, Program, Search},
};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};
use verify::{
    event::{AUDITED, Enforce, Enter, EnterMode, EnterVerdict, Event, Exec, How, Ids, MountsRule},
    imalog::encode_path,
    policy::plain_text,
    profile::{HookAdditions, ProcessProfile, judge_added, judge_process},
};

impl Guarded {
    /// The container's own first process.
    pub(super) fn start(&mut self, holdings: &Holdings) -> Result<PathBuf> {
        // what was measured is what starts: hooks and engines had the time since
        if let Err(error) = self.admitted.rootfs.again() {
            self.overrule("rootfs", &error.downcast::<Refused>()?)?;
        }
        let process = self.admitted.process.clone();
        let root = root_of(holdings)?;
        let added = self.inside(holdings.init()?, &root)?;
        let brought = self.admitted.admission.profile().brought();
        let entry = Entry::find(root.as_fd(), &process, brought, Seen::Inside, &|_| None);
        let entry = entry.inspect_err(|error| {
            if error.is::<Refused>() {
                self.deny("entrypoint", &error.to_string());
            }
        })?;
        if entry.path != self.admitted.program {
            let (now, then) = (entry.path.display(), self.admitted.program.display());
            let refused = Refused(plain_text(&format!(
                "refused: PATH leads to {now} in the container, and led to {then} when it was created"
            )));
            self.overrule("entrypoint", &refused)?;
        }
        if let Err(refused) = entry.judge(&self.admitted.admission) {
            self.overrule("entrypoint", &refused)?;
        }
        let hooks = self.start_hooks(&root)?;
        self.measure_mounts(&root)?;
        self.journal.record(&Event::Start)?;
        if !added.is_empty() {
            self.journal.record(&Event::Hooked(added))?;
        }
        for hook in &hooks {
            let program = std::slice::from_ref(&hook.program);
            self.executed(program, &process, &hook.args, How::Hook)?;
        }
        let args = process.args().as_deref().unwrap_or_default();
        self.executed(&entry.programs, &process, args, How::Entrypoint)?;
        if let Some(behind) = &entry.behind {
            self.executed(&behind.programs, &process, &behind.args, How::Behind)?;
        }
        self.admitted.rootfs.forget();
        Ok(entry.path)
    }

    /// What init will run before its program: where it stands now, behind all mounts, what was judged.
    fn start_hooks(&mut self, root: &OwnedFd) -> Result<Vec<StartHook>> {
        let hooks = hooks::of_start(&self.admitted.spec, root.as_fd())?;
        for (hook, judged) in hooks.iter().zip(self.admitted.start_hooks.clone()) {
            if hook.program.digest != judged {
                let (path, now) = (hook.path.display(), hook.program.digest);
                let refused = Refused(plain_text(&format!(
                    "refused: the startContainer hook {path} is {now} now, and was {judged} when it was judged"
                )));
                self.overrule("hook", &refused)?;
            }
        }
        Ok(hooks)
    }

    /// What bind mounts bring is measured, where the policy says so.
    fn measure_mounts(&mut self, root: &OwnedFd) -> Result<()> {
        let admission = &self.admitted.admission;
        if admission.terms().mounts != MountsRule::Measure {
            return Ok(());
        }
        match mounts::measure(root, &admission.profile().mounts) {
            Ok(found) => found
                .into_iter()
                .try_for_each(|mount| self.journal.record(&Event::Mount(mount))),
            Err(error) => self.overrule("mounts", &error.downcast::<Refused>()?),
        }
    }

    /// What init has is what was sealed, and what the policy lets a hook add.
    fn inside(&mut self, init: u32, root: &OwnedFd) -> Result<HookAdditions> {
        let admitted = &self.admitted;
        let profile = admitted.admission.profile();
        let added = inside::check_namespaces(init, profile, &admitted.joined)
            .and_then(|()| inside::additions(init, root, &admitted.spec, &view::tpm_devices()?));
        let added = added.inspect_err(|error| self.deny("inside", &error.to_string()))?;
        let admission = &self.admitted.admission;
        if let Err(objections) = judge_added(&added, admission.launch_rules()) {
            let objections: Vec<_> = objections.iter().map(ToString::to_string).collect();
            let refused = Refused(plain_text(&format!(
                "refused: before its start the container has {} [policy {} rule {}]",
                objections.join("; "),
                crate::config::POLICY,
                admission.rule()
            )));
            self.overrule("hook", &refused)?;
        }
        Ok(added)
    }

    /// A process that somebody wants inside, as `exec` passes it.
    pub(super) fn enter(&mut self, process: &str, holdings: &Holdings) -> Result<PathBuf> {
        let process: Process =
            serde_json::from_str(process).context("the process to enter is malformed")?;
        // before there is a file to look at
        let mut verdict = EnterVerdict::Allowed;
        let mut reasons = Vec::new();
        if let Err(refused) = self.may_any_enter(&process)? {
            verdict = self.denied(&process, &refused)?;
            reasons.push(refused.to_string());
        }
        let root = root_of(holdings)?;
        let path = programs::find(root.as_fd(), &Search::of(&process))?;
        let programs = programs::resolve(root.as_fd(), &path, &|_| None)?;
        if self.admitted.admission.enter() == EnterMode::Listed
            && let Err(refused) = judge(&self.admitted.admission, How::Enter, &programs)
        {
            verdict = self.denied(&process, &refused)?;
            reasons.push(refused.to_string());
        }
        self.journal.record(&entered(
            &process,
            programs.first(),
            verdict,
            &reasons.join("; "),
        ))?;
        let args = process.args().as_deref().unwrap_or_default();
        self.executed(&programs, &process, args, How::Enter)?;
        Ok(path)
    }

    /// A refusal stands, and is recorded and a fault; in mode `audit` it is only a fault.
    fn denied(&mut self, process: &Process, refused: &Refused) -> Result<EnterVerdict> {
        if self.admitted.admission.mode() == Enforce::Enforce {
            let reason = refused.to_string();
            self.journal
                .record(&entered(process, None, EnterVerdict::Denied, &reason))?;
        }
        self.overrule("enter", refused)?;
        Ok(EnterVerdict::Audited)
    }

    fn overrule(&mut self, kind: &str, refused: &Refused) -> Result<()> {
        let reason = refused.to_string();
        match self.admitted.admission.mode() {
            Enforce::Enforce => {
                self.deny(kind, &reason);
                Err(Refused(reason).into())
            }
            Enforce::Audit => self.fault(AUDITED, &reason),
        }
    }

    /// Whether this process may enter, whichever file it executes.
    fn may_any_enter(&self, process: &Process) -> Result<Result<(), Refused>> {
        let admission = &self.admitted.admission;
        let profile = ProcessProfile::of(process)?;
        if let Err(objections) =
            judge_process(&profile, admission.profile(), admission.launch_rules())
        {
            let objections: Vec<_> = objections.iter().map(ToString::to_string).collect();
            return Ok(Err(Refused(plain_text(&format!(
                "refused: exec into this container: {} [policy {} rule {}]",
                objections.join("; "),
                crate::config::POLICY,
                admission.rule()
            )))));
        }
        if admission.enter() == EnterMode::Deny {
            return Ok(Err(Refused(format!(
                "refused: exec into this container is not allowed (enter = \"deny\") [policy {} rule {}]",
                crate::config::POLICY,
                admission.rule()
            ))));
        }
        Ok(Ok(()))
    }

    fn executed(
        &mut self,
        programs: &[Program],
        process: &Process,
        args: &[String],
        how: How,
    ) -> Result<()> {
        for program in programs {
            self.journal.execution(&program.path, program.digest)?;
        }
        let Some(program) = programs.first() else {
            bail!("nothing to execute")
        };
        self.journal.record(&Event::Exec(Exec {
            path: encode_path(&program.path),
            digest: program.digest,
            args_digest: self.salted(args),
            uid: process.user().uid(),
            gid: process.user().gid(),
            how,
        }))
    }

    /// Says in PCR 8 what was denied; a fault that cannot be recorded ends in the caller's refusal anyhow.
    fn deny(&self, kind: &str, reason: &str) {
        if let Err(error) = self.fault(kind, reason) {
            eprintln!("attestrun guard: {error:#}");
        }
    }

    /// SHA-256 over the vTPM key's name, which no other container has, and the arguments.
    fn salted(&self, args: &[String]) -> String {
        let mut hash = Sha256::new_with_prefix(self.identity.aik.name.as_bytes());
        for arg in args {
            hash.update((arg.len() as u64).to_be_bytes());
            hash.update(arg);
        }
        hex::encode(hash.finalize())
    }
}

/// The container's root as its init sees it, mounts and all.
fn root_of(holdings: &Holdings) -> Result<OwnedFd> {
    let pid = holdings.init()?;
    let path = format!("/proc/{pid}/root");
    let root = rustix::fs::open(
        &path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("cannot open the container's root {path}"))?;
    // the pid was read first: had init ended meanwhile, its number could be another process's
    anyhow::ensure!(
        !crate::ending::has_ended(&holdings.pidfd),
        "the container has ended"
    );
    Ok(root)
}

fn entered(
    process: &Process,
    program: Option<&Program>,
    verdict: EnterVerdict,
    reason: &str,
) -> Event {
    let argument = process
        .args()
        .as_deref()
        .and_then(<[_]>::first)
        .map(String::as_str)
        .unwrap_or_default();
    let mut capabilities: Vec<String> = process
        .capabilities()
        .as_ref()
        .and_then(|c| c.effective().clone())
        .into_iter()
        .flatten()
        .map(|c| format!("CAP_{}", c.to_string().trim_start_matches("CAP_")))
        .collect();
    capabilities.sort();
    Event::Enter(Enter {
        verdict,
        path: program.map_or_else(
            || encode_path(argument.as_bytes()),
            |p| encode_path(&p.path),
        ),
        digest: program.map(|p| p.digest),
        user: Ids {
            uid: process.user().uid(),
            gid: process.user().gid(),
        },
        capabilities,
        tty: process.terminal().unwrap_or(false),
        reason: reason.chars().take(1024).collect(),
    })
}
