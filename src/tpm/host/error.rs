//! What can go wrong with the host TPM, in words that say what to do.

use super::blob::BlobError;
use crate::rc::Rc;
use std::{io, path::PathBuf};
use verify::tpm2::{KeyRefusal, Malformed};

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "`{0}` names no TPM: expected device:/dev/tpmrm0, or for a software root swtpm:host=127.0.0.1,port=2321"
    )]
    Tcti(String),
    #[error(
        "no TPM at {0}: the machine has none, or it is disabled in the firmware, or its driver is not loaded"
    )]
    NoDevice(PathBuf),
    #[error("{0} is not a TPM's character device")]
    NotADevice(PathBuf),
    #[error("{device} is a virtual TPM ({sysfs}) and cannot be the host TPM")]
    Virtual { device: PathBuf, sysfs: PathBuf },
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error(
        "{0} is in use by another process: stop it, or name the device of the resource manager (/dev/tpmrm0)"
    )]
    DeviceBusy(PathBuf),
    #[error("cannot connect to the TPM `{tcti}`: {rc}")]
    Open { tcti: String, rc: Rc },
    #[error(
        "the TPM has no SHA-256 PCR bank: enable it in the firmware, or with tpm2_pcrallocate and a reboot"
    )]
    NoSha256Bank,
    #[error(
        "{command}: the TPM is in dictionary attack lockout: wait until it ends (tpm2_getcap properties-variable), or reset it with tpm2_dictionarylockout"
    )]
    Lockout { command: &'static str },
    #[error("{command}: the TPM is busy: {rc}")]
    Busy { command: &'static str, rc: Rc },
    #[error(
        "{command}: the endorsement hierarchy has an authorization value ({rc}); attestrun needs it empty: tpm2_changeauth -c endorsement"
    )]
    EndorsementAuth { command: &'static str, rc: Rc },
    #[error(
        "{command}: the owner's hierarchy has an authorization value ({rc}); attestrun needs it empty while it makes \
         the counter: tpm2_changeauth -c owner"
    )]
    OwnerAuth { command: &'static str, rc: Rc },
    #[error(
        "the host TPM has no counter of vTPMs' states (NV index {0:#x}): it was cleared, or it is another TPM"
    )]
    NoCounter(u32),
    #[error("{command}: the authorization value is not the one of this key ({rc})")]
    KeyAuth { command: &'static str, rc: Rc },
    #[error(
        "{command}: the key was not made by this TPM, or its file is damaged ({rc}): enrol the host anew"
    )]
    ForeignKey { command: &'static str, rc: Rc },
    #[error("{command}: refused: {rc}")]
    Refused { command: &'static str, rc: Rc },
    #[error("{command}: {source}")]
    Library {
        command: &'static str,
        source: tss_esapi::Error,
    },
    #[error("{command}: the TPM's answer is not usable: {what}")]
    Malformed {
        command: &'static str,
        what: &'static str,
    },
    #[error("a key's public area is malformed: {0}")]
    KeyPublic(Malformed),
    #[error("the attestation key is not one: {0}")]
    AikAttributes(KeyRefusal),
    #[error("the TPM loaded a key of another name than the file's")]
    OtherName,
    #[error("no attestation key is loaded")]
    NoAik,
    #[error("no key of a vTPM CA is loaded")]
    NoCa,
    #[error("cannot write the certificate: {0}")]
    Certificate(der::Error),
    #[error("key file: {0}")]
    Blob(#[from] BlobError),
    #[error("no random bytes from the operating system: {0}")]
    Random(io::Error),
}
