//! The names under which a policy, or a challenger, allows what goes beyond the default rules.

use super::Demands;
use super::judge::{is_at_or_below, plain};
use crate::digest::FileDigest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Namespaces that a container may share or join when it is named; the mount namespace never.
pub(super) const KINDS: [&str; 7] = ["cgroup", "ipc", "network", "pid", "time", "user", "uts"];
pub(super) const HOSTPID_PTRACE: &str = "hostpid-ptrace";

/// Text that names no relaxation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a relaxation (known are device:<path>, mount:<path or type>, cap:CAP_<NAME>, syscall:<name>, apparmor:<profile>, namespace:<kind>, sysctl:<name>, selinux:<label>, selinux:disabled, shown:<path>, writable:<path>, hook:sha256:<digest>, start-hook:sha256:<digest>, program:sha256:<digest>, env:<NAME>, hook-mount:<path>, hook-device:<path>, each but program with * for all of its kind, seccomp:unconfined and hostpid-ptrace)"
)]
pub struct NotARelaxation(pub String);

/// The name of one thing that is allowed beyond the default rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Relaxation(String);

impl Relaxation {
    pub fn parse(text: &str) -> Result<Self, NotARelaxation> {
        let known = match text.split_once(':') {
            None => text == HOSTPID_PTRACE,
            Some(("device", rest)) => rest == "*" || rest.starts_with('/'),
            Some(("cap" | "hook" | "start-hook" | "hook-mount" | "hook-device", "*")) => true,
            Some(("env" | "mount" | "apparmor" | "selinux" | "syscall" | "sysctl", rest)) => {
                !rest.is_empty()
            }
            Some(("seccomp", rest)) => rest == "unconfined",
            Some(("namespace", rest)) => rest == "*" || KINDS.contains(&rest),
            Some(("shown" | "writable", rest)) => rest == "*" || rest.starts_with('/'),
            Some(("cap", rest)) => rest.strip_prefix("CAP_").is_some_and(|c| {
                !c.is_empty() && c.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
            }),
            Some(("hook" | "start-hook" | "program", rest)) => rest.parse::<FileDigest>().is_ok(),
            // "/" would be everything, and nothing that one means by name
            Some(("hook-mount" | "hook-device", rest)) => rest.len() > 1 && plain(rest) == rest,
            Some(_) => false,
        };
        match known && text.len() <= 4096 {
            true => Ok(Self(text.to_owned())),
            false => Err(NotARelaxation(text.chars().take(80).collect())),
        }
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Who may mount a directory may mount what is in it; `/` is only itself.
    fn holds_mount(&self, wanted: &Self) -> bool {
        let path = |name: &'_ Self| name.0.strip_prefix("mount:/").map(str::to_owned);
        match (path(self), path(wanted)) {
            (Some(directory), Some(path)) if !directory.is_empty() => {
                is_at_or_below(&path, &directory)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Relaxation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl TryFrom<String> for Relaxation {
    type Error = NotARelaxation;
    fn try_from(text: String) -> Result<Self, NotARelaxation> {
        Self::parse(&text)
    }
}
impl From<Relaxation> for String {
    fn from(relaxation: Relaxation) -> String {
        relaxation.0
    }
}

/// The default rules with these relaxations: a policy's `[rule.launch]`, a challenger's `[launch]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchRules {
    pub allow: Vec<Relaxation>,
    /// Left out: nothing beyond the default rules is asked.
    #[serde(default)]
    pub demand: Demands,
}

impl LaunchRules {
    /// Whether a container may begin with this program of the host.
    pub fn name_program(&self, program: FileDigest) -> bool {
        Relaxation::parse(&format!("program:{program}")).is_ok_and(|n| self.allow.contains(&n))
    }

    /// What allows it: its own name, or `<kind>:*`.
    pub(super) fn allowing(&self, wanted: &Relaxation) -> Option<&Relaxation> {
        let kind = wanted
            .0
            .split_once(':')
            .map(|(kind, _)| format!("{kind}:*"));
        let allows = |name: &&Relaxation| {
            *name == wanted || kind.as_ref() == Some(&name.0) || name.holds_mount(wanted)
        };
        self.allow.iter().find(allows)
    }
}
