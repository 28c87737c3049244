//! The way of one container from its bundle to a waiting init; whatever fails undoes all of it.

use crate::{
    backend::{
        Backend, Options,
        cgroup::{Cgroup, scope},
    },
    bundle::{Bundle, SealedBundle},
    cli::{Create, Globals},
    config::Config,
    ending::Extent,
    executables,
    guard::{self, ANNOTATIONS, Application, FromVerb, Joins, VtpmUid},
    guarding::{self, Agreed, Guarding},
    host, kept,
    lending::{self, Lending},
    sharing, slice, spawn,
    state::{Birth, Index, Init, Phase, RunDir, State},
    term::{self, Laid, Served, Terminal},
};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Process;
use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsFd,
    path::Path,
};
use verify::id::UnixTime;

/// A container whose init waits for `start`.
pub struct Launched {
    pub state: State,
    /// What the foreground, if there is one, serves.
    pub served: Served,
}

/// Makes the container. `detached`: nobody serves it in the foreground.
pub fn create(
    request: &Create,
    globals: &Globals,
    detached: bool,
    config: &Config,
) -> Result<Launched> {
    let bundle = Bundle::open(&request.bundle)?;
    let process = bundle
        .spec
        .process()
        .as_ref()
        .context("process property must not be empty")?;
    let terminal = Terminal::choose(
        process.terminal().unwrap_or(false),
        request.console_socket.as_deref(),
        detached,
    )?;
    let kept = kept::wanted(&bundle.spec, config, &globals.root, &request.id)?;
    let backend = Backend::choose(config, &bundle, globals.systemd_cgroup, request.no_pivot)?;
    let mut launch = Launch::claim(request, globals, &bundle, backend)?;
    let state = &mut launch.state;
    // keeper, guard and vTPM get ready while this process seals the bundle
    let mut guarding = Guarding::begin(&state.run_dir(), &state.run_id, &state.id, kept)?;
    let host = host::Client::connect(config)?;
    let (spec, rootfs) = (&bundle.spec, bundle.rootfs_fd.as_fd());
    let lending = Lending::choose(spec, bundle.wish, rootfs, config.vtpm.in_containers)?;
    if let Lending::To { stubs, .. } = &lending {
        state.lent = true;
        state.stubs.clone_from(stubs);
    }
    let sealed = bundle.seal(
        &state.run_dir(),
        &state.id,
        &state.backend,
        state.systemd_cgroup,
        &lending,
    )?;
    state.cgroups_path = sealed.cgroups_path();
    let place = match state.systemd_cgroup {
        true => Some(scope::path(&state.cgroups_path)?),
        false => Some(state.cgroups_path.clone()).filter(|path| path.is_absolute()),
    };
    if let Some(place) = place {
        let planned = Cgroup::at(&place)?;
        match sharing::others_in(&planned, state, &sealed)? {
            0 if state.systemd_cgroup => {} // systemd makes it
            // ours from here on: whoever deletes the container may kill what is in it
            0 => state.cgroup = planned,
            others => globals.report.warning(&format!(
                "container's cgroup is not empty: {others} process(es) found"
            )),
        }
    }
    state.save()?;
    let admitted = guarding.judge(application(state, &sealed, &host)?)?;
    admitted.name_owner(&mut state.annotations);
    let said = (format!("{ANNOTATIONS}vtpm"), lending.to_string());
    state.annotations.extend([said]);
    let bound = guarding.bind(host, admitted)?;
    let options = Options {
        no_pivot: request.no_pivot,
        no_new_keyring: request.no_new_keyring,
        preserve_fds: request.preserve_fds,
        detached,
        debug: globals.debug,
    };
    let laid = (!detached && terminal == Terminal::None)
        .then(Laid::lay)
        .transpose()?;
    let made = state
        .backend
        .create(state, &sealed, &bound, options, terminal)?;
    let pipes = laid.map(Laid::take).transpose()?;
    if globals.debug {
        globals.report.pass_on(&state.backend.said(state));
    }
    let init = Init::of(made.pid)?;
    state.init = Some(init);
    state.cgroup = Cgroup::of_container(made.pid)?;
    state.extent = Extent::of(made.pid)?;
    alone(state, made.pid)?;
    let kept = guarding.hand_over(bound, u32::try_from(made.pid)?, state.extent)?;
    let kernel = kept
        .kernel_keys
        .map(|said| (format!("{ANNOTATIONS}kernel-keys"), said));
    state.annotations.extend(kernel);
    state.phase = Phase::Created;
    state.save()?;
    if let Some(path) = &request.pidfd_socket {
        let pidfd = init.pidfd()?.context("init ended before its start")?;
        term::send_pidfd(path, pidfd.as_fd())?;
    }
    if let Some(path) = &request.pid_file {
        write_pid_file(path, made.pid)?;
    }
    Ok(Launched {
        state: launch.keep(),
        served: made.served(pipes),
    })
}

/// A container that ends with its cgroup must be the only one in there, wherever its backend put it.
fn alone(state: &mut State, init: i32) -> Result<()> {
    let others = state.cgroup.anybody()?.iter().any(|pid| *pid != init);
    if others && state.extent == Extent::Cgroup {
        state.extent = Extent::PidNamespace; // init is all that there is to be ended yet
        bail!("container's cgroup is not empty, and the container has no pid namespace of its own");
    }
    Ok(())
}

/// What the guard is to judge: exactly the bytes that the backend will build from.
fn application(state: &State, sealed: &SealedBundle, host: &host::Client) -> Result<Application> {
    let backend = match &state.backend {
        Backend::Libcontainer => verify::event::Backend {
            name: "libcontainer".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: None,
        },
        Backend::Runc { path } => {
            let sha256 = executables::digest(path).context("the backend")?;
            let version =
                executables::remembered("backend-version", &sha256, || spawn::version_of(path))?;
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            verify::event::Backend {
                name,
                version: version.lines().next().unwrap_or_default().to_owned(),
                sha256: Some(sha256),
            }
        }
    };
    Ok(Application {
        container: state.id.clone(),
        created: UnixTime::from_secs(chrono::Utc::now().timestamp()),
        state_root: state.state_root.clone(),
        bundle: state.bundle.clone(),
        rootfs: sealed.rootfs.clone(),
        config: String::from_utf8(sealed.bytes.clone())?,
        copies: sealed.copies.clone(),
        backend,
        host: host.hello()?,
        peers: peers(sealed, host)?,
    })
}

/// Whose the namespaces are that the container joins.
fn peers(sealed: &SealedBundle, host: &host::Client) -> Result<Vec<Joins>> {
    let joined = guard::joined(&sealed.spec)?;
    let owners = match joined.is_empty() {
        true => Vec::new(),
        false => host.owners(joined.values().copied().collect())?,
    };
    let joins = joined.into_iter().zip(owners);
    Ok(joins
        .filter_map(|((path, namespace), peer)| {
            peer.map(|peer| Joins {
                path,
                namespace,
                peer,
            })
        })
        .collect())
}

/// Asked before init goes on to its program.
pub fn before_start(state: &State) -> Result<Agreed> {
    guarding::ask(&state.run_dir(), &FromVerb::Start)
}

/// Asked before a further process enters the container.
pub fn before_exec(state: &State, process: &Process) -> Result<Agreed> {
    guarding::ask(
        &state.run_dir(),
        &FromVerb::Exec {
            process: serde_json::to_string(process)?,
        },
    )
}

/// Told when the container's processes and cgroups are gone, before its run directory is: keeper,
/// guard and vTPM have ended with it.
pub fn deleted(state: &State) -> Result<()> {
    guarding::wait_for_end(&state.run_dir());
    lending::take_back(&state.rootfs, &state.stubs);
    slice::remove(&state.run_id)?;
    VtpmUid::release(state.run_dir().path())
}

/// A run that is being made: dropped before [`Launch::keep`], it leaves nothing behind.
struct Launch {
    state: State,
    /// See [`RunDir::hold_making`].
    _making: File,
    kept: bool,
}

impl Launch {
    fn claim(
        request: &Create,
        globals: &Globals,
        bundle: &Bundle,
        backend: Backend,
    ) -> Result<Self> {
        let run_id = Index::claim(&globals.root, &request.id)?;
        let birth = Birth {
            id: request.id.clone(),
            state_root: globals.root.clone(),
            bundle: bundle.path.clone(),
            rootfs: bundle.rootfs.clone(),
            backend,
            systemd_cgroup: globals.systemd_cgroup,
            no_new_keyring: request.no_new_keyring,
            annotations: bundle
                .spec
                .annotations()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
        };
        let made = RunDir::create(&run_id).and_then(|dir| {
            let state = State::new(run_id.clone(), birth)?;
            state.save()?;
            Ok((state, dir.hold_making()?))
        });
        match made {
            Ok((state, making)) => Ok(Self {
                state,
                _making: making,
                kept: false,
            }),
            Err(error) => {
                Index::forget(&globals.root, &request.id).ok();
                Err(error)
            }
        }
    }

    fn keep(mut self) -> State {
        self.kept = true;
        self.state.clone()
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let state = &self.state;
        // each step is tried, whatever became of the one before
        state.backend.destroy(state).ok();
        deleted(state).ok();
        state.run_dir().remove().ok();
        Index::release(&state.state_root, &state.id, &state.run_id).ok();
    }
}

/// A decimal number without a newline, whole or not at all.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let doing = || format!("cannot write the pid file {}", path.display());
    let name = path.file_name().with_context(doing)?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    let new = path.with_file_name(new);
    fs::remove_file(&new).ok();
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&new)
        .with_context(doing)?;
    file.write_all(pid.to_string().as_bytes())
        .and_then(|()| fs::rename(&new, path))
        .with_context(doing)
}
