//! The environment, changed: only while there is one thread.
#![allow(unsafe_code)]

use std::path::Path;

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
