//! The system calls that rustix does not wrap: leases (fcntl(2)), file handles, fanotify(7).
#![allow(unsafe_code)]

use rustix::io::Errno;
use std::{
    ffi::CString,
    fs::File,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Whether nobody has the file open for writing now; a shared writable mapping counts as open.
///
/// A read lease is given only then, and is given back at once. False also where the file system gives
/// none: what cannot be told is not so. Who opens the file for writing in between waits for the lease
/// and has SIGIO sent to this process, which must ignore it ([`ignore_lease_signals`]).
pub fn has_no_writer(file: &File) -> bool {
    let lease = |kind: libc::c_int| {
        // SAFETY: F_SETLEASE takes an int and touches no memory of ours; the descriptor is open.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
    };
    lease(libc::F_RDLCK) && lease(libc::F_UNLCK)
}

/// To be called once by a process that reads layers: SIGIO ends a process that does not ignore it.
pub fn ignore_lease_signals() {
    // SAFETY: SIG_IGN is no handler, so no code of ours runs in one.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// An inode's name within its file system, also over a reuse of its number: the handle's kind and bytes,
/// as name_to_handle_at(2) and fanotify events have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handle(pub Vec<u8>);

/// struct file_handle, with room for each that there is.
#[repr(C)]
struct Space {
    handle_bytes: u32,
    kind: i32,
    bytes: [u8; 128], // MAX_HANDLE_SZ
}

/// The handle of what stands at `name` below `directory`, a link itself too; without a name the
/// directory's.
pub(crate) fn handle(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Handle, Errno> {
    let mut space = Space {
        handle_bytes: 128,
        kind: 0,
        bytes: [0; 128],
    };
    let flags = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut mount = 0i32;
    // SAFETY: the name ends with a zero byte; `space` is a file_handle with room for `handle_bytes`.
    let got = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            directory.as_raw_fd(),
            name.as_ptr(),
            &raw mut space,
            &raw mut mount,
            flags,
        )
    };
    if got != 0 {
        return Err(last_error());
    }
    let bytes = space.bytes.get(..space.handle_bytes as usize);
    let bytes = bytes.ok_or(Errno::OVERFLOW)?;
    Ok(Handle([&space.kind.to_ne_bytes(), bytes].concat()))
}

/// The regular file with this handle ([`Handle`]), for reading; `mount`: something on its file system.
pub(crate) fn open_handle(mount: &OwnedFd, handle: &[u8]) -> Result<File, Errno> {
    let (kind, given) = handle.split_first_chunk().ok_or(Errno::INVAL)?;
    let mut space = Space {
        handle_bytes: given.len() as u32,
        kind: i32::from_ne_bytes(*kind),
        bytes: [0; 128],
    };
    let room = space.bytes.get_mut(..given.len()).ok_or(Errno::INVAL)?;
    room.copy_from_slice(given);
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let (mount, space) = (mount.as_raw_fd(), &raw mut space);
    // SAFETY: `space` is a file_handle of the length that it says.
    let opened = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount, space, flags) };
    match i32::try_from(opened) {
        // SAFETY: a descriptor that the kernel just made for us.
        Ok(fd @ 0..) => Ok(unsafe { File::from_raw_fd(fd) }),
        _ => Err(last_error()),
    }
}

/// A fanotify group that is told of events, decides nothing, and names inodes by their handles.
pub(crate) fn listen() -> Result<OwnedFd, Errno> {
    let flags =
        libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    // SAFETY: takes two numbers.
    let group = unsafe { libc::fanotify_init(flags, 0) };
    match group {
        // SAFETY: a descriptor that the kernel just made for us.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(group) }),
        _ => Err(last_error()),
    }
}

/// Whatever changes an inode or a directory of the file system that `root` lies on, and openings.
pub(crate) fn mark_file_system(group: &OwnedFd, root: &OwnedFd) -> Result<(), Errno> {
    let changes = libc::FAN_CREATE
        | libc::FAN_MODIFY
        | libc::FAN_CLOSE_WRITE
        | libc::FAN_ATTRIB
        | libc::FAN_DELETE
        | libc::FAN_DELETE_SELF
        | libc::FAN_MOVED_FROM
        | libc::FAN_MOVED_TO
        | libc::FAN_MOVE_SELF;
    let mask = changes | libc::FAN_OPEN | libc::FAN_ONDIR;
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: both descriptors are open; without a path the second one names the object.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            flags,
            mask,
            root.as_raw_fd(),
            std::ptr::null(),
        )
    };
    if marked == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::Scratch;

    /// The trap: a page that was dirtied before takes further stores without a trace. Whoever can do
    /// that has the file open for writing, and is seen.
    #[test]
    fn refuse_files_that_are_mapped_for_writing() {
        let scratch = Scratch::new();
        let path = scratch.write("file", vec![0u8; 4096]);
        ignore_lease_signals();
        let quiet = || has_no_writer(&File::open(&path).unwrap());
        assert!(quiet());
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert!(!quiet(), "open for writing");
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        // SAFETY: a mapping of our own that nothing refers into, at a place that the kernel chooses.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        drop(file);
        assert!(!quiet(), "closed, but mapped");
        // SAFETY: the mapping from above, which nothing refers into.
        assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
        assert!(quiet());
    }
}
