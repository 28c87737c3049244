//! create's side of keeper, guard and host service: begin, have judged and measured, bind, hand over.
//!
//! Each step returns a witness that the next one owns; dropping [`Guarding`] before [`Guarding::hand_over`]
//! ends keeper, guard and vTPM, and the host service voids what it had bound.

use crate::{
    ending::{self, Extent},
    guard,
    guard::{ANNOTATIONS, Application, FromCreate, Kept, Measured},
    host,
    ipc::{Answer, Channel},
    keeper, slice, spawn,
    state::RunDir,
};
use anyhow::{Context, Result};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::{Duration, Instant},
};
use verify::{
    digest::FileDigest,
    id::{ContainerId, RunId},
};

/// Judging a large image for the first time takes as long as reading it does.
const JUDGING: Duration = Duration::from_secs(230);

pub struct Guarding {
    run_id: RunId,
    run_dir: RunDir,
    keeper: Child,
    to_keeper: Channel,
    to_guard: Channel,
    /// The guard's channel for the host service.
    for_host: Option<OwnedFd>,
    /// The keeper holds the container: from here on its end is the container's end.
    kept: bool,
    handed_over: bool,
}

/// The guard admitted and measured this application. Only [`Guarding::judge`] makes one.
pub struct Admitted(Measured);

/// The host service logged and extended the record, and the guard took it. Only [`Guarding::bind`] makes one.
pub struct Bound {
    host: host::Client,
    program: PathBuf,
    start_hooks: Vec<FileDigest>,
}

impl Bound {
    /// What was judged, and so what must be executed.
    pub fn program(&self) -> &Path {
        &self.program
    }
    /// What the startContainer hooks are, in their order.
    pub fn start_hooks(&self) -> &[FileDigest] {
        &self.start_hooks
    }
}

impl Admitted {
    /// Adds to `annotations` whose container it is, and takes out what a caller pretended.
    pub fn name_owner(&self, annotations: &mut BTreeMap<String, String>) {
        annotations.retain(|key, _| !key.starts_with(ANNOTATIONS));
        annotations.extend(self.0.owner.clone());
    }
}

impl Guarding {
    /// Starts keeper, guard and vTPM; they get ready while the caller goes on.
    pub fn begin(
        run_dir: &RunDir,
        run_id: &RunId,
        container: &ContainerId,
        kept: Option<String>,
    ) -> Result<Self> {
        let (to_keeper, keepers) = Channel::pair()?;
        let (to_guard, guards) = Channel::pair()?;
        let (for_host, hosts) = Channel::pair()?;
        let log = log_of(run_dir);
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        // keeper and guard alone keep it open, as their standard error: see `wait_for_end`
        flock(&file, FlockOperation::LockShared)?;
        let keeper = spawn::keeper(keepers.into_fd(), file)?;
        let this = Self {
            run_id: run_id.clone(),
            run_dir: run_dir.clone(),
            keeper,
            to_keeper,
            to_guard,
            for_host: Some(for_host.into_fd()),
            kept: false,
            handed_over: false,
        };
        this.to_guard.set_timeout(JUDGING)?;
        this.to_keeper.set_timeout(JUDGING)?;
        let begin = keeper::Begin {
            run_id: run_id.clone(),
            container: container.clone(),
            kept,
        };
        let channels = [guards.into_fd(), hosts.into_fd()];
        this.to_keeper
            .send(&begin, &[channels[0].as_fd(), channels[1].as_fd()])
            .map_err(|e| this.explained(e))?;
        Ok(this)
    }

    pub fn judge(&mut self, application: Application) -> Result<Admitted> {
        let question = FromCreate::Admit(Box::new(application));
        let answer: Answer<Measured> = self
            .to_guard
            .ask(&question, &[])
            .map_err(|e| self.explained(e))?;
        Ok(Admitted(answer.into_result()?))
    }

    pub fn bind(&mut self, host: host::Client, admitted: Admitted) -> Result<Bound> {
        let guard = self.for_host.take().context("bound twice")?;
        let Measured {
            claim,
            program,
            start_hooks,
            endorsable,
            ..
        } = admitted.0;
        let record = host
            .bind(&self.run_id, claim, endorsable, &guard)
            .context("the host service does not bind")?;
        let answer: Answer<()> = self
            .to_guard
            .ask(&FromCreate::Bound { record }, &[])
            .map_err(|e| self.explained(e))?;
        answer.into_result()?;
        Ok(Bound {
            host,
            program,
            start_hooks,
        })
    }

    /// Gives the container whose init is `init` into the hands of guard, keeper and host service.
    pub fn hand_over(mut self, bound: Bound, init: u32, extent: Extent) -> Result<Kept> {
        let (means, fds) = ending::descriptors(init, extent)?;
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let answer: Answer<Kept> = self
            .to_guard
            .ask(&FromCreate::Attach { means }, &fds)
            .map_err(|e| self.explained(e))?;
        let kept = answer.into_result()?;
        let keep = || -> Result<(Answer<()>, Vec<OwnedFd>)> {
            self.to_keeper.send(&keeper::Keep { means }, &fds)?;
            self.to_keeper.expect()
        };
        let (answer, group) = keep().map_err(|e| self.explained(e))?;
        answer.into_result()?;
        self.kept = true;
        bound.host.attach(*fds.first().context("no pidfd")?)?;
        if let [group] = &group[..] {
            let keeper = pidfd_open(Pid::from_child(&self.keeper), PidfdFlags::empty())?;
            bound.host.hold(&keeper, group)?;
        }
        self.handed_over = true;
        Ok(kept)
    }

    /// A guard that closed its channel has said why in its log.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let said = fs::read_to_string(log_of(&self.run_dir)).unwrap_or_default();
        match said.lines().last() {
            Some(line) => error.context(format!(
                "the container's guard does not work; it said: {line}"
            )),
            None => error.context("the container's guard does not work"),
        }
    }
}

impl Drop for Guarding {
    fn drop(&mut self) {
        if !self.handed_over {
            self.to_keeper
                .stream()
                .shutdown(std::net::Shutdown::Both)
                .ok();
            if self.kept {
                // it does not listen to us any more; the guard sees its end and kills the container
                self.keeper.kill().ok();
            }
            self.keeper.wait().ok();
            slice::remove(&self.run_id).ok();
        }
    }
}

/// Waits until keeper and guard of a run are gone, also those of a killed create, which may only just
/// be starting; not for ever, since a container must always be deletable.
pub fn wait_for_end(run_dir: &RunDir) {
    let Ok(file) = File::open(log_of(run_dir)) else {
        return; // there never were any
    };
    let deadline = Instant::now() + ENDING;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
        && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Keeper and guard see the container's end, or create's, within milliseconds.
const ENDING: Duration = Duration::from_secs(5);

/// The guard agreed to this one start or exec, and has recorded it. Only [`ask`] makes one.
pub struct Agreed {
    program: PathBuf,
}

impl Agreed {
    /// What was judged, and so what must be executed.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

fn log_of(run_dir: &RunDir) -> std::path::PathBuf {
    run_dir.path().join("guard.log")
}

/// Asks the guard of a run, which refuses in its absence: without a guard nothing starts and nothing enters.
pub fn ask(run_dir: &RunDir, question: &guard::FromVerb) -> Result<Agreed> {
    let socket = run_dir.path().join(guard::SOCKET);
    let stream = UnixStream::connect(&socket).map_err(|error| {
        crate::ipc::Refused(format!(
            "refused: the container has no guard ({}: {}), so nothing may start or enter; delete it and create it again",
            socket.display(),
            error.kind()
        ))
    })?;
    let guard = Channel::new(stream);
    guard.set_timeout(JUDGING)?;
    let answer: Answer<PathBuf> = guard.ask(question, &[])?;
    Ok(Agreed {
        program: answer.into_result()?,
    })
}
