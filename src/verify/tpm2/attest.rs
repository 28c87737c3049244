//! TPMS_ATTEST and TPMT_SIGNATURE, parsed strictly.

use super::{Malformed, Reader, alg};
use crate::pcr::PcrIndex;

/// TPM_GENERATED_VALUE (Part 2, 6.2): only the TPM itself writes it before signing.
pub const GENERATED: u32 = 0xFF54_4347;
/// TPM_ST_ATTEST_QUOTE (Part 2, 6.9).
pub const ATTEST_QUOTE: u16 = 0x8018;
/// Banks that a selection may name (a TPM has at most this many).
const MAX_BANKS: u32 = 16;
/// sizeofSelect of a TPM with 24 PCRs.
const SELECT_BYTES: u8 = 3;

/// What a TPM signed (Part 2, 10.12.12). Magic and type are kept as found: judging them is the
/// quote check's task, so that each failure has its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest {
    pub magic: u32,
    pub kind: u16,
    /// Qualified name of the signing key.
    pub signer: Vec<u8>,
    /// The caller's qualifying data.
    pub extra_data: Vec<u8>,
    /// Milliseconds.
    pub clock: u64,
    pub reset_count: u32,
    pub restart_count: u32,
    pub safe: bool,
    pub firmware: u64,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Quote {
        selection: Vec<Selection>,
        digest: Vec<u8>,
    },
    /// Another type of attestation, not parsed.
    Other,
}

/// One bank's PCRs (TPMS_PCR_SELECTION).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    pub bank: u16,
    /// Bit n set: PCR n.
    pub bits: u32,
}

impl Selection {
    pub fn sha256(pcrs: &[PcrIndex]) -> Self {
        Self {
            bank: alg::SHA256,
            bits: pcrs.iter().fold(0, |bits, pcr| bits | 1 << pcr.get()),
        }
    }
}

impl Attest {
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes, "TPMS_ATTEST");
        let (magic, kind) = (r.u32()?, r.u16()?);
        let (signer, extra_data) = (r.sized()?.to_vec(), r.sized()?.to_vec());
        let (clock, reset_count, restart_count) = (r.u64()?, r.u32()?, r.u32()?);
        // TPMI_YES_NO
        let safe = match r.u8()? {
            0 => false,
            1 => true,
            other => {
                return Err(Malformed::Value {
                    what: "safe",
                    found: other.to_string(),
                    expected: "0 or 1",
                });
            }
        };
        let firmware = r.u64()?;
        let body = match kind {
            ATTEST_QUOTE => {
                let selection = parse_selection(&mut r)?;
                let digest = r.sized()?.to_vec();
                r.end()?;
                Body::Quote { selection, digest }
            }
            _ => Body::Other,
        };
        Ok(Self {
            magic,
            kind,
            signer,
            extra_data,
            clock,
            reset_count,
            restart_count,
            safe,
            firmware,
            body,
        })
    }
}

fn parse_selection(r: &mut Reader<'_>) -> Result<Vec<Selection>, Malformed> {
    let count = r.u32()?;
    if count > MAX_BANKS {
        return Err(Malformed::Value {
            what: "PCR banks",
            found: count.to_string(),
            expected: "16 at most",
        });
    }
    let mut selection = Vec::new();
    for _ in 0..count {
        let bank = r.u16()?;
        match r.u8()? {
            SELECT_BYTES => {}
            n => {
                return Err(Malformed::Value {
                    what: "sizeofSelect",
                    found: n.to_string(),
                    expected: "3",
                });
            }
        }
        let [low, middle, high] = r.array::<3>()?;
        selection.push(Selection {
            bank,
            bits: u32::from_le_bytes([low, middle, high, 0]),
        });
    }
    Ok(selection)
}

/// An ECDSA signature with SHA-256 over P-256 (TPMT_SIGNATURE, Part 2, 11.3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    r: [u8; 32],
    s: [u8; 32],
}

impl Signature {
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let wrong = |found: &str| Malformed::Value {
            what: "signature algorithm",
            found: found.to_owned(),
            expected: "ECDSA with SHA-256",
        };
        let mut reader = Reader::new(bytes, "TPMT_SIGNATURE");
        match reader.u16()? {
            alg::ECDSA => {}
            alg::RSASSA => return Err(wrong("RSASSA")),
            alg::RSAPSS => return Err(wrong("RSAPSS")),
            other => return Err(wrong(&format!("{other:#06x}"))),
        }
        reader.exactly("signature's hash", alg::SHA256, "SHA-256")?;
        let (r, s) = (reader.p256_number("r")?, reader.p256_number("s")?);
        reader.end()?;
        Ok(Self { r, s })
    }
    /// r ‖ s, as IEEE P1363 and aws-lc-rs's `FIXED` form have it.
    pub fn fixed(&self) -> [u8; 64] {
        let mut out = [0; 64];
        for (to, from) in out.iter_mut().zip(self.r.iter().chain(&self.s)) {
            *to = *from;
        }
        out
    }
}
