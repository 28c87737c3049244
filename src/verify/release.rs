//! Release: a secret for one container in one state. It is sealed below the endorsement key of that
//! container's vTPM, to the values that PCRs 0 to 5, 7 and 8 had in accepted evidence.
//!
//! Trusts: the random bytes that it is given. Proves: whoever opens it has that vTPM, and its PCRs have
//! these values then. Not who made it: an endorsement key is public, anybody can seal to it.

use crate::appraise::Trusted;
use crate::canon::canonical;
use crate::digest::RecordDigest;
use crate::id::{ContainerId, UnixTime};
use crate::pcr::{FAULTS, PcrIndex, SEALED};
use crate::tpm2::{
    EndorsementKey, MAX_SEALED, NoScalar, QuotedPcrs, SealedObject, SealingRandom, TpmName,
    pcr_policy, seal,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

/// Longest secret.
pub const MAX_SECRET: usize = 1 << 20;
/// Longest file.
pub const MAX_RELEASE: usize = 2 << 20;
const VERSION: u64 = 1;
const KEY: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    #[error("the container's guard has recorded faults (PCR 8 is not empty)")]
    Faults,
    #[error("a secret has 1 to {MAX_SECRET} bytes, this one {0}")]
    Length(usize),
    #[error(transparent)]
    NoScalar(#[from] NoScalar),
    #[error("the secret was not encrypted: AES-256-GCM failed")]
    Cipher,
    #[error("not a released secret: {0}")]
    Malformed(String),
    #[error("what was sealed does not open the secret: the file was changed")]
    Changed,
}

/// Witness: the vTPM of a container that was accepted. Only appraisal makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    ek: EndorsementKey,
    pcrs: [(PcrIndex, [u8; 32]); SEALED.len()],
}

impl Recipient {
    /// None: a PCR is missing among `quoted`.
    pub(crate) fn of(ek: &EndorsementKey, quoted: &QuotedPcrs) -> Option<Self> {
        let mut pcrs = SEALED.map(|pcr| (pcr, [0; 32]));
        for (pcr, value) in &mut pcrs {
            *value = *quoted.get(*pcr)?;
        }
        let ek = ek.clone();
        Some(Self { ek, pcrs })
    }

    /// An audited container's faults may be waived; a secret is for one without any.
    fn is_without_faults(&self) -> bool {
        let mut faults = self.pcrs.iter().filter(|(pcr, _)| *pcr == FAULTS);
        faults.all(|(_, value)| *value == [0; 32])
    }

    /// The endorsement key's name.
    pub fn ek_name(&self) -> TpmName {
        self.ek.name()
    }
}

/// Random bytes for one release.
#[derive(Clone)]
pub struct ReleaseRandom {
    pub sealing: SealingRandom,
    /// Encrypts a secret that is too long for a TPM.
    pub key: [u8; KEY],
}

/// A released secret, as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Whom it is for, in words; the object alone decides who opens it.
    pub container: ContainerId,
    pub host: String,
    pub record: RecordDigest,
    pub released: UnixTime,
    /// The secret, or the key of `payload`.
    pub object: SealedObject,
    /// AES-256-GCM with a nonce of zeros, since each key is used once; the object's name is its
    /// associated data.
    pub payload: Option<Vec<u8>>,
}

/// Its file; binary parts in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    v: u64,
    container: ContainerId,
    host: String,
    record: RecordDigest,
    released: String,
    pcrs: Vec<PcrIndex>,
    public: String,
    duplicate: String,
    seed: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

/// `secret` for the container that was accepted, as long as it is in the state that was seen.
pub fn release(
    to: &Trusted,
    secret: &[u8],
    released: UnixTime,
    random: &ReleaseRandom,
) -> Result<Release, ReleaseError> {
    let recipient = to.recipient();
    if !recipient.is_without_faults() {
        return Err(ReleaseError::Faults);
    }
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(ReleaseError::Length(secret.len()));
    }
    let fits = secret.len() <= MAX_SEALED;
    let sealed = if fits { secret } else { &random.key };
    let policy = pcr_policy(&recipient.pcrs);
    let object = seal(&recipient.ek, &policy, sealed, &random.sealing)?;
    let payload = match fits {
        true => None,
        false => Some(encrypt(&random.key, &object.name(), secret)?),
    };
    Ok(Release {
        container: to.container().clone(),
        host: to.host().to_owned(),
        record: to.record(),
        released,
        object,
        payload,
    })
}

impl Release {
    pub fn encode(&self) -> Result<Vec<u8>, ReleaseError> {
        let [public, duplicate, seed] = self.object.to_2b().map(|part| BASE64.encode(part));
        let text = Text {
            v: VERSION,
            container: self.container.clone(),
            host: self.host.clone(),
            record: self.record,
            released: self.released.to_string(),
            pcrs: SEALED.to_vec(),
            public,
            duplicate,
            seed,
            payload: self.payload.as_ref().map(|bytes| BASE64.encode(bytes)),
        };
        let mut bytes = canonical(&text).map_err(|e| ReleaseError::Malformed(e.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, ReleaseError> {
        let malformed = |why: String| ReleaseError::Malformed(why);
        if bytes.len() > MAX_RELEASE {
            return Err(malformed(format!("longer than {MAX_RELEASE} bytes")));
        }
        let text: Text = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        if text.v != VERSION {
            return Err(malformed(format!(
                "version {}, not {VERSION}: made by another attestctl",
                text.v
            )));
        }
        if text.pcrs != SEALED {
            return Err(malformed("sealed to other PCRs".to_owned()));
        }
        let decode = |part: &str| BASE64.decode(part).map_err(|e| malformed(e.to_string()));
        let parts = [
            decode(&text.public)?,
            decode(&text.duplicate)?,
            decode(&text.seed)?,
        ];
        let [public, duplicate, seed] = &parts;
        Ok(Self {
            container: text.container,
            host: text.host,
            record: text.record,
            released: UnixTime::parse(&text.released).map_err(|e| malformed(e.to_string()))?,
            object: SealedObject::from_2b([public, duplicate, seed])
                .map_err(|e| malformed(e.to_string()))?,
            payload: text.payload.as_deref().map(decode).transpose()?,
        })
    }

    /// The secret, from what the TPM has unsealed.
    pub fn open(&self, unsealed: Vec<u8>) -> Result<Vec<u8>, ReleaseError> {
        match &self.payload {
            None => Ok(unsealed),
            Some(payload) => {
                let key = <[u8; KEY]>::try_from(unsealed).map_err(|_| ReleaseError::Changed)?;
                decrypt(&key, &self.object.name(), payload)
            }
        }
    }
}

fn cipher(key: &[u8; KEY]) -> Result<LessSafeKey, ReleaseError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| ReleaseError::Cipher)?;
    Ok(LessSafeKey::new(key))
}

fn encrypt(key: &[u8; KEY], name: &TpmName, secret: &[u8]) -> Result<Vec<u8>, ReleaseError> {
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    let mut bytes = secret.to_vec();
    cipher(key)?
        .seal_in_place_append_tag(nonce, Aad::from(name.as_bytes()), &mut bytes)
        .map_err(|_| ReleaseError::Cipher)?;
    Ok(bytes)
}

fn decrypt(key: &[u8; KEY], name: &TpmName, payload: &[u8]) -> Result<Vec<u8>, ReleaseError> {
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    let mut bytes = payload.to_vec();
    let secret = cipher(key)?
        .open_in_place(nonce, Aad::from(name.as_bytes()), &mut bytes)
        .map_err(|_| ReleaseError::Changed)?;
    Ok(secret.to_vec())
}
