//! Reference values for Trustee (Confidential Containers): a message to its Reference Value Provider
//! Service, as `rvps-tool register` sends it. Names as its default policy for TPMs has them
//! (`trusted_aks`, `tpm_pcr11`): keys as base64 of SubjectPublicKeyInfo, PCRs of the SHA-256 bank in hex.

use super::{Log, allowed};
use crate::{challenge::Accepted, report::Refused};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use verify::tpm2::Public;

/// DER of an ECC P-256 SubjectPublicKeyInfo up to the point (RFC 5480).
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

pub fn message(accepted: &Accepted, log: &Log) -> anyhow::Result<Value> {
    let ak = Public::parse_2b(&accepted.evidence().container_ak)
        .map_err(|e| Refused(e.to_string()))
        .context("reading the vTPM's attestation key")?;
    let mut values = allowed(&log.values, |pcr| format!("tpm_pcr{:02}", pcr.get()));
    values["trusted_aks"] = json!([BASE64.encode([&SPKI_P256[..], ak.point()].concat())]);
    Ok(json!({
        "version": "0.1.0",
        "type": "sample",
        "payload": BASE64.encode(values.to_string()),
    }))
}
