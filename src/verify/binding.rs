//! The binding record, which ties container, image, list, vTPM and host boot together, and its log.
//!
//! The record is for its owner, the log entry for everybody: an entry names no image and no
//! container. Each entry is extended into host PCR 13 before the container starts.

use crate::canon::{canonical, safe_int};
use crate::digest::{
    BundleDigest, ConfigDigest, FileDigest, ImageDigest, KeyDigest, ListDigest, OrNone,
    PolicyDigest, ProfileDigest, RecordDigest,
};
use crate::id::{ContainerId, UnixTime};
use crate::tpm2::TpmName;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

mod log;
pub use log::{
    Kind, Live, LogEntry, MAX_LOG, NotLive, ak_digest, live, parse_log, replay, still_live,
};

/// Version of the record.
pub const VERSION: u64 = 1;
/// Longest record that is read.
pub const MAX_RECORD: usize = 64 << 10;
/// Peers that one container may name.
pub const MAX_PEERS: usize = 64;

const RECORD_DOMAIN: &[u8] = b"attestrun-bind-v1\0";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    #[error("binding record: {0}")]
    Malformed(String),
    #[error("binding record has version {0}, not {VERSION}")]
    Version(u64),
    #[error("binding record is not in canonical form (RFC 8785)")]
    NotCanonical,
    #[error("binding record: {field} `{found}` is malformed")]
    Field { field: &'static str, found: String },
    #[error("binding log has {0} bytes, more than {MAX_LOG}")]
    LogTooLong(usize),
    #[error("binding log, line {line}: {problem}")]
    Line { line: usize, problem: String },
}

/// What `create` says about the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    pub container: ContainerId,
    pub created: UnixTime,
    pub vtpm_ak_name: TpmName,
    pub vtpm_ek_name: TpmName,
    pub vtpm_reset: u32,
    pub vtpm_restart: u32,
    /// None: the root file system is a directory without an image.
    pub image: OrNone<ImageDigest>,
    pub image_config: OrNone<ConfigDigest>,
    pub bundle_config: BundleDigest,
    pub profile: ProfileDigest,
    /// None: no signature list says which programs may run.
    pub siglist: OrNone<ListDigest>,
    pub user_cert: OrNone<KeyDigest>,
    pub policy: PolicyDigest,
    /// `enforce` or `audit`, as in the policy event.
    pub mode: String,
    /// As in the policy event.
    pub tier: String,
    pub runtime: FileDigest,
    pub swtpm: FileDigest,
    /// Record digests of the containers whose namespaces are joined (64 hex digits each).
    pub peers: Vec<String>,
}

/// What the host service adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPart {
    /// Counts the entries of this boot's log.
    #[serde(with = "safe_int")]
    pub seq: u64,
    /// Value of the log entry before this record's, 64 hex digits; zeros for the first of a boot.
    pub prev: String,
    /// `/proc/sys/kernel/random/boot_id`: changes with kexec, which the TPM's counters do not see.
    pub host_boot: String,
    /// The host TPM's resetCount.
    pub host_reset: u32,
    pub host_ak_name: TpmName,
}

/// The record: who made what claim, where, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub claim: Claim,
    pub host: HostPart,
}

/// The record's fields side by side, as they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flat {
    v: u64,
    container: ContainerId,
    created: UnixTime,
    #[serde(with = "safe_int")]
    seq: u64,
    prev: String,
    host_boot: String,
    host_reset: u32,
    host_ak_name: TpmName,
    vtpm_ak_name: TpmName,
    vtpm_ek_name: TpmName,
    vtpm_reset: u32,
    vtpm_restart: u32,
    image: OrNone<ImageDigest>,
    image_config: OrNone<ConfigDigest>,
    bundle_config: BundleDigest,
    profile: ProfileDigest,
    siglist: OrNone<ListDigest>,
    user_cert: OrNone<KeyDigest>,
    policy: PolicyDigest,
    mode: String,
    tier: String,
    runtime: FileDigest,
    swtpm: FileDigest,
    peers: Vec<String>,
}

impl Record {
    pub fn new(claim: Claim, host: HostPart) -> Result<Self, BindingError> {
        let record = Self { claim, host };
        record.check()?;
        Ok(record)
    }

    /// The record's canonical bytes.
    pub fn canonical(&self) -> Result<Vec<u8>, BindingError> {
        canonical(&self.flat()).map_err(|e| BindingError::Malformed(e.to_string()))
    }

    /// r = SHA-256("attestrun-bind-v1" ‖ 0 ‖ record).
    pub fn digest(&self) -> Result<RecordDigest, BindingError> {
        Ok(digest_of(&self.canonical()?))
    }

    /// Only the canonical spelling is a record.
    pub fn parse(bytes: &[u8]) -> Result<Self, BindingError> {
        if bytes.len() > MAX_RECORD {
            return Err(BindingError::Malformed(format!(
                "{} bytes, more than {MAX_RECORD}",
                bytes.len()
            )));
        }
        let flat: Flat =
            serde_json::from_slice(bytes).map_err(|e| BindingError::Malformed(e.to_string()))?;
        if flat.v != VERSION {
            return Err(BindingError::Version(flat.v));
        }
        let record = flat.split();
        record.check()?;
        match record.canonical()? == bytes {
            true => Ok(record),
            false => Err(BindingError::NotCanonical),
        }
    }

    fn check(&self) -> Result<(), BindingError> {
        let wrong = |field, found: &str| {
            let found = found.chars().take(80).collect();
            Err(BindingError::Field { field, found })
        };
        let (claim, host) = (&self.claim, &self.host);
        if !is_hex(&host.prev, 64) {
            return wrong("prev", &host.prev);
        }
        if !is_boot_id(&host.host_boot) {
            return wrong("host_boot", &host.host_boot);
        }
        if !is_word(&claim.mode) {
            return wrong("mode", &claim.mode);
        }
        if !is_word(&claim.tier) {
            return wrong("tier", &claim.tier);
        }
        if claim.image.is_none() != claim.image_config.is_none() {
            return wrong("image_config", &claim.image_config.to_string());
        }
        if claim.siglist.is_none() != claim.user_cert.is_none() {
            return wrong("user_cert", &claim.user_cert.to_string());
        }
        if claim.peers.len() > MAX_PEERS || !claim.peers.iter().all(|p| is_hex(p, 64)) {
            return wrong("peers", &claim.peers.join(","));
        }
        Ok(())
    }

    fn flat(&self) -> Flat {
        let (c, h) = (self.claim.clone(), self.host.clone());
        Flat {
            v: VERSION,
            container: c.container,
            created: c.created,
            seq: h.seq,
            prev: h.prev,
            host_boot: h.host_boot,
            host_reset: h.host_reset,
            host_ak_name: h.host_ak_name,
            vtpm_ak_name: c.vtpm_ak_name,
            vtpm_ek_name: c.vtpm_ek_name,
            vtpm_reset: c.vtpm_reset,
            vtpm_restart: c.vtpm_restart,
            image: c.image,
            image_config: c.image_config,
            bundle_config: c.bundle_config,
            profile: c.profile,
            siglist: c.siglist,
            user_cert: c.user_cert,
            policy: c.policy,
            mode: c.mode,
            tier: c.tier,
            runtime: c.runtime,
            swtpm: c.swtpm,
            peers: c.peers,
        }
    }
}

impl Flat {
    fn split(self) -> Record {
        let claim = Claim {
            container: self.container,
            created: self.created,
            vtpm_ak_name: self.vtpm_ak_name,
            vtpm_ek_name: self.vtpm_ek_name,
            vtpm_reset: self.vtpm_reset,
            vtpm_restart: self.vtpm_restart,
            image: self.image,
            image_config: self.image_config,
            bundle_config: self.bundle_config,
            profile: self.profile,
            siglist: self.siglist,
            user_cert: self.user_cert,
            policy: self.policy,
            mode: self.mode,
            tier: self.tier,
            runtime: self.runtime,
            swtpm: self.swtpm,
            peers: self.peers,
        };
        let host = HostPart {
            seq: self.seq,
            prev: self.prev,
            host_boot: self.host_boot,
            host_reset: self.host_reset,
            host_ak_name: self.host_ak_name,
        };
        Record { claim, host }
    }
}

/// r of a record's canonical bytes.
pub(crate) fn digest_of(canonical: &[u8]) -> RecordDigest {
    let hash = Sha256::new_with_prefix(RECORD_DOMAIN).chain_update(canonical);
    RecordDigest::from_bytes(hash.finalize().into())
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A UUID as the kernel prints it.
pub(crate) fn is_boot_id(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(|g| is_hex(g, g.len()))
}

fn is_word(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

#[cfg(test)]
mod tests;
