//! Who makes the container: the embedded libcontainer or an external runc. The choice is made at
//! create, recorded, and kept for the container's life.

pub mod cgroup;
mod devices;
pub mod embedded;
mod executor;
pub mod external;
mod needs;
mod notifier;
mod seccomp;
mod start_hooks;
mod trace;

use crate::{
    bundle::{Bundle, SealedBundle},
    config::{BackendChoice, Config},
    guarding::{Agreed, Bound},
    state::State,
    term::{Pipes, Served, Terminal},
};
use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{LinuxResources, Process};
use serde::{Deserialize, Serialize};
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Backend {
    Libcontainer,
    Runc { path: PathBuf },
}

/// What `create` and `run` say beside the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserve_fds: u32,
    /// The caller goes away and leaves its standard streams to the container.
    pub detached: bool,
    pub debug: bool,
}

/// A process that a backend made: init waiting for `start`, or one of `exec`.
#[derive(Debug)]
pub struct Made {
    pub pid: i32,
    /// The pseudoterminal's master, if it is ours to serve.
    pub master: Option<OwnedFd>,
}

impl Made {
    /// With the pipes that were laid for it, if any.
    pub fn served(self, pipes: Option<Pipes>) -> Served {
        match (self.master, pipes) {
            (Some(master), _) => Served::Console(master),
            (None, Some(pipes)) => Served::Pipes(pipes),
            (None, None) => Served::Nothing,
        }
    }
}

impl Backend {
    /// `auto`: libcontainer where it gives what runc gives, else runc, else a refusal that names the
    /// feature. Never weaker than runc.
    pub fn choose(
        config: &Config,
        bundle: &Bundle,
        systemd_cgroup: bool,
        no_pivot: bool,
    ) -> Result<Self> {
        let lacks = || needs::beyond_libcontainer(bundle, systemd_cgroup, no_pivot);
        let runc = || Self::Runc {
            path: config.runc.clone(),
        };
        match config.backend {
            BackendChoice::Libcontainer => {
                let lacks = lacks();
                ensure!(
                    lacks.is_empty(),
                    "the embedded backend does not have what this container needs: {}; set `backend = \"auto\"` \
                     or \"runc\" in {}",
                    lacks.join(", "),
                    crate::config::PATH
                );
                Ok(Self::Libcontainer)
            }
            BackendChoice::Runc => {
                ensure!(
                    is_program(&config.runc),
                    "the backend {} is not installed",
                    config.runc.display()
                );
                Ok(runc())
            }
            BackendChoice::Auto => {
                let lacks = lacks();
                if lacks.is_empty() {
                    return Ok(Self::Libcontainer);
                }
                if is_program(&config.runc) {
                    return Ok(runc());
                }
                bail!(
                    "this container needs {}, which the embedded backend does not have, and {} is not installed",
                    lacks.join(", "),
                    config.runc.display()
                )
            }
        }
    }

    /// Makes init, which waits for `start`: only of what was admitted, measured and bound.
    pub fn create(
        &self,
        state: &State,
        sealed: &SealedBundle,
        bound: &Bound,
        options: Options,
        terminal: Terminal,
    ) -> Result<Made> {
        match self {
            Self::Libcontainer => embedded::create(state, sealed, bound, options, terminal),
            Self::Runc { path } => external::create(path, state, options, terminal),
        }
    }

    pub fn start(&self, state: &State, _agreed: Agreed) -> Result<()> {
        match self {
            Self::Libcontainer => embedded::start(state),
            Self::Runc { path } => external::simple(path, state, &["start"]),
        }
    }

    /// Ends what is left of the container: processes, cgroups, the backend's own state. Hooks of the
    /// poststop stage run. Everything may be gone already.
    pub fn destroy(&self, state: &State) -> Result<()> {
        state.end_all()?;
        match self {
            Self::Libcontainer => embedded::destroy(state),
            Self::Runc { path } => external::delete(path, state),
        }?;
        state.remove_cgroup()
    }

    /// A further process in the container; with `runc`, this process becomes runc and never returns.
    pub fn exec(
        &self,
        state: &State,
        process: Process,
        agreed: &Agreed,
        options: &ExecOptions,
    ) -> Result<Made> {
        match self {
            Self::Libcontainer => embedded::exec(state, process, agreed.program(), options),
            Self::Runc { path } => {
                let process = named(process, agreed.program());
                external::exec(path, state, &process, options)
            }
        }
    }

    /// What the backend logged at its last call, as JSON lines.
    pub fn said(&self, state: &State) -> String {
        match self {
            Self::Libcontainer => String::new(),
            Self::Runc { .. } => external::log(state),
        }
    }

    pub fn update(&self, state: &State, resources: &LinuxResources) -> Result<()> {
        match self {
            Self::Libcontainer => embedded::update(state, resources),
            Self::Runc { path } => external::update(path, state, resources),
        }
    }
}

#[derive(Debug, Clone)]
pub struct ExecOptions {
    pub preserve_fds: u32,
    pub terminal: Terminal,
    pub detached: bool,
    pub pid_file: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub ignore_paused: bool,
    pub cgroup: Vec<String>,
    /// Where errors go when this process becomes runc.
    pub log: Option<PathBuf>,
    pub log_is_json: bool,
    pub debug: bool,
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The configuration that libcontainer's cgroup managers take.
pub fn cgroup_config(state: &State) -> libcgroups::common::CgroupConfig {
    libcgroups::common::CgroupConfig {
        cgroup_path: state.cgroups_path.clone(),
        systemd_cgroup: state.systemd_cgroup,
        container_name: state.id.to_string(),
    }
}

/// The process with its program by path instead of by name: an external backend would search for the
/// name by rules of its own, and might find another file than the one that was judged.
pub fn named(mut process: Process, program: &Path) -> Process {
    let mut args = process.args().clone().unwrap_or_default();
    if let Some(first) = args.first_mut().filter(|first| !first.contains('/'))
        && let Some(path) = program.to_str()
    {
        *first = path.to_owned();
    }
    process.set_args(Some(args));
    process
}
