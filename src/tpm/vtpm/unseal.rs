//! Opening what was sealed for this vTPM: imported below the endorsement key, loaded, and unsealed by a
//! policy of PCR values (TPM 2.0 Library Part 3: TPM2_Import, TPM2_PolicySecret, TPM2_PolicyPCR).

use super::{Error, Vtpm};
use crate::channel::pause;
use crate::wire::{Code, Command, Malformed, RH_ENDORSEMENT, RH_NULL, Writer};
use crate::{Key, random};
use verify::pcr::PcrIndex;
use verify::tpm2::{SealedObject, alg, pcr_selection};

/// Between the look at the PCRs and the unsealing another program of the container may start, which extends
/// one; so often it is tried, with pauses that add up to seconds.
const ATTEMPTS: u32 = 40;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    #[error("it was sealed for another TPM, or was changed on its way")]
    OtherTpm,
    #[error("this TPM's PCRs do not have the values that it was sealed to")]
    OtherState,
    #[error(transparent)]
    Tpm(#[from] Error),
}

impl Vtpm {
    /// What `object` holds, which is sealed to values of `pcrs`. Keys and sessions of a failure stay until
    /// this connection's process ends.
    pub fn unseal(
        &mut self,
        object: &SealedObject,
        pcrs: &[PcrIndex],
    ) -> Result<Vec<u8>, UnsealError> {
        let ek = self.create_ek()?;
        let session = self.start_policy()?;
        let private = self.import(&ek, session, object)?;
        let loaded = self.load(&ek, session, &private, object)?;
        self.flush(ek)?;
        let secret = self.unseal_by(loaded, session, pcrs)?;
        for handle in [loaded, session] {
            self.flush_handle(handle)?;
        }
        Ok(secret)
    }

    /// A policy session without a secret of its own: what it carries is no secret to the guard.
    fn start_policy(&mut self) -> Result<u32, Error> {
        const SE_POLICY: u8 = 1;
        let nonce: [u8; 16] = random::bytes().map_err(Error::Random)?;
        let command = Command::new(Code::START_AUTH_SESSION)
            .handle(RH_NULL)
            .handle(RH_NULL)
            .parameters(
                Writer::default()
                    .sized(&nonce)
                    .sized(b"")
                    .u8(SE_POLICY)
                    .u16(alg::NULL)
                    .u16(alg::SHA256),
            );
        self.channel.read(&command, |handle, reader| {
            reader.sized()?; // nonceTPM
            handle.ok_or(Malformed::Short)
        })
    }

    /// What the policy of an endorsement key demands: the authorization of its hierarchy, which is empty.
    fn policy_secret(&mut self, session: u32) -> Result<(), Error> {
        let command = Command::new(Code::POLICY_SECRET)
            .handle(RH_ENDORSEMENT)
            .handle(session)
            .password(b"")
            .parameters(Writer::default().sized(b"").sized(b"").sized(b"").u32(0));
        self.channel.read(&command, |_, reader| {
            reader.sized()?; // timeout
            reader.u16()?; // policyTicket: tag, hierarchy, digest
            reader.u32()?;
            reader.sized().map(drop)
        })
    }

    /// The object's private part, as this TPM keeps it.
    fn import(
        &mut self,
        ek: &Key,
        session: u32,
        object: &SealedObject,
    ) -> Result<Vec<u8>, UnsealError> {
        self.policy_secret(session)?;
        let command = Command::new(Code::IMPORT)
            .handle(ek.handle)
            .policy(session)
            .parameters(
                Writer::default()
                    .sized(b"") // no inner wrapper
                    .sized(&object.public)
                    .sized(&object.duplicate)
                    .sized(&object.seed)
                    .u16(alg::NULL),
            );
        let imported = self
            .channel
            .read(&command, |_, reader| reader.sized().map(<[u8]>::to_vec));
        imported.map_err(|error| match error {
            Error::Refused { rc, .. } if rc.is_integrity() => UnsealError::OtherTpm,
            error => error.into(),
        })
    }

    fn load(
        &mut self,
        ek: &Key,
        session: u32,
        private: &[u8],
        object: &SealedObject,
    ) -> Result<u32, Error> {
        self.policy_secret(session)?;
        let command = Command::new(Code::LOAD)
            .handle(ek.handle)
            .policy(session)
            .parameters(Writer::default().sized(private).sized(&object.public));
        self.channel.read(&command, |handle, reader| {
            reader.sized()?; // name
            handle.ok_or(Malformed::Short)
        })
    }

    fn unseal_by(
        &mut self,
        object: u32,
        session: u32,
        pcrs: &[PcrIndex],
    ) -> Result<Vec<u8>, UnsealError> {
        let unseal = Command::new(Code::UNSEAL).handle(object).policy(session);
        let mut attempt = 1;
        loop {
            self.policy_pcr(session, pcrs)?;
            let unsealed = self
                .channel
                .read(&unseal, |_, reader| reader.sized().map(<[u8]>::to_vec));
            match unsealed {
                Ok(secret) => return Ok(secret),
                Err(Error::Refused { rc, .. }) if rc.is_policy_fail() => {
                    return Err(UnsealError::OtherState);
                }
                Err(Error::Refused { rc, .. }) if rc.is_pcr_changed() && attempt < ATTEMPTS => {
                    std::thread::sleep(pause(attempt));
                }
                Err(error) => return Err(error.into()),
            }
            attempt += 1;
        }
    }

    /// The session's policy becomes: these PCRs have the values that they have now.
    fn policy_pcr(&mut self, session: u32, pcrs: &[PcrIndex]) -> Result<(), Error> {
        self.run(&Command::new(Code::POLICY_RESTART).handle(session))?;
        let parameters = Writer::default().sized(b"").bytes(&pcr_selection(pcrs));
        let command = Command::new(Code::POLICY_PCR).handle(session);
        self.run(&command.parameters(parameters))
    }

    fn flush_handle(&mut self, handle: u32) -> Result<(), Error> {
        self.run(&Command::new(Code::FLUSH_CONTEXT).parameters(Writer::default().u32(handle)))
    }
}
