//! Keys of tests, which sign real TPMS_ATTEST structures: a TPM's part played without a TPM.

use super::attest::{ATTEST_QUOTE, GENERATED};
use super::{Public, aik_template, alg, ek_template};
use crate::pcr::PcrIndex;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256};

pub(crate) struct SoftKey {
    pair: EcdsaKeyPair,
    tpmt_public: Vec<u8>,
}

impl SoftKey {
    /// A key of [`aik_template`].
    pub fn attestation() -> Self {
        let template = aik_template();
        Self::with_head(&template[..template.len() - 4])
    }
    /// A key of [`ek_template`].
    pub fn endorsement() -> Self {
        let template = ek_template();
        Self::with_head(&template[..template.len() - 68])
    }
    /// `head`: a TPMT_PUBLIC up to its point.
    pub fn with_head(head: &[u8]) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let mut tpmt_public = head.to_vec();
        for coordinate in pair.public_key().as_ref()[1..].chunks(32) {
            tpmt_public.extend(sized(coordinate));
        }
        Self { pair, tpmt_public }
    }
    pub fn tpmt_public(&self) -> &[u8] {
        &self.tpmt_public
    }
    pub fn public(&self) -> Public {
        Public::parse(&self.tpmt_public).unwrap()
    }
    /// TPMT_SIGNATURE.
    pub fn sign(&self, attest: &[u8]) -> Vec<u8> {
        let rs = self.pair.sign(&SystemRandom::new(), attest).unwrap();
        let mut out = Vec::new();
        out.extend(alg::ECDSA.to_be_bytes());
        out.extend(alg::SHA256.to_be_bytes());
        for number in rs.as_ref().chunks(32) {
            out.extend(sized(number));
        }
        out
    }
}

/// The fields of a quote; tests change them before it is signed.
#[derive(Clone)]
pub(crate) struct Draft {
    pub magic: u32,
    pub kind: u16,
    pub qd: Vec<u8>,
    pub reset: u32,
    pub restart: u32,
    pub safe: u8,
    pub clock: u64,
    pub signer: Vec<u8>,
    pub firmware: u64,
    /// Bank and PCR bits.
    pub selection: Vec<(u16, u32)>,
    pub digest: Vec<u8>,
}

impl Draft {
    pub fn new(qd: &[u8; 32], pcrs: &[PcrIndex], values: &[[u8; 32]]) -> Self {
        let bits = pcrs.iter().map(|pcr| 1 << pcr.get()).sum();
        Self {
            magic: GENERATED,
            kind: ATTEST_QUOTE,
            qd: qd.to_vec(),
            reset: 1,
            restart: 0,
            safe: 1,
            clock: 4711,
            signer: [&[0, 0x0B][..], &[7; 32]].concat(),
            firmware: 0x2019_1023_0016_3636,
            selection: vec![(alg::SHA256, bits)],
            digest: Sha256::digest(values.concat()).to_vec(),
        }
    }
    /// TPMS_ATTEST.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic.to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(sized(&self.signer));
        out.extend(sized(&self.qd));
        out.extend(self.clock.to_be_bytes());
        out.extend(self.reset.to_be_bytes());
        out.extend(self.restart.to_be_bytes());
        out.push(self.safe);
        out.extend(self.firmware.to_be_bytes());
        out.extend(u32::try_from(self.selection.len()).unwrap().to_be_bytes());
        for (bank, bits) in &self.selection {
            out.extend(bank.to_be_bytes());
            out.push(3);
            out.extend(&bits.to_le_bytes()[..3]);
        }
        out.extend(sized(&self.digest));
        out
    }
}

pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend(bytes);
    out
}
