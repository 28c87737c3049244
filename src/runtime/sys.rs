//! System calls that nix and rustix do not wrap: the only `unsafe` code of attestrun.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{Error, Result},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::Command,
};

fn check(ret: libc::c_long) -> Result<libc::c_long> {
    if ret < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Removes every environment variable except `keep`: callers' variables must not steer libraries.
/// Call it while the process has one thread.
pub fn clear_environment(keep: &[&str]) {
    let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in names {
        if !keep.iter().any(|k| name == *k) {
            // SAFETY: there is no other thread that could read the environment.
            unsafe { std::env::remove_var(&name) };
        }
    }
}

/// Closes every descriptor from `first` on, close_range(2).
pub fn close_from(first: u32) -> Result<()> {
    // SAFETY: called at start-up, before any object of ours owns a descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Every signal at its default disposition and none blocked, as a program expects after execve.
/// Rust ignores SIGPIPE and our callers may block signals; neither is the container's business.
pub fn reset_signals() {
    // struct kernel_sigaction of SIG_DFL; the C library hides its own two signals, 32 and 33
    let default = [0u64; 4];
    // SAFETY: plain system calls; SIG_DFL has no handler that could run.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, &default, 0usize, 8usize);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// A child that we spawn starts with a clean signal state, and dies with us if asked to.
pub fn prepare_child(command: &mut Command, die_with_parent: bool) {
    // SAFETY: the closure makes only async-signal-safe system calls and does not allocate.
    unsafe {
        command.pre_exec(move || {
            reset_signals();
            if die_with_parent {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
            }
            Ok(())
        });
    }
}

/// fork(2): the child's pid, or nothing in the child, which goes on in this very program.
pub fn fork() -> Result<Option<rustix::process::Pid>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        // another thread's locks would stay locked in the child for ever
        return Err(Error::other(format!("cannot fork with {threads} threads")));
    }
    // SAFETY: this is the only thread.
    let pid = check(unsafe { libc::fork() }.into())?;
    Ok(rustix::process::Pid::from_raw(pid as i32))
}

/// Gives a forked process a command line of its own (`ps`, /proc/<pid>/cmdline): `name word` must fit where
/// the old one lies.
pub fn retitle(name: &str, word: &str) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // proc(5): arg_start and arg_end are fields 48 and 49; the second one may contain spaces
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' '));
    let mut bounds = fields.into_iter().flatten().skip(45).map(str::parse::<u64>);
    let (Some(Ok(start)), Some(Ok(end))) = (bounds.next(), bounds.next()) else {
        return Err(Error::other("/proc/self/stat has no arg_start"));
    };
    let mut title = [name, "\0", word, "\0"].concat().into_bytes();
    let room = usize::try_from(end - start).unwrap_or(0);
    if title.len() > room {
        return Err(Error::other("the command line has too little room"));
    }
    title.resize(room, 0);
    let memory = File::options().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&title, start)
}

/// To whom an orphan of ours goes: the nearest subreaper above us, or init. Call it in a process with
/// one thread.
pub fn adopter() -> Result<i32> {
    let (mut from, to) = std::io::pipe()?;
    let mut word = [0; size_of::<i32>()];
    // SAFETY: both children make only async-signal-safe system calls until they end.
    unsafe {
        match check(libc::fork().into())? {
            0 => {
                let parent = libc::getpid();
                if libc::fork() == 0 {
                    while libc::getppid() == parent {
                        libc::sched_yield();
                    }
                    let word = libc::getppid().to_ne_bytes();
                    libc::write(to.as_raw_fd(), word.as_ptr().cast(), word.len());
                }
                libc::_exit(0);
            }
            child => {
                let child = libc::pid_t::try_from(child).map_err(Error::other)?;
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
        }
    }
    drop(to);
    std::io::Read::read_exact(&mut from, &mut word)?;
    Ok(i32::from_ne_bytes(word))
}

/// Ends the process at once: no destructors, no atexit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does not return.
    unsafe { libc::_exit(code) }
}

/// pidfd_send_signal(2) with any number: 0 and real-time signals too.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo means "as kill(2)".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0,
        )
    })
    .map(drop)
}

/// Joins the session keyring `name`, making it if needed, and gives its owner search permission
/// so that exec can join it too (as runc does). A kernel without keyrings is no error.
pub fn join_session_keyring(name: &CStr) -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    const KEYCTL_SETPERM: libc::c_long = 5;
    const KEYCTL_DESCRIBE: libc::c_long = 6;
    const USER_SEARCH: u32 = 0x0008_0000;
    // SAFETY: the kernel reads a C string, and writes at most the length given.
    unsafe {
        let ring = match check(libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            name.as_ptr(),
        )) {
            Ok(ring) => ring,
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut text = [0u8; 256];
        let len = check(libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_DESCRIBE,
            ring,
            text.as_mut_ptr(),
            text.len(),
        ))?;
        let text = String::from_utf8_lossy(&text[..(len as usize).min(text.len())]).into_owned();
        // "type;uid;gid;perm;description" (keyctl(2), KEYCTL_DESCRIBE)
        let perm = text
            .split(';')
            .nth(3)
            .and_then(|p| u32::from_str_radix(p, 16).ok())
            .unwrap_or(0x3f3f_0000);
        check(libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SETPERM,
            ring,
            perm | USER_SEARCH,
        ))
        .map(drop)
    }
}

/// Effective, permitted and inheritable capabilities as bit masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// capset(2) on the calling thread.
pub fn set_capabilities(c: Capabilities) -> Result<()> {
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let half = |v: u64| [v as u32, (v >> 32) as u32];
    let (e, p, i) = (half(c.effective), half(c.permitted), half(c.inheritable));
    let data = [e[0], p[0], i[0], e[1], p[1], i[1]];
    // SAFETY: header and data have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// seccomp(2), SECCOMP_SET_MODE_FILTER, with a program of classic BPF instructions.
pub fn load_seccomp(program: &[u64], flags: u64) -> Result<()> {
    seccomp(program, flags).map(drop)
}

/// The same for the calling thread alone, with a listener for its notifications.
pub fn load_seccomp_listening(program: &[u64], flags: u64) -> Result<OwnedFd> {
    let flags = flags & !libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let fd = seccomp(program, flags)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn seccomp(program: &[u64], flags: u64) -> Result<libc::c_long> {
    let len = u16::try_from(program.len()).map_err(|_| Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog {
        len,
        filter: program.as_ptr() as *mut libc::sock_filter,
    };
    // SAFETY: a sock_filter is 8 bytes; the kernel copies `len` of them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, 1u32, flags, &program) })
}

/// A pid namespace, known by its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidNamespace {
    dev: u64,
    ino: u64,
}

impl PidNamespace {
    /// The one that `pid` is in.
    pub fn of(pid: i32) -> Result<Self> {
        Self::behind(&Self::open(pid)?)
    }

    fn open(pid: i32) -> Result<File> {
        File::open(format!("/proc/{pid}/ns/pid"))
    }

    fn behind(file: &File) -> Result<Self> {
        let stat = file.metadata()?;
        Ok(Self {
            dev: stat.dev(),
            ino: stat.ino(),
        })
    }

    /// Whether `pid` is in it or in one below it (ioctl_ns(2)); a process that has ended is not.
    pub fn holds(&self, pid: i32) -> Result<bool> {
        const NS_GET_PARENT: libc::Ioctl = 0xb702;
        let mut namespace = match Self::open(pid) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                return Ok(false);
            }
            result => result?,
        };
        loop {
            if Self::behind(&namespace)? == *self {
                return Ok(true);
            }
            // SAFETY: the ioctl returns a new descriptor that nobody else owns.
            namespace = unsafe {
                match check(libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT).into()) {
                    Ok(fd) => File::from_raw_fd(fd as RawFd),
                    // the parent is not ours to see: this is the outermost one
                    Err(e) if e.raw_os_error() == Some(libc::EPERM) => return Ok(false),
                    Err(e) => return Err(e),
                }
            };
        }
    }
}

/// The C library's words for a signal, in lower case as Go has them.
pub fn signal_words(signal: i32) -> String {
    // SAFETY: strsignal(3) returns a string that stays until this thread's next call.
    let words = unsafe {
        let words = libc::strsignal(signal);
        (!words.is_null()).then(|| CStr::from_ptr(words).to_string_lossy().to_lowercase())
    };
    words.unwrap_or_else(|| signal.to_string())
}

/// Sets a terminal's size (TIOCSWINSZ).
pub fn set_window(fd: BorrowedFd<'_>, rows: u16, cols: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size) }.into()).map(drop)
}

/// A terminal's size as rows and columns (TIOCGWINSZ).
pub fn window(fd: BorrowedFd<'_>) -> Result<(u16, u16)> {
    // SAFETY: the kernel writes one winsize.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        check(libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size).into())?;
        Ok((size.ws_row, size.ws_col))
    }
}

/// Opens the other end of a pseudoterminal without a path (TIOCGPTPEER).
pub fn open_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: the ioctl returns a new descriptor that nobody else owns.
    unsafe {
        let fd = check(
            libc::ioctl(
                master.as_raw_fd(),
                libc::TIOCGPTPEER,
                libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
            )
            .into(),
        )?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Runs the same program again from a copy that a container cannot overwrite through
/// /proc/<pid>/exe (CVE-2019-5736): a detached read-only mount of the executable, or a sealed
/// memory file where the kernel has no mount_setattr(2). Returns when that is already so.
///
/// `marked` says that this process is already the second run: then it must be protected.
pub fn protect_executable(argv: &[CString], env: &[CString], marked: bool) -> Result<()> {
    let exe = File::open("/proc/self/exe")?;
    if is_protected(&exe)? {
        return Ok(());
    }
    if marked {
        return Err(Error::other("the re-executed program is still writable"));
    }
    let copy = match read_only_mount() {
        Ok(fd) => fd,
        Err(_) => sealed_copy(&exe)?,
    };
    let mut env: Vec<CString> = env.to_vec();
    env.push(CString::from(PROTECTED));
    nix::unistd::execveat(
        Some(copy.as_raw_fd()),
        c"",
        argv,
        &env,
        nix::fcntl::AtFlags::AT_EMPTY_PATH,
    )?;
    Ok(())
}

/// Set in the environment of the second run only; it can make a run fail, never skip the check.
pub const PROTECTED: &CStr = c"ATTESTRUN_PROTECTED=1";

const SEALS: i32 = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

fn is_protected(exe: &File) -> Result<bool> {
    let read_only = rustix::fs::fstatvfs(exe)?
        .f_flag
        .contains(rustix::fs::StatVfsMountFlags::RDONLY);
    // SAFETY: F_GET_SEALS reads a mask; it fails on anything that is no memory file.
    let seals = unsafe { libc::fcntl(exe.as_raw_fd(), libc::F_GET_SEALS) };
    Ok(read_only || (seals >= 0 && seals & SEALS == SEALS))
}

/// A detached read-only mount of this program.
fn read_only_mount() -> Result<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, "/proc/self/exe", flags)?;
    set_read_only(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
    Ok(tree)
}

/// Makes the mount at `path` read-only, and no other.
pub fn make_read_only(path: &std::path::Path) -> Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    set_read_only(libc::AT_FDCWD, &path, 0)
}

/// mount_setattr(2), MOUNT_ATTR_RDONLY.
fn set_read_only(dir: RawFd, path: &CStr, flags: i32) -> Result<()> {
    // linux/mount.h, struct mount_attr: set, clear, propagation, user namespace
    let attr: [u64; 4] = [libc::MOUNT_ATTR_RDONLY, 0, 0, 0];
    // SAFETY: the kernel reads a C string and one mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            &attr,
            size_of_val(&attr),
        )
    })
    .map(drop)
}

/// bpf(2): loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE and attaches it to a cgroup v2 directory,
/// beside the programs that are there: each must allow.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    const PROG_LOAD: libc::c_long = 5;
    const PROG_ATTACH: libc::c_long = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    /// The beginnings of union bpf_attr (linux/bpf.h); the kernel takes the rest for zeroes.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let insn_cnt = u32::try_from(program.len()).map_err(Error::other)?;
    let load = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: an instruction is 8 bytes; the kernel copies `insn_cnt` of them and the license, and
    // returns a new descriptor that nobody else owns.
    let loaded = unsafe {
        let fd = check(libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &load,
            size_of::<Load>(),
        ))?;
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    let attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: loaded.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads one attribute of the size given.
    check(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &attach, size_of::<Attach>()) })
        .map(drop)
}

fn sealed_copy(exe: &File) -> Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let memory = memfd_create("attestrun", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    std::io::copy(&mut &*exe, &mut file)?;
    // SAFETY: adds seals to a file that only we know.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_ADD_SEALS, SEALS) }.into())?;
    Ok(file.into())
}

/// Gives freed memory back to the system: the guard stays, what it needed for judging does not.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number and touches only memory that the allocator holds as free.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_reaches_a_process_by_descriptor() {
        let me = rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        pidfd_signal(me.as_fd(), 0).unwrap();
        assert_eq!(
            pidfd_signal(me.as_fd(), 65).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn orphans_go_elsewhere() {
        let me = std::process::id().cast_signed();
        assert_ne!(adopter().unwrap(), me);
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).unwrap();
        assert_eq!(adopter().unwrap(), me);
        rustix::process::set_child_subreaper(None).unwrap();
    }

    #[test]
    fn a_sealed_copy_counts_as_protected() {
        let exe = File::open("/proc/self/exe").unwrap();
        let copy = sealed_copy(&exe).unwrap();
        assert!(is_protected(&File::from(copy)).unwrap());
    }

    #[test]
    fn a_pid_namespace_holds_its_processes() {
        let me = std::process::id().cast_signed();
        let mine = PidNamespace::of(me).unwrap();
        assert!(mine.holds(me).unwrap());
        let other = PidNamespace {
            ino: mine.ino + 1,
            ..mine
        };
        assert!(!other.holds(me).unwrap());
        assert!(!mine.holds(i32::MAX).unwrap());
    }
}
