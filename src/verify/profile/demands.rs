//! What a rule may demand of a launch beyond the default rules: exact arguments, users, capabilities,
//! seccomp filters, namespaces.

use super::{How, LaunchProfile, ProcessProfile};
use crate::digest::ProfileDigest;
use serde::{Deserialize, Serialize};

/// The word `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnyWord {
    Any,
}

/// `"any"`, or the values of which it must be one. An empty list allows none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnyOr<T> {
    Any(AnyWord),
    OneOf(Vec<T>),
}

impl<T> Default for AnyOr<T> {
    fn default() -> Self {
        Self::Any(AnyWord::Any)
    }
}

impl<T> AnyOr<T> {
    fn fits(&self, fits: impl FnMut(&T) -> bool) -> bool {
        match self {
            Self::Any(_) => true,
            Self::OneOf(values) => values.iter().any(fits),
        }
    }
}

/// Which seccomp filter the container must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SeccompDemand {
    Word(SeccompWord),
    /// One of these: digests of config.json's seccomp section, as the launch profile has them.
    OneOf(Vec<ProfileDigest>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeccompWord {
    /// Any filter, or none.
    Any,
    /// Some filter.
    Filtered,
}

impl Default for SeccompDemand {
    fn default() -> Self {
        Self::Word(SeccompWord::Any)
    }
}

/// Left out, each is `"any"`; the default rules apply in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Demands {
    /// Whole argument lists, the entry point's.
    pub args: AnyOr<Vec<String>>,
    pub uids: AnyOr<u32>,
    /// Capabilities that any of the sets may hold.
    pub capabilities: AnyOr<String>,
    pub seccomp: SeccompDemand,
    /// Kinds of namespaces that may be the host's or another container's.
    pub shared_namespaces: AnyOr<String>,
}

impl Demands {
    /// What the entry point's launch has that is not among what is demanded.
    pub(super) fn against(&self, profile: &LaunchProfile) -> Vec<String> {
        let mut against = self.against_process(&profile.process);
        if !self.args.fits(|args| profile.process.runs(args)) {
            against.push(format!(
                "{} with arguments {}, which are none of `args`",
                profile.process.program, profile.process.args_digest
            ));
        }
        let seccomp = match &self.seccomp {
            SeccompDemand::Word(SeccompWord::Any) => true,
            SeccompDemand::Word(SeccompWord::Filtered) => profile.seccomp != "none",
            SeccompDemand::OneOf(digests) => {
                digests.iter().any(|d| d.to_string() == profile.seccomp)
            }
        };
        if !seccomp {
            against.push(format!(
                "seccomp {}, which is not what `seccomp` asks",
                profile.seccomp
            ));
        }
        for namespace in profile.namespaces.iter().filter(|n| n.how != How::New) {
            if !self.shared_namespaces.fits(|kind| *kind == namespace.kind) {
                against.push(format!(
                    "a {} namespace that is not its own, which is none of `shared_namespaces`",
                    namespace.kind
                ));
            }
        }
        against
    }

    /// What may be asked of every process, also one that enters later.
    pub(super) fn against_process(&self, process: &ProcessProfile) -> Vec<String> {
        let mut against = Vec::new();
        let uid = process.user.uid;
        if !self.uids.fits(|allowed| *allowed == uid) {
            against.push(format!("user {uid}, who is none of `uids`"));
        }
        for name in process.capabilities.all() {
            if !self.capabilities.fits(|allowed| allowed == name) {
                against.push(format!(
                    "capability {name}, which is none of `capabilities`"
                ));
            }
        }
        against
    }
}
