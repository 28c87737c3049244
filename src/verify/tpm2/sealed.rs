//! Data sealed in software for one TPM in one state: an object whose policy demands values of PCRs, wrapped
//! for TPM2_Import below the TPM's endorsement key (TPM 2.0 Library Part 1, "Duplication" and "Sealed Data
//! Object"; Part 3, TPM2_Import, TPM2_PolicyPCR).
//!
//! It has no authorization value, so that its policy is the only way to it; and its policy names no
//! command, so that it cannot be duplicated again or be given a value.

use super::outer::{NoScalar, Purpose, wrap};
use super::{EndorsementKey, Malformed, Reader, TpmName, alg};
use crate::pcr::PcrIndex;
use sha2::{Digest as _, Sha256};

/// Most that a TPM seals in one object (MAX_SYM_DATA).
pub const MAX_SEALED: usize = 128;

const CC_POLICY_PCR: u32 = 0x17F;
/// TPMA_OBJECT: adminWithPolicy, noDA. Not fixedTPM and not fixedParent, as TPM2_Import demands; not
/// userWithAuth, so that the empty authorization value opens nothing.
const ATTRIBUTES: u32 = 1 << 7 | 1 << 10;

/// The object, as TPM2_Import takes it, without the size fields in front of each part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedObject {
    /// TPMT_PUBLIC.
    pub public: Vec<u8>,
    /// The sensitive area in its outer wrapper.
    pub duplicate: Vec<u8>,
    /// TPMS_ECC_POINT.
    pub seed: Vec<u8>,
}

/// Random bytes, used once.
#[derive(Clone)]
pub struct SealingRandom {
    /// Hides the data in the object's name.
    pub obfuscation: [u8; 32],
    pub ephemeral: [u8; 32],
}

/// TPML_PCR_SELECTION of the SHA-256 bank.
pub fn pcr_selection(pcrs: &[PcrIndex]) -> Vec<u8> {
    let mask = pcrs.iter().fold(0u32, |mask, pcr| mask | 1 << pcr.get());
    let [a, b, c, _] = mask.to_le_bytes();
    let mut selection = vec![0, 0, 0, 1];
    selection.extend(alg::SHA256.to_be_bytes());
    selection.extend([3, a, b, c]);
    selection
}

/// The policy that these PCRs have these values; `pcrs` ascend, as a TPM takes them.
pub fn pcr_policy(pcrs: &[(PcrIndex, [u8; 32])]) -> [u8; 32] {
    let values = pcrs.iter().map(|(_, value)| *value).collect::<Vec<_>>();
    let selected: Vec<_> = pcrs.iter().map(|(pcr, _)| *pcr).collect();
    Sha256::new_with_prefix([0; 32])
        .chain_update(CC_POLICY_PCR.to_be_bytes())
        .chain_update(pcr_selection(&selected))
        .chain_update(Sha256::digest(values.concat()))
        .finalize()
        .into()
}

/// `data`, 1 to [`MAX_SEALED`] bytes, for the holder of `ek` while `policy` is met.
pub fn seal(
    ek: &EndorsementKey,
    policy: &[u8; 32],
    data: &[u8],
    random: &SealingRandom,
) -> Result<SealedObject, NoScalar> {
    let unique = Sha256::new_with_prefix(random.obfuscation)
        .chain_update(data)
        .finalize();
    let mut public = Vec::new();
    public.extend(alg::KEYEDHASH.to_be_bytes());
    public.extend(alg::SHA256.to_be_bytes());
    public.extend(ATTRIBUTES.to_be_bytes());
    public.extend(sized(policy));
    public.extend(alg::NULL.to_be_bytes()); // no scheme
    public.extend(sized(&unique));
    let mut sensitive = alg::KEYEDHASH.to_be_bytes().to_vec();
    sensitive.extend(sized(&[])); // no authorization value
    sensitive.extend(sized(&random.obfuscation));
    sensitive.extend(sized(data));
    let name = TpmName::of_public(&public);
    let wrapped = wrap(
        ek,
        Purpose::Duplicate,
        &name,
        &sized(&sensitive),
        &random.ephemeral,
    )?;
    Ok(SealedObject {
        public,
        duplicate: wrapped.blob,
        seed: wrapped.seed,
    })
}

impl SealedObject {
    pub fn name(&self) -> TpmName {
        TpmName::of_public(&self.public)
    }

    /// TPM2B_PUBLIC, TPM2B_PRIVATE and TPM2B_ENCRYPTED_SECRET: as tpm2-tools keep them in files.
    pub fn to_2b(&self) -> [Vec<u8>; 3] {
        [&self.public, &self.duplicate, &self.seed].map(|part| sized(part))
    }

    pub fn from_2b(parts: [&[u8]; 3]) -> Result<Self, Malformed> {
        let part = |bytes, what| {
            let mut reader = Reader::new(bytes, what);
            let part = reader.sized()?.to_vec();
            reader.end().map(|()| part)
        };
        let [public, duplicate, seed] = parts;
        Ok(Self {
            public: part(public, "TPM2B_PUBLIC")?,
            duplicate: part(duplicate, "TPM2B_PRIVATE")?,
            seed: part(seed, "TPM2B_ENCRYPTED_SECRET")?,
        })
    }
}

/// A TPM2B; nothing here is longer than a few hundred bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut out = size.to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::super::softkey::SoftKey;
    use super::*;

    /// That a TPM opens what is sealed so, the tests of the vTPM show.
    #[test]
    fn a_policy_names_pcrs_and_values() {
        let pcr = |index| PcrIndex::new(index).unwrap();
        assert_eq!(pcr_selection(&[pcr(0), pcr(8)])[4..], [0, 11, 3, 1, 1, 0]);
        let policy = |index, value| pcr_policy(&[(pcr(0), [1; 32]), (pcr(index), value)]);
        assert_ne!(policy(8, [0; 32]), policy(9, [0; 32]));
        assert_ne!(policy(8, [0; 32]), policy(8, [1; 32]));
    }

    #[test]
    fn parts_have_their_sizes_in_front() {
        let ek = super::super::EndorsementKey::check(&SoftKey::endorsement().public()).unwrap();
        let random = SealingRandom {
            obfuscation: [1; 32],
            ephemeral: [2; 32],
        };
        let object = seal(&ek, &[3; 32], b"secret", &random).unwrap();
        let [public, duplicate, seed] = object.to_2b();
        let back = SealedObject::from_2b([&public, &duplicate, &seed]);
        assert_eq!(back.as_ref(), Ok(&object));
        for end in 0..public.len() {
            assert!(SealedObject::from_2b([&public[..end], &duplicate, &seed]).is_err());
        }
        let longer = [&seed[..], &[0]].concat();
        assert!(SealedObject::from_2b([&public, &duplicate, &longer]).is_err());
        // the same data under other random bytes does not show that it is the same
        let other = SealingRandom {
            obfuscation: [4; 32],
            ..random
        };
        let again = seal(&ek, &[3; 32], b"secret", &other).unwrap();
        assert_ne!(again.name(), object.name());
        let no_number = SealingRandom {
            obfuscation: [1; 32],
            ephemeral: [0; 32],
        };
        assert_eq!(seal(&ek, &[3; 32], b"secret", &no_number), Err(NoScalar));
    }
}
