//! How swtpm must be started to be a container's vTPM. The runtime starts it, not this crate.
//!
//! Tried with swtpm 0.7.1 and libtpms 0.9.2:
//! * `--fd N` takes a connected socket, so no path exists and nobody but the holder of the other
//!   end can speak to the vTPM. swtpm refuses the descriptors 0, 1 and 2.
//! * It ends by itself, with status 0, when the other end is closed.
//! * `dir=.` works as long as `--daemon` is absent (`--daemon` changes to `/` first), so the state
//!   directory is the process's working directory and needs no name: also one to which its uid could
//!   find no way.
//! * Any uid will do, also one without a passwd entry; it needs no capability. It sets
//!   no_new_privs and its own seccomp filter.
//! * It needs no control channel. Whoever holds one can send CMD_INIT, which zeroes all PCRs under
//!   the same keys; so there is none here, and the argument list has no place for it. Without one
//!   the locality is 0 for ever.
//!
//! `swtpm_setup` is never used: libtpms makes a fresh TPM in an empty directory within 2 ms.

use std::ffi::OsString;
use std::os::fd::RawFd;

/// The lowest descriptor that `--fd` accepts.
pub const LOWEST_FD: RawFd = 3;

/// Arguments (without the program's name) of an swtpm whose data channel is the connected socket
/// `data_fd` of the new process and whose state is in its working directory, which must be empty,
/// owned by its uid, mode 0700 and on a tmpfs.
///
/// The caller clears the environment: `TPM_PATH` would name another state directory.
pub fn arguments(data_fd: RawFd) -> Vec<OsString> {
    let data_fd = data_fd.to_string();
    let arguments = [
        "socket",
        "--tpm2",
        "--fd",
        &data_fd,
        "--tpmstate",
        "dir=.,mode=0600",
        // TPM2_Startup(CLEAR) is done before the first command is read.
        "--flags",
        "not-need-init,startup-clear",
        "--seccomp",
        "action=kill",
        "--terminate",
    ];
    arguments.map(OsString::from).to_vec()
}

/// The same for a state that is kept: encrypted by the key of 32 bytes that `key_fd` gives.
pub fn arguments_with_key(data_fd: RawFd, key_fd: RawFd) -> Vec<OsString> {
    let mut arguments = arguments(data_fd);
    arguments.push("--key".into());
    arguments.push(format!("fd={key_fd},mode=aes-256-cbc,format=binary").into());
    arguments
}

/// The file of a state in its directory.
pub const STATE: &str = "tpm2-00.permall";

/// The version in what `swtpm --version` prints (`TPM emulator version 0.7.1, Copyright …`).
pub fn version(output: &str) -> Option<&str> {
    let rest = output
        .lines()
        .next()?
        .strip_prefix("TPM emulator version ")?;
    let version = rest.split([',', ' ']).next()?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (version.len() <= 32 && version.split('.').all(digits)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_no_path_and_no_control_channel() {
        let arguments = arguments(7);
        let text: Vec<_> = arguments.iter().filter_map(|a| a.to_str()).collect();
        assert!(text.windows(2).any(|pair| pair == ["--fd", "7"]));
        assert!(
            text.windows(2)
                .any(|pair| pair == ["--seccomp", "action=kill"])
        );
        assert!(
            !text
                .iter()
                .any(|a| a.contains('/') || a.contains("ctrl") || *a == "--daemon")
        );
    }

    #[test]
    fn version_is_the_number_alone() {
        let printed = "TPM emulator version 0.7.1, Copyright (c) 2014-2021 IBM Corp.\n";
        assert_eq!(version(printed), Some("0.7.1"));
        for bad in [
            "",
            "TPM emulator version ",
            "TPM emulator version x, y",
            "swtpm 0.7.1",
        ] {
            assert_eq!(version(bad), None, "{bad}");
        }
    }
}
