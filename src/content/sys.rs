//! The system call that rustix does not wrap: leases (fcntl(2)).
#![allow(unsafe_code)]

use std::{fs::File, os::fd::AsRawFd as _};

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
