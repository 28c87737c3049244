//! What attestrun's two programs share: the OCI runtime with its keeper and guard, and the host service.
//!
//! Two programs, so that none of the processes that start with each container loads the TPM library.

mod backend;
mod brought;
mod bundle;
mod cli;
mod config;
mod copies;
mod doctor;
mod ending;
mod executables;
mod guard;
mod guarding;
mod hooks;
mod host;
mod hostlist;
mod ipc;
mod keeper;
mod kept; // vTPMs whose state outlives their container
mod keys;
mod launch;
mod layerwatch;
mod lending;
mod programs;
mod report;
mod setup;
mod sharing;
mod slice;
mod spawn;
mod state;
mod sys;
mod term;
mod verbs;

use std::{ffi::OsString, process::ExitCode};

/// `attestrun`: runc's command line in, a container or one error line out; exit codes are runc's.
pub fn runtime() -> ExitCode {
    let verb = std::env::args_os().nth(1).unwrap_or_default();
    match verb.to_str() {
        // attestrun's own processes and its administration; everything else is runc's
        Some("keeper") => verbs::own("attestrun keeper", keeper::run),
        Some("host") => verbs::own("attestrun host", || host::become_service(&words(2))),
        Some("layerwatch") => verbs::own("attestrun layerwatch", layerwatch::run),
        Some("setup") => verbs::own("attestrun setup", setup::run),
        Some("doctor") => doctor::main(&words(2)),
        _ => verbs::main(),
    }
}

/// `attestrun-host`: the host service, or with `enroll` the making of its key.
pub fn host_service() -> ExitCode {
    verbs::own("attestrun host", || host::service::main(&words(1)))
}

fn words(skip: usize) -> Vec<OsString> {
    std::env::args_os().skip(skip).collect()
}
