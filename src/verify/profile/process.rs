//! The part of a profile that is about one process: a container's init, or an `exec` into it.

use super::{ProfileError, digest_of, utf8};
use oci_spec::runtime::{Capabilities, Process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessProfile {
    /// `args[0]`.
    pub program: String,
    /// Over the canonical JSON of all arguments.
    pub args_digest: String,
    /// Names of environment variables, sorted, each once.
    pub env_names: Vec<String>,
    /// Over the canonical JSON of the environment in its order, values included.
    pub env_digest: String,
    pub cwd: String,
    pub user: UserProfile,
    pub capabilities: CapabilitySets,
    pub no_new_privileges: bool,
    pub terminal: bool,
    /// The profile's name, else empty.
    pub apparmor: String,
    /// The process label, else empty.
    pub selinux: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserProfile {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// Names as in capabilities(7), sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilitySets {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
    pub ambient: Vec<String>,
}

impl CapabilitySets {
    /// Those in any of the sets, each once.
    pub fn all(&self) -> std::collections::BTreeSet<&str> {
        [
            &self.bounding,
            &self.effective,
            &self.inheritable,
            &self.permitted,
            &self.ambient,
        ]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect()
    }
    /// In any of the sets: what is only in the bounding set can still be gained by exec.
    pub fn has(&self, name: &str) -> bool {
        [
            &self.bounding,
            &self.effective,
            &self.inheritable,
            &self.permitted,
            &self.ambient,
        ]
        .iter()
        .any(|set| set.iter().any(|c| c == name))
    }
}

impl ProcessProfile {
    pub fn of(process: &Process) -> Result<Self, ProfileError> {
        let args = process.args().as_deref().unwrap_or_default();
        let program = args.first().ok_or(ProfileError::NoArgs)?.clone();
        let env = process.env().as_deref().unwrap_or_default();
        let user = process.user();
        Ok(Self {
            program,
            args_digest: digest_of(&args)?,
            env_names: names_of(env),
            env_digest: digest_of(&env)?,
            cwd: utf8(process.cwd())?,
            user: UserProfile {
                uid: user.uid(),
                gid: user.gid(),
                additional_gids: user.additional_gids().clone().unwrap_or_default(),
            },
            capabilities: match process.capabilities() {
                None => CapabilitySets::default(),
                Some(sets) => CapabilitySets {
                    bounding: names(sets.bounding())?,
                    effective: names(sets.effective())?,
                    inheritable: names(sets.inheritable())?,
                    permitted: names(sets.permitted())?,
                    ambient: names(sets.ambient())?,
                },
            },
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            terminal: process.terminal().unwrap_or(false),
            apparmor: process.apparmor_profile().clone().unwrap_or_default(),
            selinux: process.selinux_label().clone().unwrap_or_default(),
        })
    }
}

impl ProcessProfile {
    /// Exactly this argument list.
    pub fn runs(&self, args: &[String]) -> bool {
        digest_of(&args).is_ok_and(|digest| digest == self.args_digest)
    }
}

fn names(set: &Option<Capabilities>) -> Result<Vec<String>, ProfileError> {
    let mut names = set
        .iter()
        .flatten()
        .map(|capability| match serde_json::to_value(capability) {
            Ok(serde_json::Value::String(name)) => Ok(name),
            _ => Err(ProfileError::Encoding(format!(
                "capability {capability:?} has no name"
            ))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    names.sort();
    Ok(names)
}

/// The names of environment variables, sorted, each once.
pub(super) fn names_of(env: &[String]) -> Vec<String> {
    let name = |variable: &String| match variable.split_once('=') {
        Some((name, _)) => name.to_owned(),
        None => variable.clone(),
    };
    let names: BTreeSet<String> = env.iter().map(name).collect();
    names.into_iter().collect()
}
