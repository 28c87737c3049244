//! attestrun: a drop-in OCI runtime that makes containers provable.

fn main() -> std::process::ExitCode {
    runtime::runtime()
}
