//! The PCR map of a vTPM and the extend operation (TPM 2.0 Library, Part 1, "Extend of a PCR").

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Number of PCRs of a PC Client TPM.
pub const COUNT: usize = 24;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a PCR (0 to 23)")]
pub struct NotAPcr(pub u32);

/// A PCR's number, 0 to 23.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PcrIndex(u8);

impl PcrIndex {
    pub const fn new(index: u32) -> Result<Self, NotAPcr> {
        if index < COUNT as u32 {
            Ok(Self(index as u8))
        } else {
            Err(NotAPcr(index))
        }
    }
    pub const fn get(self) -> u8 {
        self.0
    }
    /// For arrays with one element per PCR.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT as u8).map(Self)
    }
}

impl fmt::Display for PcrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl TryFrom<u32> for PcrIndex {
    type Error = NotAPcr;
    fn try_from(index: u32) -> Result<Self, NotAPcr> {
        Self::new(index)
    }
}
impl From<PcrIndex> for u32 {
    fn from(pcr: PcrIndex) -> u32 {
        u32::from(pcr.0)
    }
}

/// The runtime, swtpm and the link to the host.
pub const RUNTIME: PcrIndex = PcrIndex(0);
/// The launch profile, the sealed config.json, the backend.
pub const LAUNCH: PcrIndex = PcrIndex(1);
/// The image and who signed it.
pub const IMAGE: PcrIndex = PcrIndex(2);
/// The rootfs manifest.
pub const ROOTFS: PcrIndex = PcrIndex(4);
/// The policy and the modes that applied.
pub const POLICY: PcrIndex = PcrIndex(5);
/// The user's certificate and the signature list.
pub const LIST: PcrIndex = PcrIndex(7);
/// Faults; zero in a healthy container.
pub const FAULTS: PcrIndex = PcrIndex(8);
/// Executed files, IMA style.
pub const FILES: PcrIndex = PcrIndex(10);
/// Life cycle, exec and enter records.
pub const LIFE: PcrIndex = PcrIndex(11);
/// The last of the PCRs (0 to 7) that a separator closes before the container starts.
pub const LAST_CLOSED: PcrIndex = PcrIndex(7);

/// What a vTPM quote covers: everything that attestrun extends, and the reserved PCRs, which must
/// prove that they are empty. 12 to 15 belong to the workload; 16 and 23 can be reset by anyone.
pub const QUOTED: [PcrIndex; 12] = first();

/// What a secret is sealed to: all that is as it was at the start, and that there are no faults. 10 and 11
/// change with each program.
pub const SEALED: [PcrIndex; 8] = [
    RUNTIME,
    LAUNCH,
    IMAGE,
    PcrIndex(3),
    ROOTFS,
    POLICY,
    LIST,
    FAULTS,
];

/// The host PCR that takes every binding log entry.
pub const HOST_BINDING_PCR: PcrIndex = PcrIndex(13);

/// What a host quote covers: firmware and kernel (0 to 9), IMA (10), boot loader's and systemd's
/// (11, 12), the binding log (13).
pub const HOST_QUOTED: [PcrIndex; 14] = first();

const fn first<const N: usize>() -> [PcrIndex; N] {
    let mut list = [PcrIndex(0); N];
    let mut rest: &mut [PcrIndex] = &mut list;
    let mut index = 0;
    while let Some((head, tail)) = rest.split_first_mut() {
        *head = PcrIndex(index);
        index += 1;
        rest = tail;
    }
    list
}

/// One PCR's value in both banks. The SHA-256 bank decides; SHA-1 serves old tools.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pcr {
    pub sha1: [u8; 20],
    pub sha256: [u8; 32],
}

impl Pcr {
    /// The value after reset of every PCR below 16.
    pub const ZERO: Self = Self {
        sha1: [0; 20],
        sha256: [0; 32],
    };

    /// PCR := H(PCR ‖ value), bank by bank.
    pub fn extend(&mut self, sha1: &[u8; 20], sha256: &[u8; 32]) {
        self.sha1 = Sha1::new_with_prefix(self.sha1)
            .chain_update(sha1)
            .finalize()
            .into();
        self.sha256 = extend_sha256(&self.sha256, sha256);
    }
}

/// The SHA-256 bank alone.
pub fn extend_sha256(old: &[u8; 32], value: &[u8; 32]) -> [u8; 32] {
    Sha256::new_with_prefix(old)
        .chain_update(value)
        .finalize()
        .into()
}

impl fmt::Debug for Pcr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pcr(sha1:{}, sha256:{})",
            hex::encode(self.sha1),
            hex::encode(self.sha256)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_end_at_23() {
        assert_eq!(PcrIndex::new(23).map(PcrIndex::get), Ok(23));
        assert_eq!(PcrIndex::new(24), Err(NotAPcr(24)));
        assert!(serde_json::from_str::<PcrIndex>("24").is_err());
        assert!(serde_json::from_str::<PcrIndex>("-1").is_err());
        assert_eq!(
            QUOTED.map(PcrIndex::get),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
        );
        assert_eq!(HOST_QUOTED.last(), Some(&HOST_BINDING_PCR));
    }

    /// A PCR of zeros, extended with zeros: known from every TPM's separator-less boot.
    #[test]
    fn extend_is_hash_of_old_and_value() {
        let mut pcr = Pcr::ZERO;
        pcr.extend(&[0; 20], &[0; 32]);
        assert_eq!(
            hex::encode(pcr.sha256),
            "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b"
        );
        assert_eq!(
            hex::encode(pcr.sha1),
            "b80de5d138758541c5f05265ad144ab9fa86d1db"
        );
    }
}
