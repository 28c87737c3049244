//! Starting and entering: the process is judged by the list, recorded, and only then allowed.
//!
//! Without a gate in the kernel (tier `none`) this judges what attestrun itself is asked to start;
//! what those programs execute later is not seen, and evidence says so.

use super::Guarded;
use crate::{
    ending::Holdings,
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
    event::{Enter, EnterMode, EnterVerdict, Event, Exec, How, Ids},
    imalog::encode_path,
    policy::plain_text,
    profile::{ProcessProfile, judge_process},
};

impl Guarded {
    /// The container's own first process.
    pub(super) fn start(&mut self, holdings: &Holdings) -> Result<PathBuf> {
        let process = self.admitted.process.clone();
        let root = root_of(holdings)?;
        let path = programs::find(root.as_fd(), &Search::of(&process))?;
        if path != self.admitted.program {
            let (now, then) = (path.display(), self.admitted.program.display());
            return Err(Refused(plain_text(&format!(
                "refused: PATH leads to {now} in the container, and led to {then} when it was created"
            )))
            .into());
        }
        let programs = programs::resolve(root.as_fd(), &path, &|_| None)?;
        self.judge(&programs)
            .inspect_err(|refused| self.deny("entrypoint", &refused.to_string()))?;
        self.journal.record(&Event::Start)?;
        self.executed(&programs, &process, How::Entrypoint)?;
        Ok(path)
    }

    /// A process that somebody wants inside, as `exec` passes it.
    pub(super) fn enter(&mut self, process: &str, holdings: &Holdings) -> Result<PathBuf> {
        let process: Process =
            serde_json::from_str(process).context("the process to enter is malformed")?;
        match self.may_enter(&process, holdings) {
            Ok((path, programs)) => {
                self.journal.record(&entered(
                    &process,
                    programs.first(),
                    EnterVerdict::Allowed,
                    "",
                ))?;
                self.executed(&programs, &process, How::Enter)?;
                Ok(path)
            }
            Err(error) => {
                let reason = error.to_string();
                if error.is::<Refused>() {
                    self.journal
                        .record(&entered(&process, None, EnterVerdict::Denied, &reason))?;
                    self.deny("enter", &reason);
                }
                Err(error)
            }
        }
    }

    fn may_enter(&self, process: &Process, holdings: &Holdings) -> Result<(PathBuf, Vec<Program>)> {
        let admission = &self.admitted.admission;
        let profile = ProcessProfile::of(process)?;
        judge_process(
            &profile,
            admission.profile().profile(),
            admission.launch_rules(),
        )
        .map_err(|objections| {
            let objections: Vec<_> = objections.iter().map(ToString::to_string).collect();
            Refused(plain_text(&format!(
                "refused: exec into this container: {} [policy {} rule {}]",
                objections.join("; "),
                crate::config::POLICY,
                admission.rule()
            )))
        })?;
        if admission.enter() == EnterMode::Deny {
            return Err(Refused(format!(
                "refused: exec into this container is not allowed (enter = \"deny\" in rule {})",
                admission.rule()
            ))
            .into());
        }
        let root = root_of(holdings)?;
        let path = programs::find(root.as_fd(), &Search::of(process))?;
        let programs = programs::resolve(root.as_fd(), &path, &|_| None)?;
        if admission.enter() == EnterMode::Listed {
            self.judge(&programs)?;
        }
        Ok((path, programs))
    }

    /// Every file that the kernel would execute must be in the list, by its content.
    pub(super) fn judge(&self, programs: &[Program]) -> Result<(), Refused> {
        self.admitted.judge(programs)
    }

    fn executed(&mut self, programs: &[Program], process: &Process, how: How) -> Result<()> {
        for program in programs {
            self.journal.execution(&program.path, program.digest)?;
        }
        let Some(program) = programs.first() else {
            bail!("nothing to execute")
        };
        self.journal.record(&Event::Exec(Exec {
            path: encode_path(&program.path),
            digest: program.digest,
            args_digest: self.salted(process.args().as_deref().unwrap_or_default()),
            uid: process.user().uid(),
            gid: process.user().gid(),
            how,
        }))
    }

    /// Says in PCR 8 what was denied; a fault that cannot be recorded ends in the caller's refusal anyhow.
    fn deny(&mut self, kind: &str, reason: &str) {
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
