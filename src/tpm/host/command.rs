//! The commands that the host TPM is sent: their names, and what a refusal of each one means.

use super::HostError;
use crate::rc::Rc;
use tss_esapi::{
    Context, Error,
    constants::{CapabilityType, response_code::Tss2ResponseCode},
    handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle},
    interface_types::{
        algorithm::HashingAlgorithm, resource_handles::NvAuth, session_handles::AuthSession,
    },
    structures::CapabilityData,
};

/// A step that may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Capability,
    CreateEk,
    CreateAik,
    LoadAik,
    CreateCa,
    LoadCa,
    Sign,
    Seal,
    LoadSealed,
    Unseal,
    DefineCounter,
    Counter,
    Session,
    Policy,
    Extend,
    Read,
    Quote,
    Clock,
    Flush,
    Certificate,
    Activate,
}

impl Step {
    const fn command(self) -> &'static str {
        match self {
            Self::Capability => "TPM2_GetCapability",
            Self::CreateEk => "TPM2_CreatePrimary of the endorsement key",
            Self::CreateAik => "TPM2_Create of the attestation key",
            Self::LoadAik => "TPM2_Load of the attestation key",
            Self::CreateCa => "TPM2_Create of the vTPM CA's key",
            Self::LoadCa => "TPM2_Load of the vTPM CA's key",
            Self::Sign => "TPM2_Sign with the vTPM CA's key",
            Self::Seal => "TPM2_Create of the sealed secret of vTPMs",
            Self::LoadSealed => "TPM2_Load of the sealed secret of vTPMs",
            Self::Unseal => "TPM2_Unseal of the secret of vTPMs",
            Self::DefineCounter => "TPM2_NV_DefineSpace of the counter of vTPMs' states",
            Self::Counter => "the counter of vTPMs' states (TPM2_NV_Increment, TPM2_NV_Read)",
            Self::Session => "TPM2_StartAuthSession",
            Self::Policy => "TPM2_PolicySecret of the endorsement hierarchy",
            Self::Extend => "TPM2_PCR_Extend",
            Self::Read => "TPM2_PCR_Read",
            Self::Quote => "TPM2_Quote",
            Self::Clock => "TPM2_GetTime",
            Self::Flush => "TPM2_FlushContext",
            Self::Certificate => "TPM2_NV_Read of the endorsement certificate",
            Self::Activate => "TPM2_ActivateCredential",
        }
    }

    /// Turns the library's error into ours.
    pub fn failed(self) -> impl Fn(Error) -> HostError {
        move |error| match error {
            Error::Tss2Error(code) => match rc_of(code) {
                Some(rc) => self.refused(rc),
                None => HostError::Library {
                    command: self.command(),
                    source: error,
                },
            },
            Error::WrapperError(_) => HostError::Library {
                command: self.command(),
                source: error,
            },
        }
    }

    pub fn malformed(self, what: &'static str) -> HostError {
        HostError::Malformed {
            command: self.command(),
            what,
        }
    }

    fn refused(self, rc: Rc) -> HostError {
        let command = self.command();
        match self {
            _ if rc.is_lockout() => HostError::Lockout { command },
            _ if rc.asks_for_retry() => HostError::Busy { command, rc },
            Self::CreateEk | Self::Policy | Self::Clock if rc.is_wrong_auth() => {
                HostError::EndorsementAuth { command, rc }
            }
            Self::DefineCounter if rc.is_wrong_auth() => HostError::OwnerAuth { command, rc },
            Self::Quote | Self::Activate | Self::Sign | Self::Unseal | Self::Counter
                if rc.is_wrong_auth() =>
            {
                HostError::KeyAuth { command, rc }
            }
            Self::LoadAik | Self::LoadCa | Self::LoadSealed
                if matches!(rc.name(), Some("INTEGRITY" | "BINDING" | "SENSITIVE")) =>
            {
                HostError::ForeignKey { command, rc }
            }
            _ => HostError::Refused { command, rc },
        }
    }
}

/// The number inside the library's response code, which it shows only in its text.
pub fn rc_of(code: Tss2ResponseCode) -> Option<Rc> {
    let text = match code {
        Tss2ResponseCode::Success => return None,
        Tss2ResponseCode::FormatZero(code) => code.to_string(),
        Tss2ResponseCode::FormatOne(code) => code.to_string(),
    };
    let digits = text.rsplit_once("0x")?.1;
    u32::from_str_radix(digits, 16).ok().map(Rc::new)
}

/// Banks with at least one PCR.
pub fn pcr_banks(context: &mut Context) -> Result<Vec<HashingAlgorithm>, HostError> {
    const STEP: Step = Step::Capability;
    let (data, _) = context
        .execute_without_session(|c| c.get_capability(CapabilityType::AssignedPcr, 0, 16))
        .map_err(STEP.failed())?;
    let CapabilityData::AssignedPcr(list) = data else {
        return Err(STEP.malformed("these are not PCR banks"));
    };
    let banks = list.get_selections().iter().filter(|bank| !bank.is_empty());
    Ok(banks.map(|bank| bank.hashing_algorithm()).collect())
}

/// Unloads what a predecessor that was killed has left behind. Without a resource manager keys stay
/// loaded when a connection ends, and there is room for three. The host service is the only user.
pub fn flush_leftovers(context: &mut Context) -> Result<(), HostError> {
    /// First transient handle, most that are asked for (Part 2, 7.2).
    const FIRST: u32 = 0x8000_0000;
    const MOST: u32 = 16;
    const STEP: Step = Step::Flush;
    let (data, _) = context
        .execute_without_session(|c| c.get_capability(CapabilityType::Handles, FIRST, MOST))
        .map_err(STEP.failed())?;
    let CapabilityData::Handles(list) = data else {
        return Err(STEP.malformed("these are not handles"));
    };
    for handle in list.into_inner() {
        if let TpmHandle::Transient(_) = handle {
            let object = context
                .execute_without_session(|c| c.tr_from_tpm_public(handle))
                .map_err(STEP.failed())?;
            context.flush_context(object).map_err(STEP.failed())?;
        }
    }
    Ok(())
}

/// The index, if it is there.
pub fn nv_index(context: &mut Context, index: u32) -> Result<Option<NvIndexHandle>, HostError> {
    const STEP: Step = Step::Capability;
    let (data, _) = context
        .execute_without_session(|c| c.get_capability(CapabilityType::Handles, index, 1))
        .map_err(STEP.failed())?;
    let CapabilityData::Handles(list) = data else {
        return Err(STEP.malformed("these are not handles"));
    };
    let wanted = NvIndexTpmHandle::new(index).map_err(STEP.failed())?;
    if list.into_inner().first() != Some(&TpmHandle::NvIndex(wanted)) {
        return Ok(None);
    }
    context
        .execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::NvIndex(wanted)))
        .map(|handle| Some(handle.into()))
        .map_err(STEP.failed())
}

/// The whole content of an NV index, with the owner's authorization; `None`: there is none.
pub fn nv_content(context: &mut Context, index: u32) -> Result<Option<Vec<u8>>, HostError> {
    /// Any TPM reads so many bytes at once (TPM_PT_NV_BUFFER_MAX is 512 at least in the PC Client profile).
    const PIECE: u16 = 512;
    const STEP: Step = Step::Certificate;
    let Some(handle) = nv_index(context, index)? else {
        return Ok(None);
    };
    let (public, _) = context
        .execute_without_session(|c| c.nv_read_public(handle))
        .map_err(STEP.failed())?;
    let size = u16::try_from(public.data_size()).unwrap_or(u16::MAX);
    let mut content = Vec::new();
    for offset in (0..size).step_by(PIECE.into()) {
        let piece = context
            .execute_with_session(Some(AuthSession::Password), |c| {
                c.nv_read(NvAuth::Owner, handle, PIECE.min(size - offset), offset)
            })
            .map_err(STEP.failed())?;
        content.extend_from_slice(piece.value());
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let text = |step: Step, code| step.refused(Rc::new(code)).to_string();
        assert!(text(Step::LoadAik, 0x921).contains("tpm2_dictionarylockout"));
        assert!(text(Step::Quote, 0x922).starts_with("TPM2_Quote: the TPM is busy"));
        assert!(text(Step::Policy, 0x9A2).contains("tpm2_changeauth -c endorsement"));
        assert!(text(Step::Quote, 0x9A2).contains("not the one of this key"));
        assert!(text(Step::LoadAik, 0x1DF).contains("enrol the host anew"));
        assert_eq!(
            text(Step::Extend, 0x101),
            "TPM2_PCR_Extend: refused: the TPM is in failure mode (FAILURE, 0x101)"
        );
    }
}
