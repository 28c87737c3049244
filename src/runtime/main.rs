//! attestrun: a drop-in OCI runtime that makes containers provable.
//!
//! Input: runc's command line, a bundle. Output: a container, or one error line. Exit codes: runc's.

mod backend;
mod bundle;
mod cli;
mod config;
mod ending;
mod executables;
mod guard;
mod guarding;
mod host;
mod ipc;
mod keeper;
mod launch;
mod programs;
mod report;
mod setup;
mod slice;
mod spawn;
mod state;
mod sys;
mod term;
mod verbs;

use std::{ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    let rest = || {
        args.map(OsString::into_string)
            .collect::<Result<Vec<_>, _>>()
            .unwrap_or_default()
    };
    match verb.to_str() {
        // attestrun's own processes and its administration; everything else is runc's
        Some("keeper") => verbs::own(&verb, keeper::run),
        Some("guard") => verbs::own(&verb, guard::run),
        Some("host") => verbs::own(&verb, || host::run(&rest())),
        Some("setup") => verbs::own(&verb, setup::run),
        _ => verbs::main(),
    }
}
