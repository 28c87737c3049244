//! The last steps inside the container, where libcontainer's init hands over: find the program as
//! runc finds it, set its environment, load the filter, drop the lent capability, execve.

use super::{
    embedded::{Lent, Step},
    notifier::Notifier,
    seccomp::Filter,
    start_hooks::StartHooks,
};
use crate::sys;
use anyhow::{Context, Result, bail};
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::{
    errno::Errno,
    unistd::{AccessFlags, eaccess},
};
use oci_spec::runtime::{Process, Spec};
use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    rc::Rc,
};

/// Who runs the program; it decides where a failed execve is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The container's first process: after `start` only its own standard error is left.
    Init,
    /// A process of `exec`: its parent still listens.
    Tenant,
}

/// Everything is prepared before the fork; the cells are filled by the process itself.
#[derive(Debug, Clone)]
pub struct Program {
    role: Role,
    args: Vec<CString>,
    env: Vec<(String, String)>,
    uid: u32,
    filter: Option<Filter>,
    /// Who is asked about system calls, if the filter asks.
    notifier: Option<Rc<Notifier>>,
    /// Run under the filter, as by runc.
    hooks: StartHooks,
    /// What init has to do inside before it is ready.
    steps: Vec<Step>,
    /// Capabilities beyond the configuration's, for the steps and the filter.
    lent: Option<Lent>,
    /// The only file that may be executed.
    judged: PathBuf,
    path: OnceCell<PathBuf>,
    given: RefCell<Vec<(String, String)>>,
}

impl Program {
    pub fn new(
        role: Role,
        process: &Process,
        judged: &Path,
        (filter, notifier): (Option<Filter>, Option<Rc<Notifier>>),
        hooks: StartHooks,
        steps: Vec<Step>,
        lent: Option<Lent>,
    ) -> Result<Self> {
        let args = process
            .args()
            .iter()
            .flatten()
            .map(|a| CString::new(a.as_str()));
        let args: Vec<CString> = args
            .collect::<Result<_, _>>()
            .context("process args hold a NUL byte")?;
        Ok(Self {
            role,
            args,
            env: environment(process.env().as_deref().unwrap_or_default())?,
            uid: process.user().uid(),
            filter,
            notifier,
            hooks,
            steps,
            lent,
            judged: judged.to_owned(),
            path: OnceCell::new(),
            given: RefCell::default(),
        })
    }

    fn variable<'a>(&'a self, name: &str) -> Option<&'a str> {
        self.env
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// All that comes before execve; from the filter on it decides what this process may call.
    fn prepare(&self, env: &[CString]) -> Result<(), String> {
        let copies = self.hooks.copy()?;
        match (&self.filter, &self.notifier) {
            (Some(filter), Some(notifier)) => notifier.load(filter)?,
            (Some(filter), None) => sys::load_seccomp(&filter.program, filter.flags)
                .map_err(|e| format!("seccomp: {e}"))?,
            (None, _) => {}
        }
        if let Some(lent) = self.lent {
            sys::set_capabilities(lent.own).map_err(|e| format!("capset: {e}"))?;
        }
        self.hooks.run(&copies, env)
    }

    fn name(&self) -> std::borrow::Cow<'_, str> {
        self.args
            .first()
            .map(|a| a.to_string_lossy())
            .unwrap_or_default()
    }
}

/// Order of first mention, value of the last, as Go's os.Setenv leaves it.
fn environment(entries: &[String]) -> Result<Vec<(String, String)>> {
    let mut env: Vec<(String, String)> = Vec::new();
    for entry in entries {
        let Some((name, value)) = entry.split_once('=').filter(|(n, _)| !n.is_empty()) else {
            bail!("invalid environment variable: {entry:?}");
        };
        match env.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.to_owned(),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(env)
}

impl Executor for Program {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let done = self.steps.iter().try_for_each(Step::take).and_then(|()| {
            let back = self.lent.filter(|_| !self.steps.is_empty());
            back.map_or(Ok(()), |lent| Ok(sys::set_capabilities(lent.waiting)?))
        });
        done.map_err(|e| ExecutorValidationError::ArgValidationError(format!("{e:#}")))?;
        let name = self.name();
        let found = look_path(&name, self.variable("PATH").unwrap_or_default());
        let path = found.map_err(|why| {
            ExecutorValidationError::ArgValidationError(format!("exec: {name:?}: {why}"))
        })?;
        // a name is searched for twice, by the guard as root and here as the container's user
        if !name.contains('/') && path != self.judged {
            let (here, there) = (path.display(), self.judged.display());
            return Err(ExecutorValidationError::ArgValidationError(format!(
                "exec: {name:?}: it is {here} for the container's user, and {there} was judged"
            )));
        }
        self.path.set(path).ok();
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        let mut given = self.given.borrow_mut();
        // sockets that the caller passed on (sd_listen_fds(3))
        for name in ["LISTEN_FDS", "LISTEN_PID"] {
            if let Some(value) = envs.get(name) {
                given.push((name.to_owned(), value.clone()));
            }
        }
        if self.variable("HOME").is_none() {
            given.push(("HOME".to_owned(), home_of(self.uid)));
        }
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let path = self.path.get().ok_or(ExecutorError::InvalidArg)?;
        let c_path =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| ExecutorError::InvalidArg)?;
        let given = self.given.borrow();
        let env = self
            .env
            .iter()
            .filter(|(n, _)| !given.iter().any(|(g, _)| g == n))
            .chain(given.iter());
        let env: Vec<CString> = env
            .filter_map(|(n, v)| CString::new(format!("{n}={v}")).ok())
            .collect();
        sys::reset_signals();
        let why = match self.prepare(&env) {
            Err(why) => why,
            Ok(()) => match nix::unistd::execve(&c_path, &self.args, &env) {
                Ok(never) => match never {},
                Err(errno) => format!("exec {}: {}", path.display(), words(errno)),
            },
        };
        match self.role {
            Role::Tenant => Err(ExecutorError::Other(why)),
            Role::Init => {
                eprintln!("{why}");
                sys::exit_now(1)
            }
        }
    }
}

/// Go's words for an errno: engines look for them.
fn words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

/// Go's exec.LookPath, as the container's user and in the container's root.
fn look_path(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(Errno::EACCES) => Err(words(Errno::EACCES)),
            Err(errno) => Err(format!("stat {name}: {}", words(errno))),
        };
    }
    // a relative entry would mean the working directory: Go refuses it too
    let dirs = path.split(':').filter(|d| d.starts_with('/'));
    let mut found = dirs
        .map(|d| Path::new(d).join(name))
        .filter(|p| executable(p).is_ok());
    found
        .next()
        .filter(|_| !name.is_empty())
        .ok_or_else(|| "executable file not found in $PATH".to_owned())
}

pub fn executable(path: &Path) -> Result<(), Errno> {
    let stat = nix::sys::stat::stat(path)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Errno::EACCES);
    }
    // root passes eaccess on a file that nobody may execute only if some x bit is set
    if stat.st_mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    eaccess(path, AccessFlags::X_OK)
}

/// The home directory in the container's /etc/passwd, `/` without one. Read as plain text: the
/// name service of the C library would load modules that the image chooses (as in CVE-2019-14271).
fn home_of(uid: u32) -> String {
    const MAX: u64 = 1 << 20;
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open("/etc/passwd") {
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX), &mut text).ok();
    }
    let entry = text
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.get(2).and_then(|u| u.parse().ok()) == Some(uid));
    entry
        .and_then(|f| f.get(5).map(|h| (*h).to_owned()))
        .filter(|h| h.starts_with('/'))
        .unwrap_or_else(|| "/".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_runc_finds_them() {
        assert_eq!(
            look_path("sh", "rel:/nonexistent:/bin").unwrap(),
            Path::new("/bin/sh")
        );
        assert_eq!(look_path("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
        for (name, why) in [
            ("nope", "executable file not found in $PATH"),
            ("", "executable file not found in $PATH"),
            ("/nope", "stat /nope: no such file or directory"),
            ("/etc/passwd", "permission denied"),
            ("/etc", "permission denied"),
        ] {
            assert_eq!(look_path(name, "/bin").unwrap_err(), why, "{name}");
        }
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env =
            |list: &[&str]| environment(&list.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>());
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(
            env(&["A=1", "B=", "A=2=3"]).unwrap(),
            [pair("A", "2=3"), pair("B", "")]
        );
        for bad in ["A", "=x", ""] {
            assert!(env(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn homes_come_from_plain_text() {
        assert_eq!(home_of(0), "/root");
        assert_eq!(home_of(4_000_000_000), "/");
    }
}
