//! Qualifying data of quotes: SHA-256 over length-prefixed fields, one domain string per use.
//!
//! Never the bare nonce: a TPM signs whatever qualifying data it is handed, so each use has its own
//! domain and names everything that the signature is to vouch for. All forms are 32 bytes long and
//! fit the `TPM2B_DATA` of a SHA-256 TPM.

use crate::digest::RecordDigest;
use crate::id::{ContainerId, Nonce};
use sha2::{Digest as _, Sha256};

/// The channel binding of a challenge over a unix socket or plain TLS: nothing is bound.
pub const NO_CHANNEL_BINDING: &[u8] = b"none";

const VTPM: &str = "attestrun-cscp-vtpm-v1";
const HOST: &str = "attestrun-cscp-host-v1";
const HOST_ONLY: &str = "attestrun-cscp-hostonly-v1";
const NODE_DOMAIN: &str = "attestrun-cscp-node-v1";
const BINDING_QUOTE: &str = "attestrun-bind-quote-v1";
/// First byte of a leaf, so that a leaf cannot pass as an inner node of a batch (RFC 6962, 2.1).
const LEAF: u8 = 0x00;
/// First byte of an inner node.
const NODE: u8 = 0x01;

/// Qualifying data of a vTPM's quote.
pub fn vtpm(nonce: &Nonce, container: &ContainerId, channel_binding: &[u8]) -> [u8; 32] {
    let hash = Fields::new(VTPM)
        .add(nonce.as_bytes())
        .add(container.as_str().as_bytes());
    hash.add(channel_binding).finish()
}

/// SHA-256(TPMS_ATTEST ‖ TPMT_SIGNATURE) of the vTPM's quote, which the host's quote covers.
pub fn vtpm_quote_digest(attest: &[u8], signature: &[u8]) -> [u8; 32] {
    Sha256::new_with_prefix(attest)
        .chain_update(signature)
        .finalize()
        .into()
}

/// Qualifying data of the host's quote: it vouches that this vTPM quote over this record was there.
pub fn host_leaf(
    nonce: &Nonce,
    container: &ContainerId,
    channel_binding: &[u8],
    vtpm_quote_digest: &[u8; 32],
    record: &RecordDigest,
) -> [u8; 32] {
    let hash = Fields(Sha256::new_with_prefix([LEAF])).add(HOST.as_bytes());
    let hash = hash
        .add(nonce.as_bytes())
        .add(container.as_str().as_bytes())
        .add(channel_binding);
    hash.add(vtpm_quote_digest).add(record.as_bytes()).finish()
}

/// Inner node of a batch ([`crate::batch`]), whose root is the qualifying data of the host's quote.
pub fn batch_node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let hash = Fields(Sha256::new_with_prefix([NODE])).add(NODE_DOMAIN.as_bytes());
    hash.add(left).add(right).finish()
}

/// Qualifying data of a host quote that a container asks for (two-way trust).
pub fn host_only(nonce: &Nonce, container: &ContainerId, channel_binding: &[u8]) -> [u8; 32] {
    let hash = Fields::new(HOST_ONLY)
        .add(nonce.as_bytes())
        .add(container.as_str().as_bytes());
    hash.add(channel_binding).finish()
}

/// Qualifying data of the optional quote at create; appraisal never demands it.
pub fn binding_quote(record: &RecordDigest) -> [u8; 32] {
    Fields::new(BINDING_QUOTE).add(record.as_bytes()).finish()
}

/// Each field is `u32 BE length ‖ bytes`, so that no two lists of fields share an encoding.
struct Fields(Sha256);

impl Fields {
    fn new(domain: &str) -> Self {
        Self(Sha256::new()).add(domain.as_bytes())
    }
    fn add(self, field: &[u8]) -> Self {
        // No field is longer than a container id (1024 bytes) or a channel binding.
        let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
        Self(
            self.0
                .chain_update(length.to_be_bytes())
                .chain_update(field),
        )
    }
    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(byte: u8) -> Nonce {
        Nonce::new(vec![byte; 20]).unwrap()
    }
    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text).unwrap()
    }

    #[test]
    fn every_field_and_domain_counts() {
        let record = RecordDigest::of(b"r");
        let digest = vtpm_quote_digest(b"attest", b"sig");
        let all = [
            vtpm(&nonce(1), &id("c"), b"none"),
            vtpm(&nonce(2), &id("c"), b"none"),
            vtpm(&nonce(1), &id("d"), b"none"),
            vtpm(&nonce(1), &id("c"), b""),
            vtpm(&nonce(1), &id("cn"), b"one"),
            host_only(&nonce(1), &id("c"), b"none"),
            host_leaf(&nonce(1), &id("c"), b"none", &digest, &record),
            host_leaf(&nonce(1), &id("c"), b"none", &[0; 32], &record),
            host_leaf(
                &nonce(1),
                &id("c"),
                b"none",
                &digest,
                &RecordDigest::of(b"s"),
            ),
            host_leaf(&nonce(1), &id("d"), b"none", &digest, &record),
            binding_quote(&record),
            batch_node(&digest, &[0; 32]),
            batch_node(&[0; 32], &digest),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|b| a != b), "{i}");
        }
    }
}
