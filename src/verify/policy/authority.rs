//! Who may vouch for an image, or state something about it; names as in sigstore policy-controller's
//! ClusterImagePolicy.

use crate::signature::{Identity, Need, Proofs};
use std::path::{Path, PathBuf};

/// One signer, or any of several that count alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    pub name: String,
    pub by: SignedWith,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignedWith {
    Key {
        keys: Vec<KeySource>,
        log: LogRule,
    },
    Keyless {
        /// A pinned `trusted_root.json`.
        root: PathBuf,
        identities: Vec<Identity>,
        proofs: Proofs,
    },
}

/// A public key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    Inline(String),
}

/// Whether a signature by key must stand in a transparency log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRule {
    NotAsked,
    /// In one of the logs of this `trusted_root.json`.
    Demanded(PathBuf),
}

impl Authority {
    /// Every file that it names, and what it is.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        match &self.by {
            SignedWith::Key { keys, log } => {
                let keys = keys.iter().filter_map(|key| match key {
                    KeySource::File(path) => Some(("key", path.as_path())),
                    KeySource::Inline(_) => None,
                });
                let log = match log {
                    LogRule::NotAsked => None,
                    LogRule::Demanded(root) => Some(("trusted-root", root.as_path())),
                };
                keys.chain(log).collect()
            }
            SignedWith::Keyless { root, .. } => vec![("trusted-root", root)],
        }
    }
}

/// `true`: must be there.
pub(super) fn need(asked: bool) -> Need {
    match asked {
        true => Need::Demanded,
        false => Need::NotAsked,
    }
}
