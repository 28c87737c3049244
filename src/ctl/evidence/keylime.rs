//! The body of `POST /v2.x/verify/evidence`, `"type": "tpm"` (Keylime 7.12 and later).
//!
//! Keylime is given PCR 10's entries alone, which replay by themselves; it refuses entries of others. It
//! looks a program up by path and digest, we by digest: what ran under a path that is not on the list is
//! accepted by us and refused by Keylime.

use super::{Log, allowed};
use crate::{challenge::Accepted, list::export, report::Refused};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use verify::{
    imalog::{self, FILES_DONE, Template},
    pcr::{self, PcrIndex},
    qualify,
    siglist::List,
};

/// TPM_ALG_SHA256.
const SHA256: u16 = 0x000B;
/// TPM2_NUM_PCR_BANKS, and PCR_SELECT of a TPM with 24 PCRs.
const BANKS: usize = 16;
const SELECT: u8 = 3;
/// Of a TPML_DIGEST, and of a TPM2B_DIGEST's buffer (SHA-512).
const DIGESTS: usize = 8;
const LONGEST: usize = 64;

pub fn request(accepted: &Accepted, log: &Log) -> anyhow::Result<Value> {
    let (evidence, asked) = (accepted.evidence(), accepted.asked());
    let list = List::parse(&evidence.siglist)
        .map_err(|e| Refused(e.to_string()))
        .context("reading the container's list, which is to be the runtime policy")?;
    let quoted = qualify::vtpm(&asked.nonce, &asked.container, &asked.channel.bytes());
    let files = log.entries.iter().filter(|e| e.pcr() == pcr::FILES);
    let quote = [
        &evidence.container_attest,
        &evidence.container_sig,
        &pcr_blob(&log.values),
    ]
    .map(|part| BASE64.encode(part));
    Ok(json!({
        "type": "tpm",
        "data": {
            "quote": format!("r{}", quote.join(":")),
            "nonce": BASE64.encode(quoted),
            "hash_alg": "sha256",
            "tpm_ek": BASE64.encode(&evidence.container_ek),
            "tpm_ak": BASE64.encode(&evidence.container_ak),
            // Every PCR by name: what a policy does not name, Keylime does not look at.
            "tpm_policy": allowed(&log.values, |pcr| pcr.to_string()).to_string(),
            "runtime_policy": policy(&list, log).to_string(),
            "ima_measurement_list": imalog::ascii(files),
        },
    }))
}

/// The list, and the record that ends a rootfs's files, where they are measured by themselves.
fn policy(list: &List, log: &Log) -> Value {
    let mut policy = export::keylime(list);
    for entry in log.entries.iter().filter(|e| e.pcr() == pcr::FILES) {
        if let Template::ImaBuf { buf, .. } = entry.template() {
            policy["ima-buf"][FILES_DONE] = json!([verify::digest::FileDigest::of(buf).hex()]);
        }
    }
    policy
}

/// PCR values as tpm2-tools write them from memory, little-endian: TPML_PCR_SELECTION, the number of
/// TPML_DIGESTs, and these, filled up to their greatest size.
fn pcr_blob(values: &[(PcrIndex, [u8; 32])]) -> Vec<u8> {
    let bits = values
        .iter()
        .fold(0u32, |bits, (pcr, _)| bits | 1 << pcr.get());
    let mut blob = 1u32.to_le_bytes().to_vec();
    blob.extend(SHA256.to_le_bytes());
    blob.push(SELECT);
    blob.extend(bits.to_le_bytes());
    blob.resize(4 + BANKS * 8, 0);
    let lists = values.chunks(DIGESTS);
    blob.extend((lists.len() as u32).to_le_bytes());
    for list in lists {
        blob.extend((list.len() as u32).to_le_bytes());
        let end = blob.len() + DIGESTS * (2 + LONGEST);
        for (_, value) in list {
            blob.extend((value.len() as u16).to_le_bytes());
            blob.extend(value);
            blob.resize(blob.len() + LONGEST - value.len(), 0);
        }
        blob.resize(end, 0);
    }
    blob
}

#[cfg(test)]
mod tests {
    use super::*;
    use verify::pcr::QUOTED;

    #[test]
    fn values_lie_where_tpm2_tools_put_them() {
        let values: Vec<_> = QUOTED
            .into_iter()
            .map(|pcr| (pcr, [pcr.get(); 32]))
            .collect();
        let blob = pcr_blob(&values);
        assert_eq!(blob.len(), 4 + 16 * 8 + 4 + 2 * (4 + 8 * 66));
        assert_eq!(blob[..11], [1, 0, 0, 0, 0x0b, 0, 3, 0xff, 0x0f, 0, 0]);
        assert_eq!(blob[132..136], [2, 0, 0, 0]);
        assert_eq!(blob[136..144], [8, 0, 0, 0, 32, 0, 0, 0]);
        // the second list's second value: PCR 9's
        let at = 136 + 4 + 8 * 66 + 4 + 66;
        assert_eq!(blob[at..at + 3], [32, 0, 9]);
        assert_eq!(blob[at + 2 + 32], 0);
    }
}
