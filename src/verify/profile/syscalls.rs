//! Seccomp: which system calls a filter lets through that engines' default filters deny.
//!
//! The tables hold what every version of a default filter denies on x86 (moby 20.10 to 28,
//! profiles/seccomp; containers-common 0.50 to 0.60, pkg/seccomp). A capability opens some of them
//! again: engines then add these to the filter by themselves.

use super::Launcher;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator,
};
use std::collections::BTreeSet;

/// Stands for every call that nobody named: the filter lets through by default.
pub(super) const ALL: &str = "*";

/// Denied by all; with the capabilities that open it.
const BY_ALL: &[(&str, &[&str])] = &[
    ("_sysctl", &[]),
    ("acct", &["CAP_SYS_PACCT"]),
    ("add_key", &[]),
    ("bdflush", &[]),
    ("bpf", &["CAP_SYS_ADMIN", "CAP_BPF"]),
    ("clock_settime", &["CAP_SYS_TIME"]),
    ("clock_settime64", &["CAP_SYS_TIME"]),
    ("create_module", &[]),
    ("delete_module", &["CAP_SYS_MODULE"]),
    ("fanotify_init", &["CAP_SYS_ADMIN"]),
    ("finit_module", &["CAP_SYS_MODULE"]),
    ("get_kernel_syms", &[]),
    ("init_module", &["CAP_SYS_MODULE"]),
    ("ioperm", &["CAP_SYS_RAWIO"]),
    ("iopl", &["CAP_SYS_RAWIO"]),
    ("kcmp", &["CAP_SYS_PTRACE"]),
    ("kexec_file_load", &[]),
    ("kexec_load", &[]),
    ("lookup_dcookie", &["CAP_SYS_ADMIN"]),
    ("migrate_pages", &[]),
    ("move_pages", &[]),
    ("nfsservctl", &[]),
    ("open_by_handle_at", &["CAP_DAC_READ_SEARCH"]),
    ("open_tree_attr", &["CAP_SYS_ADMIN"]),
    ("perf_event_open", &["CAP_SYS_ADMIN", "CAP_PERFMON"]),
    ("personality", &[]),
    ("query_module", &["CAP_SYS_MODULE"]),
    ("quotactl", &["CAP_SYS_ADMIN"]),
    ("quotactl_fd", &["CAP_SYS_ADMIN"]),
    ("request_key", &[]),
    ("set_mempolicy_home_node", &["CAP_SYS_NICE"]),
    ("setdomainname", &["CAP_SYS_ADMIN"]),
    ("sethostname", &["CAP_SYS_ADMIN"]),
    ("settimeofday", &["CAP_SYS_TIME"]),
    ("stime", &["CAP_SYS_TIME"]),
    ("swapoff", &[]),
    ("swapon", &[]),
    ("sysfs", &[]),
    ("uselib", &[]),
    ("userfaultfd", &[]),
    ("ustat", &[]),
    ("vhangup", &["CAP_SYS_TTY_CONFIG"]),
    ("vm86", &[]),
    ("vm86old", &[]),
];

/// Denied by Docker's alone: podman's filter also serves rootless containers and nested ones.
const BY_DOCKER: &[(&str, &[&str])] = &[
    ("clone", &["CAP_SYS_ADMIN"]),
    ("clone3", &["CAP_SYS_ADMIN"]),
    ("fsconfig", &["CAP_SYS_ADMIN"]),
    ("fsmount", &["CAP_SYS_ADMIN"]),
    ("fsopen", &["CAP_SYS_ADMIN"]),
    ("fspick", &["CAP_SYS_ADMIN"]),
    ("get_mempolicy", &["CAP_SYS_NICE"]),
    ("keyctl", &[]),
    ("mbind", &["CAP_SYS_NICE"]),
    ("mount", &["CAP_SYS_ADMIN"]),
    ("mount_setattr", &["CAP_SYS_ADMIN"]),
    ("move_mount", &["CAP_SYS_ADMIN"]),
    ("open_tree", &["CAP_SYS_ADMIN"]),
    ("pivot_root", &[]),
    ("reboot", &["CAP_SYS_BOOT"]),
    ("set_mempolicy", &["CAP_SYS_NICE"]),
    ("setns", &["CAP_SYS_ADMIN"]),
    ("syslog", &["CAP_SYS_ADMIN", "CAP_SYSLOG"]),
    ("umount", &["CAP_SYS_ADMIN"]),
    ("umount2", &["CAP_SYS_ADMIN"]),
    ("unshare", &["CAP_SYS_ADMIN"]),
];

/// The default filter of this engine denies it to a process that does not have these capabilities.
pub(super) fn denied_by_default(
    launcher: Launcher,
    call: &str,
    has: impl Fn(&str) -> bool,
) -> bool {
    let docker = (launcher == Launcher::Docker).then_some(BY_DOCKER);
    let mut tables = [Some(BY_ALL), docker].into_iter().flatten().flatten();
    call == ALL
        || tables.any(|(name, capabilities)| {
            *name == call && !capabilities.iter().any(|capability| has(capability))
        })
}

/// Those of the tables' calls that this filter lets through, in alphabetical order; [`ALL`] first.
pub(super) fn opened(filter: &LinuxSeccomp) -> Vec<String> {
    let rules = filter.syscalls().as_deref().unwrap_or_default();
    let by_default = lets_through(filter.default_action());
    let opened = |call: &str| {
        let mut about = rules
            .iter()
            .filter(|rule| rule.names().iter().any(|n| n == call));
        let mut denied = false;
        let let_through = about.any(|rule| {
            let args = rule.args().as_deref().unwrap_or_default();
            let open = lets_through(rule.action());
            denied |= !open && args.is_empty();
            open && !as_by_default(call, args)
        });
        let_through || by_default && !denied
    };
    let tables = BY_ALL.iter().chain(BY_DOCKER);
    let mut found: BTreeSet<&str> = tables
        .map(|(call, _)| *call)
        .filter(|call| opened(call))
        .collect();
    if by_default {
        found.insert(ALL);
    }
    found.into_iter().map(str::to_owned).collect()
}

/// A tracer or a listener may let a call through as well.
fn lets_through(action: Action) -> bool {
    !matches!(
        action,
        Action::ScmpActErrno
            | Action::ScmpActKill
            | Action::ScmpActKillProcess
            | Action::ScmpActKillThread
            | Action::ScmpActTrap
    )
}

/// Flags of clone(2) that make namespaces.
const CLONE_NEW: u64 = 0x7e02_0000;
/// personality(2): Linux, 32 bits of it, with or without UNAME26; and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The default filters too let this call through with these arguments.
fn as_by_default(call: &str, args: &[LinuxSeccompArg]) -> bool {
    let [arg] = args else { return false };
    match (call, arg.op()) {
        ("clone", Operator::ScmpCmpMaskedEq) => {
            (arg.index(), arg.value(), arg.value_two().unwrap_or(0)) == (0, CLONE_NEW, 0)
        }
        ("personality", Operator::ScmpCmpEq) => {
            arg.index() == 0 && PERSONALITIES.contains(&arg.value())
        }
        _ => false,
    }
}
