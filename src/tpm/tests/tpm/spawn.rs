//! Child processes: swtpm, owned and killed by handle, and the tools of tpm2-tools.
#![allow(clippy::disallowed_methods, reason = "this is the tests' spawn module")]

use rustix::io::{FdFlags, fcntl_setfd};
use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    net::TcpListener,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, PermissionsExt as _, chown},
            net::UnixStream,
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

const SWTPM: &str = "swtpm";

/// A directory that is gone at the end of the test.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("attestrun-tpm-{}-{number}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .expect("a fresh directory");
        Self(path)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running swtpm, killed with this value.
#[derive(Debug)]
pub struct Swtpm {
    child: Child,
    state: TempDir,
}

impl Swtpm {
    /// As the runtime starts a container's vTPM: one socket, no path, nothing else.
    pub fn vtpm() -> (Self, UnixStream) {
        Self::vtpm_as(None)
    }

    /// The same as another user.
    pub fn vtpm_as(uid: Option<u32>) -> (Self, UnixStream) {
        let state = TempDir::new();
        let directory = state.path().join("state");
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .expect("state directory");
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        fcntl_setfd(&theirs, FdFlags::empty()).expect("inheritable");
        let mut command = command(SWTPM, "swtpm");
        command
            .args(tpm::swtpm::arguments(theirs.as_raw_fd()))
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(uid) = uid {
            // The new process is that user before it changes its directory.
            fs::set_permissions(state.path(), Permissions::from_mode(0o711)).expect("searchable");
            chown(&directory, Some(uid), Some(uid)).expect("owned by the user");
            command.uid(uid).gid(uid);
        }
        let child = start(&mut command, SWTPM, "swtpm");
        (Self { child, state }, ours)
    }

    /// A host TPM for tests, and the port of its data channel; the control channel that libtss2 wants
    /// is the port above. The listening sockets exist before swtpm does.
    pub fn host() -> (Self, u16) {
        Self::host_in(TempDir::new())
    }

    fn host_in(state: TempDir) -> (Self, u16) {
        let (data, control, port) = two_ports();
        let mut command = command(SWTPM, "swtpm");
        command
            // `unixio,fd=` stands for any listening stream socket.
            .args(["socket", "--tpm2", "--server", "type=unixio,fd=0"])
            .args(["--ctrl", "type=unixio,fd=1", "--tpmstate", "dir=."])
            .args(["--flags", "not-need-init,startup-clear"])
            .current_dir(state.path())
            .stdin(OwnedFd::from(data))
            .stdout(OwnedFd::from(control))
            .stderr(Stdio::null());
        let child = start(&mut command, SWTPM, "swtpm");
        (Self { child, state }, port)
    }

    /// Power off and on.
    pub fn reboot_host(mut self) -> (Self, u16) {
        self.kill();
        let state = std::mem::replace(&mut self.state, TempDir::new());
        Self::host_in(state)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < within {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        None
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two neighbouring free ports of the loopback interface.
fn two_ports() -> (TcpListener, TcpListener, u16) {
    for _ in 0..100 {
        let data = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = data.local_addr().expect("its address").port();
        if let Some(next) = port.checked_add(1)
            && let Ok(control) = TcpListener::bind(("127.0.0.1", next))
        {
            return (data, control, port);
        }
    }
    panic!("no two neighbouring ports are free");
}

/// Runs a tool of tpm2-tools to its end.
pub fn tool(name: &str, arguments: &[&str], directory: &Path) -> Output {
    let mut command = command(name, "tpm2-tools");
    command
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null());
    match command.output() {
        Err(error) => missing(name, "tpm2-tools", &error),
        Ok(output) => output,
    }
}

fn command(program: &str, package: &str) -> Command {
    let mut command = Command::new(find(program, package));
    command.env_clear();
    command
}

/// The absolute path of a program that the machine must have.
fn find(program: &str, package: &str) -> OsString {
    let places = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"];
    let mut paths = places.iter().map(|place| Path::new(place).join(program));
    match paths.find(|path| path.exists()) {
        Some(path) => path.into_os_string(),
        None => missing(program, package, &ErrorKind::NotFound.into()),
    }
}

fn start(command: &mut Command, program: &str, package: &str) -> Child {
    match command.spawn() {
        Err(error) => missing(program, package, &error),
        Ok(child) => child,
    }
}

fn missing(program: &str, package: &str, error: &std::io::Error) -> ! {
    panic!("cannot run {program} ({error}): these tests need it, install the package `{package}`")
}
