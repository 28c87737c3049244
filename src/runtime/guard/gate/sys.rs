//! fanotify(7), which nix and rustix do not wrap, leases that are kept (fcntl(2)), the clock's being set
//! (timerfd_create(2)), and a word in another pid namespace.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::File,
    io::{Error, Result},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Why there is no group.
#[derive(Debug)]
pub enum NoGroup {
    /// The kernel has no permission events, or does not give them to us.
    Lacking(Error),
    Failed(Error),
}

/// A group for permission events; its descriptors for files are read-only.
pub fn group() -> std::result::Result<OwnedFd, NoGroup> {
    let flags = libc::FAN_CLASS_CONTENT
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_UNLIMITED_QUEUE
        | libc::FAN_UNLIMITED_MARKS;
    let files = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
    // SAFETY: the call takes two numbers and returns a new descriptor that nobody else owns.
    let fd = unsafe { libc::fanotify_init(flags, files as u32) };
    if fd >= 0 {
        // SAFETY: as above.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let error = Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL | libc::EPERM) => NoGroup::Lacking(error),
        _ => NoGroup::Failed(error),
    })
}

/// What a mark covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every mount of the file system, also later ones.
    FileSystem,
    /// This very mount.
    Mount,
}

/// From now on whoever executes a file there waits for the group's answer.
pub fn mark(group: BorrowedFd<'_>, extent: Extent, place: BorrowedFd<'_>) -> Result<()> {
    let extent = match extent {
        Extent::FileSystem => libc::FAN_MARK_FILESYSTEM,
        Extent::Mount => libc::FAN_MARK_MOUNT,
    };
    let path = CString::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    // SAFETY: the kernel reads a C string.
    let done = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_ADD | extent,
            libc::FAN_OPEN_EXEC_PERM,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Somebody waits for leave to execute `file`.
#[derive(Debug)]
pub struct Asked {
    pub file: File,
    pub pid: i32,
}

/// struct fanotify_event_metadata: length, version, reserved, metadata's length, mask, descriptor, pid.
const METADATA: usize = 24;
/// So many at once: each has a descriptor.
const AT_ONCE: usize = 32;

/// Everybody who waits now, up to a limit.
pub fn asked(group: BorrowedFd<'_>) -> Result<Vec<Asked>> {
    let mut buffer = [0u8; METADATA * AT_ONCE];
    let length = rustix::io::read(group, &mut buffer)?;
    let mut rest = buffer.get(..length).unwrap_or_default();
    let mut all = Vec::new();
    while let Some((event, _)) = rest.split_first_chunk::<METADATA>() {
        let word = |at: usize| {
            let bytes = event.get(at..at + 4).and_then(|b| b.try_into().ok());
            i32::from_ne_bytes(bytes.unwrap_or_default())
        };
        let (length, fd, pid) = (word(0), word(16), word(20));
        if event.get(4) != Some(&libc::FANOTIFY_METADATA_VERSION) || fd < 0 {
            return Err(Error::other("an event of fanotify without a file"));
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let file = unsafe { File::from_raw_fd(fd) };
        all.push(Asked { file, pid });
        let length = usize::try_from(length).unwrap_or(0).max(METADATA);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(all)
}

/// Ends the wait for this file: it is executed, or execve(2) fails with EPERM.
pub fn answer(group: BorrowedFd<'_>, file: &File, allow: bool) -> Result<()> {
    let verdict = match allow {
        true => libc::FAN_ALLOW,
        false => libc::FAN_DENY,
    };
    // struct fanotify_response
    let mut response = [0u8; 8];
    response[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    response[4..].copy_from_slice(&verdict.to_ne_bytes());
    match rustix::io::write(group, &response) {
        // who waited was killed
        Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What came of asking for a lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Lease {
    /// Nobody has the file open for writing; who wants to waits until this descriptor is closed.
    Held,
    /// Somebody has.
    Busy,
    /// The file system has no leases.
    None,
}

pub fn lease(file: &File) -> Result<Lease> {
    // SAFETY: F_SETLEASE takes an int and touches no memory of ours.
    let done = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
    if done == 0 {
        return Ok(Lease::Held);
    }
    let error = Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok(Lease::Busy),
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP) => Ok(Lease::None),
        _ => Err(error),
    }
}

/// Knows whether somebody set the clock of the day.
pub struct Clock(OwnedFd);

pub fn clock() -> Result<Clock> {
    // SAFETY: the call takes two numbers and returns a new descriptor that nobody else owns.
    let fd = unsafe {
        libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)
    };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: as above.
    let clock = Clock(unsafe { OwnedFd::from_raw_fd(fd) });
    let never = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: libc::time_t::MAX,
            tv_nsec: 0,
        },
    };
    let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    // SAFETY: the kernel reads one struct and writes none.
    let done = unsafe { libc::timerfd_settime(fd, flags, &never, std::ptr::null_mut()) };
    match done {
        0 => Ok(clock),
        _ => Err(Error::last_os_error()),
    }
}

impl Clock {
    /// Since it was asked last. Also if that cannot be told.
    pub fn was_set(&self) -> bool {
        // not a timer that is over: ECANCELED says that the clock was set
        rustix::io::read(&self.0, &mut [0u8; 8]) != Err(rustix::io::Errno::AGAIN)
    }
}

/// What a [`member`] is to write.
struct Word<'a> {
    file: BorrowedFd<'a>,
    text: &'a [u8],
}

/// The whole life of a process that shares our memory: its exit code.
extern "C" fn member(word: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `write_as_member` passes a Word, and waits in clone(2) for as long as this runs.
    let Word { file, text } = unsafe { &*word.cast::<Word<'_>>() };
    // SAFETY: the kernel reads as many bytes as `text` has.
    let written = unsafe { libc::write(file.as_raw_fd(), text.as_ptr().cast(), text.len()) };
    i32::from(usize::try_from(written) != Ok(text.len()))
}

/// Has a process of that pid namespace write `text`: some files of /proc/sys are its namespace's own. It
/// shares our memory, since a copy of that would take longer than all the rest.
pub fn write_as_member(namespace: BorrowedFd<'_>, file: BorrowedFd<'_>, text: &[u8]) -> Result<()> {
    const STACK: usize = 64 << 10;
    let write = || {
        // SAFETY: only children of this thread, which ends with this call, are born there.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) } != 0 {
            return Err(Error::last_os_error());
        }
        let mut stack = vec![0u128; STACK / size_of::<u128>()];
        let mut word = Word { file, text };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the stack grows down from its end, which is aligned; it and the word live until the child has
        // ended, since this thread stands still until then.
        let child = unsafe {
            let top = stack.as_mut_ptr_range().end;
            libc::clone(member, top.cast(), flags, (&raw mut word).cast())
        };
        let child = rustix::process::Pid::from_raw(child).filter(|_| child > 0);
        let child = child.ok_or_else(Error::last_os_error)?;
        let ended = loop {
            match rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        match ended.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            _ => Err(Error::other("the kernel does not take it")),
        }
    };
    let failed = |_| Err(Error::other("the thread panicked"));
    std::thread::scope(|scope| scope.spawn(write).join().unwrap_or_else(failed))
}
