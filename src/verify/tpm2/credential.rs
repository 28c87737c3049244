//! TPM2_MakeCredential in software (TPM 2.0 Library Part 1, 24): a secret that one TPM alone opens, and only
//! while the named key is in that same TPM. So whoever gives the secret back has both keys in one TPM.

use super::outer::{NoScalar, Purpose, wrap};
use super::{EndorsementKey, TpmName};

/// What goes to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// TPMS_ID_OBJECT: what TPM2_ActivateCredential takes as `credentialBlob`.
    pub blob: Vec<u8>,
    /// TPMS_ECC_POINT: what it takes as `secret`.
    pub seed: Vec<u8>,
}

/// `secret` for the holder of `ek` and of the key of this `name`. `ephemeral`: 32 random bytes, used once.
pub fn make_credential(
    ek: &EndorsementKey,
    name: &TpmName,
    secret: &[u8; 32],
    ephemeral: &[u8; 32],
) -> Result<Credential, NoScalar> {
    let mut content = vec![0, 32];
    content.extend(secret);
    let wrapped = wrap(ek, Purpose::Credential, name, &content, ephemeral)?;
    Ok(Credential {
        blob: wrapped.blob,
        seed: wrapped.seed,
    })
}
