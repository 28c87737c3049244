//! attestrun-host: the one program that opens the host's TPM.

fn main() -> std::process::ExitCode {
    runtime::host_service()
}
