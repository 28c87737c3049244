//! The environment, changed only while there is one thread; and a thread's own processor time.
#![allow(unsafe_code)]

use std::{path::Path, time::Duration};

/// What this thread has used of a processor.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec that the call may write.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let parts = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    match (done, parts) {
        (0, (Ok(seconds), Ok(nanoseconds))) => Duration::new(seconds, nanoseconds),
        _ => Duration::ZERO,
    }
}

/// What libraries take from the environment about CAs is this file, whoever set it to what.
///
/// To be called before any thread is started.
pub fn trust_only(file: &Path) {
    // SAFETY: attestctl is single-threaded until its verb starts a runtime, which comes after this; and
    // nobody else reads or writes the environment meanwhile.
    unsafe {
        std::env::set_var("SSL_CERT_FILE", file);
        std::env::remove_var("SSL_CERT_DIR");
    }
}
