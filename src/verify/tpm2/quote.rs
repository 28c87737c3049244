//! The check of one quote, every failure under its own name.

use super::attest::{ATTEST_QUOTE, GENERATED};
use super::{Attest, AttestationKey, Body, Malformed, Selection, Signature};
use crate::check::Check;
use crate::pcr::PcrIndex;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

/// One variant per check of a quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    #[error("{0}")]
    Parse(#[from] Malformed),
    #[error("magic is {found:#010x}, not TPM_GENERATED_VALUE: not made by a TPM")]
    Magic { found: u32 },
    #[error("attestation type {found:#06x} is not a quote")]
    Type { found: u16 },
    #[error("the signature is not the attestation key's over these bytes")]
    Signature,
    #[error("qualifying data is {found}, expected {expected}")]
    QualifyingData { found: String, expected: String },
    #[error("selection is {found:x?}, expected PCRs {expected:#x} of the SHA-256 bank alone")]
    Selection {
        found: Vec<(u16, u32)>,
        expected: u32,
    },
    #[error("the PCR digest is {found}, the values give {expected}")]
    PcrDigest { found: String, expected: String },
}

impl QuoteError {
    pub fn check(&self) -> Check {
        match self {
            Self::Parse(_) => Check::QParse,
            Self::Magic { .. } => Check::QMagic,
            Self::Type { .. } => Check::QType,
            Self::Signature => Check::QSig,
            Self::QualifyingData { .. } => Check::QQd,
            Self::Selection { .. } => Check::QSel,
            Self::PcrDigest { .. } => Check::QPcrdig,
        }
    }
}

/// Witness: a quote by that key over the expected qualifying data and exactly the demanded PCRs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedQuote {
    attest: Attest,
    pcrs: Vec<PcrIndex>,
    digest: Vec<u8>,
}

/// Checks signature, magic, type, qualifying data and selection; reports all that fail.
///
/// `required` in ascending order, the order in which a TPM hashes PCR values.
pub fn verify_quote(
    key: &AttestationKey,
    attest: &[u8],
    signature: &[u8],
    expected_qd: &[u8; 32],
    required: &[PcrIndex],
) -> Result<VerifiedQuote, Vec<QuoteError>> {
    let mut errors = Vec::new();
    match Signature::parse(signature) {
        Ok(signature) => {
            let point = key.public().point();
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
            if key.verify(attest, &signature.fixed()).is_err() {
                errors.push(QuoteError::Signature);
            }
        }
        Err(malformed) => errors.push(malformed.into()),
    }
    let parsed = match Attest::parse(attest) {
        Ok(parsed) => parsed,
        Err(malformed) => {
            errors.push(malformed.into());
            return Err(errors);
        }
    };
    if parsed.magic != GENERATED {
        errors.push(QuoteError::Magic {
            found: parsed.magic,
        });
    }
    if parsed.kind != ATTEST_QUOTE {
        errors.push(QuoteError::Type { found: parsed.kind });
    }
    if aws_lc_rs::constant_time::verify_slices_are_equal(&parsed.extra_data, expected_qd).is_err() {
        let (found, expected) = (hex::encode(&parsed.extra_data), hex::encode(expected_qd));
        errors.push(QuoteError::QualifyingData { found, expected });
    }
    let Body::Quote { selection, digest } = &parsed.body else {
        return Err(errors);
    };
    let expected = Selection::sha256(required);
    if selection.as_slice() != [expected]
        || !required.is_sorted_by(|a, b| a < b)
        || required.is_empty()
    {
        let found = selection.iter().map(|s| (s.bank, s.bits)).collect();
        errors.push(QuoteError::Selection {
            found,
            expected: expected.bits,
        });
    }
    let digest = digest.clone();
    match errors.is_empty() {
        true => Ok(VerifiedQuote {
            attest: parsed,
            pcrs: required.to_vec(),
            digest,
        }),
        false => Err(errors),
    }
}

impl VerifiedQuote {
    pub fn pcr_digest(&self) -> &[u8] {
        &self.digest
    }
    pub fn reset(&self) -> u32 {
        self.attest.reset_count
    }
    pub fn restart(&self) -> u32 {
        self.attest.restart_count
    }
    /// Milliseconds.
    pub fn clock(&self) -> u64 {
        self.attest.clock
    }
    /// The clock has not gone back since this value was last reported.
    pub fn safe(&self) -> bool {
        self.attest.safe
    }
    pub fn firmware(&self) -> u64 {
        self.attest.firmware
    }
    /// Qualified name of the signing key.
    pub fn signer(&self) -> &[u8] {
        &self.attest.signer
    }

    /// `values` in the order of the demanded PCRs: their hash must be the signed PCR digest.
    pub fn explains(&self, values: &[[u8; 32]]) -> Result<QuotedPcrs, QuoteError> {
        let composite = Sha256::digest(values.concat());
        if values.len() != self.pcrs.len() || composite.as_slice() != self.digest {
            let (found, expected) = (hex::encode(&self.digest), hex::encode(composite));
            return Err(QuoteError::PcrDigest { found, expected });
        }
        Ok(QuotedPcrs(
            self.pcrs
                .iter()
                .copied()
                .zip(values.iter().copied())
                .collect(),
        ))
    }
}

/// Witness: the values that the quoted PCRs had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotedPcrs(Vec<(PcrIndex, [u8; 32])>);

impl QuotedPcrs {
    /// None for a PCR that the quote does not cover.
    pub fn get(&self, pcr: PcrIndex) -> Option<&[u8; 32]> {
        self.0
            .iter()
            .find(|(index, _)| *index == pcr)
            .map(|(_, value)| value)
    }
}
