//! The embedded backend: libcontainer makes the container from the sealed configuration in memory.
//!
//! libcontainer's init is a fork without exec of this process: nothing here starts a thread, and no
//! secret may live in this process. Its builders are not used: they read config.json from disk a
//! second time and know no seccomp on exec; the procedure beneath them is public.

mod cwd;
mod lend;
mod mounts;
mod tenant;
mod undo;

use super::{
    ExecOptions, Made, Options,
    cgroup::{Cgroup, Visit, forget_zeros, is_unified},
    cgroup_config,
    devices::{self, Rules},
    executor::{Program, Role},
    needs,
    notifier::Notifier,
    seccomp,
    start_hooks::StartHooks,
    trace,
};
use crate::{
    bundle::SealedBundle,
    guarding::Bound,
    state::State,
    sys,
    term::{self, Terminal},
};
use anyhow::{Context, Result, anyhow, ensure};
use cwd::{host_id, make_cwd};
use lend::{Needs, lend};
use libcgroups::common::{CgroupManager, ControllerOpt, create_cgroup_manager};
use libcontainer::{
    apparmor,
    container::{Container, ContainerStatus, State as HookState},
    hooks,
    notify_socket::{NotifyListener, NotifySocket},
    process::{
        args::{ContainerArgs, ContainerType},
        channel::ChannelError,
        container_main_process::{ProcessError, container_main_process},
    },
    syscall::syscall::{SyscallType, create_syscall},
    user_ns::UserNamespaceConfig,
    utils,
    validator::Validator,
};
use oci_spec::runtime::{Hook, LinuxResources, Process, Spec};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::{
    ffi::CString,
    fs,
    io::Read,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    rc::Rc,
};
use tenant::{Namespaces, tenant_spec};
use undo::Undo;
use verify::digest::FileDigest;

pub use lend::Lent;
pub use mounts::Step;

const NOTIFY: &str = "notify.sock";

pub fn create(
    state: &State,
    sealed: &SealedBundle,
    bound: &Bound,
    options: Options,
    terminal: Terminal,
) -> Result<Made> {
    let spec = &sealed.spec;
    validate(spec)?;
    let dir = state.run_dir().backend();
    fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let undo = Undo::new(Some(state));
    make_cwd(sealed).context("cannot make the working directory in the rootfs")?;
    let container = Container {
        state: hook_state(state, ContainerStatus::Creating, None),
        root: dir.clone(),
    };
    let mut inner = spec.clone();
    if let Some(linux) = inner.linux_mut()
        && let Some(resources) = linux.resources_mut()
    {
        forget_zeros(resources);
    }
    let steps = mounts::adapt(&mut inner, &state.cgroups_path)?;
    let rules = Rules::of(spec)?;
    if !is_unified() {
        devices::closed(&mut inner)?;
    } else if !state.systemd_cgroup {
        // before anything of the container runs, hooks included: some of them add rules of their own
        rules.enforce_v2(Cgroup::at(&state.cgroups_path)?.make_unified()?)?;
    }
    let launch = Launch {
        state,
        kind: ContainerType::InitContainer,
        role: Role::Init,
        program: bound.program().to_owned(),
        start_hooks: bound.start_hooks().to_vec(),
        spec: inner,
        steps,
        rootfs: sealed.rootfs.clone(),
        notify: dir.join(NOTIFY),
        container,
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        preserve_fds: options.preserve_fds,
        detached: options.detached,
        terminal,
    };
    enter_for_hooks(sealed)?;
    let made = launch
        .run()
        .map_err(|e| e.context("unable to start container process"))?;
    let cgroup = Cgroup::of_container(made.pid)?;
    if is_unified() && state.systemd_cgroup {
        let dir = cgroup.dir("").context("init is in no cgroup")?;
        rules.enforce_v2(dir)?; // systemd made the directory
    } else if let Some(dir) = cgroup.dir("devices") {
        rules.correct_v1(dir)?;
    }
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    if let Some(block) = resources.and_then(|r| r.block_io().as_ref()) {
        cgroup.set_device_weights(block)?;
    }
    if let Some(resources) = resources {
        cgroup.complete_unified(resources)?;
    }
    undo.disarm();
    Ok(made)
}

/// runc runs createContainer hooks in the rootfs; libcontainer where the caller is.
fn enter_for_hooks(sealed: &SealedBundle) -> Result<()> {
    let hooks = sealed.spec.hooks().as_ref();
    let hooks = hooks.and_then(|h| h.create_container().as_ref());
    if hooks.is_none_or(Vec::is_empty) {
        return Ok(());
    }
    rustix::process::fchdir(&sealed.rootfs_fd)
        .with_context(|| format!("cannot change to {}", sealed.rootfs.display()))
}

/// Lets init go on to execve, then runs the poststart hooks.
pub fn start(state: &State) -> Result<()> {
    let socket = state.run_dir().backend().join(NOTIFY);
    NotifySocket::new(socket)
        .notify_container_start()
        .context("init does not take the start signal")?;
    let spec = SealedBundle::read_spec(&state.run_dir())?;
    let poststart = spec.hooks().as_ref().and_then(|h| h.poststart().clone());
    run_hooks(poststart, state, ContainerStatus::Running).map_err(|e| {
        // runtime-spec, "Poststart": an error stops the container
        state.end_all().ok();
        e.context("error running poststart hook")
    })
}

/// What [`super::Backend::destroy`] leaves to the backend: systemd's scope and poststop hooks.
pub fn destroy(state: &State) -> Result<()> {
    if state.systemd_cgroup {
        create_cgroup_manager(cgroup_config(state))?
            .remove()
            .context("cannot remove the container's scope")?;
    }
    // without an init there was no container, and the hooks may be what it was refused for
    let spec = state
        .init
        .map(|_| SealedBundle::read_spec(&state.run_dir()));
    if let Some(Ok(spec)) = spec {
        let poststop = spec.hooks().as_ref().and_then(|h| h.poststop().clone());
        // runtime-spec, "Poststop": a failing hook stops nothing
        run_hooks(poststop, state, ContainerStatus::Stopped).ok();
    }
    Ok(())
}

pub fn exec(
    state: &State,
    process: Process,
    program: &Path,
    options: &ExecOptions,
) -> Result<Made> {
    let sealed = SealedBundle::read_spec(&state.run_dir())?;
    // descriptors first, then the proof that init still is who the record says: a reused pid cannot
    // put the process into a stranger's namespaces
    let init = state.init.context("the container has no init")?;
    let namespaces = Namespaces::open(&sealed, init.pid)?;
    ensure!(
        init.pidfd()?.is_some(),
        "cannot exec in a stopped container"
    );
    let (mut errors, notify_fd) = std::io::pipe()?;
    let spec = tenant_spec(&sealed, process, &namespaces)?;
    let dir = state.run_dir().backend();
    let notify = dir.join(format!("exec-{}.sock", std::process::id()));
    let container = Container {
        state: hook_state(state, ContainerStatus::Running, Some(init.pid)),
        root: dir.clone(),
    };
    let undo = Undo::new(None);
    let _making = state.run_dir().hold_making()?;
    let launch = Launch {
        state,
        kind: ContainerType::TenantContainer {
            exec_notify_fd: notify_fd.as_raw_fd(),
        },
        role: Role::Tenant,
        program: program.to_owned(),
        start_hooks: Vec::new(),
        rootfs: spec
            .root()
            .as_ref()
            .map(|r| r.path().clone())
            .unwrap_or_default(),
        spec,
        steps: Vec::new(),
        notify: notify.clone(),
        container,
        no_pivot: false,
        no_new_keyring: state.no_new_keyring,
        preserve_fds: options.preserve_fds,
        detached: options.detached,
        terminal: options.terminal.clone(),
    };
    let made = launch.run();
    let started = made.and_then(|made| {
        state.cgroup.move_below(made.pid, &options.cgroup)?;
        NotifySocket::new(&notify)
            .notify_container_start()
            .context("the process does not take its start signal")?;
        Ok(made)
    });
    fs::remove_file(&notify).ok();
    drop(notify_fd);
    let made = started.map_err(|e| e.context("unable to start container process"))?;
    // the other end closes at execve, or brings the reason why there was none
    let mut why = String::new();
    errors
        .read_to_string(&mut why)
        .context("cannot hear from the process")?;
    ensure!(why.is_empty(), "unable to start container process: {why}");
    undo.disarm();
    Ok(made)
}

pub fn update(state: &State, resources: &LinuxResources) -> Result<()> {
    let mut rest = resources.clone();
    if let Some(cpu) = rest.cpu_mut()
        && state.cgroup.set_cpu_time(cpu)?
    {
        cpu.set_shares(None)
            .set_quota(None)
            .set_period(None)
            .set_realtime_period(None)
            .set_realtime_runtime(None);
    }
    if state.systemd_cgroup {
        let lacks = needs::beyond_systemd(&rest);
        ensure!(
            lacks.is_empty(),
            "the embedded backend, which made this container, cannot change {}; `backend = \"runc\"` in {} makes \
             containers for which that can be done",
            lacks.join(", "),
            crate::config::PATH
        );
        state.cgroup.with_time_in_force(&mut rest)?;
    }
    let manager = create_cgroup_manager(cgroup_config(state))?;
    let options = ControllerOpt {
        resources: &rest,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager.apply(&options).context("cannot apply the limits")?;
    state.cgroup.complete_unified(&rest)
}

/// One call of libcontainer's main process, for init and for exec alike.
struct Launch<'a> {
    state: &'a State,
    kind: ContainerType,
    role: Role,
    program: PathBuf,
    start_hooks: Vec<FileDigest>,
    spec: Spec,
    steps: Vec<Step>,
    rootfs: PathBuf,
    notify: PathBuf,
    container: Container,
    no_pivot: bool,
    no_new_keyring: bool,
    preserve_fds: u32,
    detached: bool,
    terminal: Terminal,
}

impl Launch<'_> {
    fn run(mut self) -> Result<Made> {
        trace::keep();
        let process = self
            .spec
            .process()
            .clone()
            .context("Process must be specified")?;
        let user = host_id(&self.spec, process.user().uid());
        let (executor, notifier) = self.prepare_program(&process)?;
        let listener =
            NotifyListener::new(&self.notify).context("cannot listen for the start signal")?;
        set_oom_score(process.oom_score_adj())?;
        if !self.no_new_keyring {
            let name = CString::new(format!("_ses.{}", self.state.id))?;
            sys::join_session_keyring(&name)
                .context("cannot join the container's session keyring")?;
        }
        let console = match &self.terminal {
            Terminal::None => {
                term::give_streams(user, self.detached);
                None
            }
            Terminal::Socket(_) | Terminal::Own => Some(term::channel()?),
        };
        // nobody inside the namespaces that we are about to enter may trace us or read our memory
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot become undumpable")?;
        let args = ContainerArgs {
            container_type: self.kind,
            syscall: SyscallType::default(),
            rootfs: self.rootfs,
            console_socket: console.as_ref().map(|(_, theirs)| theirs.as_raw_fd()),
            notify_listener: listener,
            preserve_fds: self.preserve_fds.try_into().context("--preserve-fds")?,
            container: Some(self.container),
            user_ns_config: UserNamespaceConfig::new(&self.spec)?,
            cgroup_config: match self.role {
                Role::Init => cgroup_config(self.state),
                Role::Tenant => tenant::cgroup_config(self.state)?,
            },
            detached: self.detached,
            executor: Box::new(executor),
            no_pivot: self.no_pivot,
            stdin: None,
            stdout: None,
            stderr: None,
            as_sibling: false,
            // written by us, once everything has succeeded
            pid_file: None,
            spec: Rc::new(self.spec),
        };
        let visit = match self.state.systemd_cgroup {
            true => None,
            false => Some(Visit::begin(&self.state.cgroups_path)?),
        };
        let pid = container_main_process(&args)
            .map_err(|e| explain(&e))?
            .as_raw();
        visit.map(Visit::end).transpose()?;
        if let Some(notifier) = notifier {
            notifier.prepare(pid, self.state)?;
        }
        let master = match console {
            None => None,
            Some((ours, theirs)) => {
                drop(theirs);
                term::deliver(&ours, &self.terminal, process.console_size(), user)?
            }
        };
        Ok(Made { pid, master })
    }

    /// Takes the filter, and what libcontainer cannot do with capabilities, out of its hands: both
    /// are done by the process itself right before execve, with capabilities lent until then.
    fn prepare_program(&mut self, process: &Process) -> Result<(Program, Option<Rc<Notifier>>)> {
        let linux = self
            .spec
            .linux_mut()
            .as_mut()
            .context("linux must be specified")?;
        let profile = linux.seccomp().as_ref();
        let notifier = profile
            .map(Notifier::of)
            .transpose()?
            .flatten()
            .map(Rc::new);
        let filter = profile.map(seccomp::compile).transpose()?;
        linux.set_seccomp(None);
        // libcontainer applies the flag recursively anyhow, and knows it by its short name only
        let propagation = linux
            .rootfs_propagation()
            .as_ref()
            .map(|flag| match flag.as_str() {
                "rslave" | "rprivate" | "rshared" | "runbindable" => flag[1..].to_owned(),
                _ => flag.clone(),
            });
        linux.set_rootfs_propagation(propagation);
        let mut lent = process.clone();
        let no_new_privileges = process.no_new_privileges() == Some(true);
        let needs = Needs {
            filter: filter.is_some() && !no_new_privileges,
            steps: !self.steps.is_empty(),
        };
        let own = lend(&mut lent, needs)?;
        // without HOME libcontainer would ask the C library for it, which loads modules from the
        // container's own files; the executor sets the real value
        let mut env = process.env().clone().unwrap_or_default();
        if !env
            .iter()
            .any(|e| e.strip_prefix("HOME=").is_some_and(|home| !home.is_empty()))
        {
            env.retain(|e| !e.starts_with("HOME="));
            env.push("HOME=/".to_owned());
        }
        lent.set_env(Some(env));
        self.spec.set_process(Some(lent));
        let steps = std::mem::take(&mut self.steps);
        let hooks = self.take_start_hooks()?;
        let seccomp = (filter, notifier.clone());
        let judged = &self.program;
        let program = Program::new(self.role, process, judged, seccomp, hooks, steps, own)?;
        Ok((program, notifier))
    }
}

impl Launch<'_> {
    /// libcontainer would run them before the filter is loaded, and whatever lies at their paths then.
    fn take_start_hooks(&mut self) -> Result<StartHooks> {
        let mut hooks = Vec::new();
        if let (Role::Init, Some(all)) = (self.role, self.spec.hooks_mut()) {
            hooks = all.start_container().clone().unwrap_or_default();
            all.set_start_container(None);
        }
        ensure!(
            hooks.len() == self.start_hooks.len(),
            "{} startContainer hooks were judged, and there are {}",
            self.start_hooks.len(),
            hooks.len()
        );
        let mut told = hook_state(self.state, ContainerStatus::Created, None);
        told.pid = Some(1); // in the container's own pid namespace, where they run
        let told = serde_json::to_string(&oci_spec::runtime::State::try_from(&told)?)?;
        let judged = hooks.into_iter().zip(self.start_hooks.drain(..));
        Ok(StartHooks::new(judged.collect(), told))
    }
}

/// What InitContainerBuilder checks before it begins.
fn validate(spec: &Spec) -> Result<()> {
    Validator::validate_spec(spec)?;
    let profile = spec
        .process()
        .as_ref()
        .and_then(|p| p.apparmor_profile().clone());
    if profile.is_some_and(|p| !p.is_empty()) {
        ensure!(
            // a kernel without the module has no file that says so
            apparmor::is_enabled().unwrap_or(false),
            "apparmor is not enabled on this host, the configuration names a profile"
        );
    }
    let syscall = create_syscall();
    utils::validate_spec_for_new_user_ns(spec, &*syscall)?;
    utils::validate_spec_for_net_devices(spec, &*syscall)?;
    Ok(())
}

/// Inherited by the container's processes. Writing the value that is set already needs no privilege.
fn set_oom_score(wanted: Option<i32>) -> Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let Some(wanted) = wanted.map(|w| w.to_string()) else {
        return Ok(());
    };
    if fs::read_to_string(PATH).is_ok_and(|now| now.trim() == wanted) {
        return Ok(());
    }
    fs::write(PATH, &wanted).with_context(|| format!("cannot write {wanted} to {PATH}"))
}

fn hook_state(state: &State, status: ContainerStatus, pid: Option<i32>) -> HookState {
    // hooks see the bundle that the caller named, not the sealed one
    let mut hook_state = HookState::new(state.id.as_str(), status, pid, state.bundle.clone());
    hook_state.annotations = Some(state.annotations.clone().into_iter().collect());
    hook_state
}

fn run_hooks(hooks: Option<Vec<Hook>>, state: &State, status: ContainerStatus) -> Result<()> {
    let pid = state
        .init
        .filter(|_| status != ContainerStatus::Stopped)
        .map(|i| i.pid);
    Ok(hooks::run_hooks(
        hooks.as_ref(),
        Some(&hook_state(state, status, pid)),
        None,
        None,
        None,
    )?)
}

/// The words of an error, with the cause that libcontainer leaves in its trace.
fn explain(error: &ProcessError) -> anyhow::Error {
    let mut text = match error {
        ProcessError::Channel(ChannelError::ExecError(text)) => text
            .strip_prefix("error in executing process : ")
            .unwrap_or(text)
            .to_owned(),
        other => other.to_string(),
    };
    if text.starts_with("exec: ") {
        return anyhow!("{text}"); // the executor's own words
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let first = trace::first_error();
    if first.is_empty() || text.contains(&first) {
        anyhow!("{text}")
    } else {
        anyhow!("{text}: {first}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executors_words_come_first() {
        let inner = "exec: \"x\": executable file not found in $PATH";
        let wrapped = format!("error in executing process : {inner}");
        let error = ProcessError::Channel(ChannelError::ExecError(wrapped));
        assert_eq!(explain(&error).to_string(), inner);
    }
}
