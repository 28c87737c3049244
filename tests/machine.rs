//! The machine that the tests run on, where it is not this one as it is: an emulated one is slow, may
//! be there for the tests alone, may have a TPM of its own and a systemd that places cgroups.

use anyhow::{Context, Result, ensure};
use std::{path::Path, sync::OnceLock, time::Duration};

/// What tests/qemu-host leaves in a machine that it made.
const MADE_BY_QEMU_HOST: &str = "/run/qemu-host/settings";

/// As the options say: `--slow N`, `--here`, `--systemd`, `--tpm`.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Each time limit is this many times as long.
    pub slow: u32,
    /// No namespaces: the whole machine is the tests' own and ends after them.
    pub here: bool,
    /// Engines and runtimes let systemd make the cgroups.
    pub systemd: bool,
    /// The host's TPM is the machine's `/dev/tpmrm0`, not an swtpm on loopback.
    pub tpm: bool,
}

static MACHINE: OnceLock<Machine> = OnceLock::new();
const AS_IT_IS: Machine = Machine {
    slow: 1,
    here: false,
    systemd: false,
    tpm: false,
};

/// The machine of this run.
pub fn machine() -> Machine {
    *MACHINE.get().unwrap_or(&AS_IT_IS)
}

/// A time limit on this machine.
pub fn patient(limit: Duration) -> Duration {
    limit * machine().slow
}

/// Takes the options off the front of `args` and returns the rest.
pub fn take(args: &[String]) -> Result<&[String]> {
    let mut machine = AS_IT_IS;
    let mut rest = args;
    while let [option, after @ ..] = rest {
        rest = match (option.as_str(), after) {
            ("--slow", [times, after @ ..]) => {
                machine.slow = times.parse().with_context(|| format!("--slow {times}"))?;
                after
            }
            ("--here", _) => {
                machine.here = true;
                after
            }
            ("--systemd", _) => {
                machine.systemd = true;
                after
            }
            ("--tpm", _) => {
                machine.tpm = true;
                after
            }
            _ => break,
        };
    }
    ensure!(machine.slow > 0, "--slow 0");
    ensure!(
        !machine.here || Path::new(MADE_BY_QEMU_HOST).exists(),
        "--here is for a machine that tests/qemu-host made: it does not spare what lies there"
    );
    // systemd knows processes and cgroups by the names that they have outside of namespaces
    ensure!(
        !machine.systemd || machine.here,
        "--systemd goes with --here"
    );
    let _ = MACHINE.set(machine);
    Ok(rest)
}
