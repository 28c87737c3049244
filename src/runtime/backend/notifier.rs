//! A seccomp notifier: the listener of the filter goes to the agent that the profile names
//! (runtime-spec, "Seccomp", `listenerPath`).
//!
//! The agent is connected before the fork, in the host's mount namespace; the process that loads the
//! filter hands the listener over. From then on each of its system calls may have to wait for the agent,
//! so another thread, which the filter does not bind, does the talking.

use super::seccomp::{self, Filter};
use crate::{state::State, sys, term};
use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;
use std::{
    fs::File,
    hint::spin_loop,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

#[derive(Debug)]
pub struct Notifier {
    agent: UnixStream,
    /// What the agent is told, written by the parent as soon as it knows the process's number. The
    /// process has it from the fork, and goes on to its program only after that.
    message: File,
    metadata: String,
}

impl Notifier {
    /// Connects to the agent, if the profile asks for notifications.
    pub fn of(profile: &LinuxSeccomp) -> Result<Option<Self>> {
        if !seccomp::wants_notifier(profile) {
            return Ok(None);
        }
        let notify = LinuxSeccompAction::ScmpActNotify;
        ensure!(
            profile.default_action() != notify,
            "SCMP_ACT_NOTIFY cannot be used as default action"
        );
        let mut calls = profile.syscalls().iter().flatten();
        ensure!(
            !calls.any(|c| c.action() == notify && c.names().iter().any(|n| n == "write")),
            "SCMP_ACT_NOTIFY cannot be used for the write syscall"
        );
        let path = profile.listener_path().clone().unwrap_or_default();
        ensure!(
            !path.as_os_str().is_empty(),
            "seccomp: SCMP_ACT_NOTIFY needs a listenerPath"
        );
        let agent = UnixStream::connect(&path).with_context(|| {
            format!(
                "failed to connect with seccomp agent specified in the seccomp profile: {}",
                path.display()
            )
        })?;
        Ok(Some(Self {
            agent,
            message: memfd_create("seccomp-agent", MemfdFlags::CLOEXEC)?.into(),
            metadata: profile.listener_metadata().clone().unwrap_or_default(),
        }))
    }

    /// runtime-spec, "Container Process State": `pid` has been forked, and waits.
    pub fn prepare(&self, pid: i32, state: &State) -> Result<()> {
        let version = oci_spec::runtime::VERSION;
        let message = json!({
            "ociVersion": version,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.metadata,
            "state": {
                "ociVersion": version,
                "id": state.id,
                "status": if state.init.is_some() { "running" } else { "creating" },
                "pid": state.init.map_or(pid, |init| init.pid),
                "bundle": state.bundle,
                "annotations": state.annotations,
            },
        });
        self.message
            .write_all_at(message.to_string().as_bytes(), 0)
            .context("cannot prepare the message for the seccomp agent")
    }

    /// In the process itself: loads the filter and returns when the agent has its listener.
    pub fn load(&self, filter: &Filter) -> Result<(), String> {
        let why = |e: std::io::Error| format!("seccomp agent: {e}");
        let size = self.message.metadata().map_err(why)?.len();
        let mut message = vec![0; usize::try_from(size).unwrap_or(0)];
        self.message.read_exact_at(&mut message, 0).map_err(why)?;
        let agent = self.agent.try_clone().map_err(why)?;
        let errand = Arc::new(Errand {
            step: AtomicU8::new(WAITING),
            listener: Mutex::new(None),
        });
        let theirs = Arc::clone(&errand);
        // execve ends it, if it has not ended by then
        thread::Builder::new()
            .spawn(move || theirs.run(&agent, &message))
            .map_err(why)?;
        match sys::load_seccomp_listening(&filter.program, filter.flags) {
            Ok(fd) => errand.hand_over(fd),
            Err(error) => {
                errand.step.store(FAILED, Ordering::Release);
                Err(format!("seccomp: {error}"))
            }
        }
    }
}

/// Between the process that the filter binds and its thread that it does not.
struct Errand {
    step: AtomicU8,
    listener: Mutex<Option<OwnedFd>>,
}

const WAITING: u8 = 0;
const LOADED: u8 = 1;
const SENT: u8 = 2;
const FAILED: u8 = 3;

impl Errand {
    /// No system call here until the agent can answer it.
    fn hand_over(&self, fd: OwnedFd) -> Result<(), String> {
        if let Ok(mut place) = self.listener.try_lock() {
            *place = Some(fd);
        }
        self.step.store(LOADED, Ordering::Release);
        while self.step.load(Ordering::Acquire) == LOADED {
            spin_loop();
        }
        match self.step.load(Ordering::Acquire) {
            SENT => Ok(()),
            _ => Err("cannot send the listener to the seccomp agent".to_owned()),
        }
    }

    fn run(&self, agent: &UnixStream, message: &[u8]) {
        while self.step.load(Ordering::Acquire) == WAITING {
            thread::sleep(Duration::from_micros(100));
        }
        // closed after this: nobody else in this process keeps it, so that an agent's end is seen as such
        let listener = self.listener.lock().ok().and_then(|mut place| place.take());
        let sent = listener.is_some_and(|fd| term::send(agent, &[fd.as_fd()], message).is_ok());
        self.step
            .store(if sent { SENT } else { FAILED }, Ordering::Release);
    }
}
