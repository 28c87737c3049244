//! What kept states of vTPMs rest on: a secret that only this TPM unseals, and a counter of its NV memory
//! that never goes back (TPM 2.0 Library Part 1, "NV counter": also an index that is defined anew begins
//! above every value that any counter of this TPM ever had).
//!
//! Both want the authorization value in the secret's file, which is root's. They are bound to the machine,
//! not to what it booted: who boots another system and has the disk is root there.

use super::{
    HostError, HostTpm, MasterBlob,
    command::{self, Step},
    random,
};
use tss_esapi::{
    attributes::{NvIndexAttributesBuilder, SessionAttributesBuilder},
    constants::{NvIndexType, SessionType},
    handles::{NvIndexHandle, NvIndexTpmHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        resource_handles::{NvAuth, Provision},
        session_handles::AuthSession,
    },
    structures::{Auth, NvPublicBuilder, SensitiveData},
};
use verify::tpm2;

/// In the range of the owner's indices (TCG Registry of Reserved TPM 2.0 Handles).
const COUNTER: u32 = 0x0180_A77E;

impl HostTpm {
    /// Seals a new random secret.
    pub fn create_master(&mut self) -> Result<MasterBlob, HostError> {
        let secret: [u8; 32] = random::bytes().map_err(HostError::Random)?;
        let secret = SensitiveData::try_from(secret.to_vec()).map_err(Step::Seal.failed())?;
        self.create_child(Step::Seal, &tpm2::sealed_template(), Some(secret))
    }

    pub fn unseal_master(&mut self, blob: &MasterBlob) -> Result<[u8; 32], HostError> {
        const STEP: Step = Step::Unseal;
        let handle = self.load_child(Step::LoadSealed, blob)?;
        let session = self.start_session(STEP, SessionType::Hmac, None)?;
        // the secret does not cross the bus in clear
        let (attributes, mask) = SessionAttributesBuilder::new().with_encrypt(true).build();
        let unsealed = self
            .context
            .tr_sess_set_attributes(session, attributes, mask)
            .and_then(|()| {
                self.context
                    .execute_with_session(Some(session), |context| context.unseal(handle.into()))
            });
        let unsealed = self.end_session(STEP, session, unsealed);
        let flushed = self.context.flush_context(handle.into());
        let secret = unsealed?;
        flushed.map_err(STEP.failed())?;
        let secret = secret.value().try_into();
        secret.map_err(|_| STEP.malformed("the secret is not 32 bytes long"))
    }

    /// Makes the counter, and counts once: before that it has no value. One that is there is of a secret that
    /// is gone, and goes.
    pub fn define_counter(&mut self, blob: &MasterBlob) -> Result<(), HostError> {
        const STEP: Step = Step::DefineCounter;
        if let Some(old) = command::nv_index(&mut self.context, COUNTER)? {
            self.context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.nv_undefine_space(Provision::Owner, old)
                })
                .map_err(STEP.failed())?;
        }
        let attributes = NvIndexAttributesBuilder::new()
            .with_nv_index_type(NvIndexType::Counter)
            .with_auth_write(true)
            .with_auth_read(true)
            .with_no_da(true)
            .build()
            .map_err(STEP.failed())?;
        let public = NvPublicBuilder::new()
            .with_nv_index(NvIndexTpmHandle::new(COUNTER).map_err(STEP.failed())?)
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(8)
            .build()
            .map_err(STEP.failed())?;
        let auth = Auth::try_from(blob.auth().as_slice()).map_err(STEP.failed())?;
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_define_space(Provision::Owner, Some(auth), public)
            })
            .map_err(STEP.failed())?;
        self.count(blob).map(drop)
    }

    /// Adds one; the new value.
    pub fn count(&mut self, blob: &MasterBlob) -> Result<u64, HostError> {
        const STEP: Step = Step::Counter;
        let counter = self.counter_handle(blob)?;
        let session = self.start_session(STEP, SessionType::Hmac, None)?;
        let counted = self.context.execute_with_session(Some(session), |context| {
            context.nv_increment(NvAuth::NvIndex(counter), counter)
        });
        self.end_session(STEP, session, counted)?;
        self.counter(blob)
    }

    pub fn counter(&mut self, blob: &MasterBlob) -> Result<u64, HostError> {
        const STEP: Step = Step::Counter;
        let counter = self.counter_handle(blob)?;
        let session = self.start_session(STEP, SessionType::Hmac, None)?;
        let read = self.context.execute_with_session(Some(session), |context| {
            context.nv_read(NvAuth::NvIndex(counter), counter, 8, 0)
        });
        let value = self.end_session(STEP, session, read)?;
        let value = value.value().try_into().map(u64::from_be_bytes);
        value.map_err(|_| STEP.malformed("it is not eight bytes long"))
    }

    fn counter_handle(&mut self, blob: &MasterBlob) -> Result<NvIndexHandle, HostError> {
        const STEP: Step = Step::Counter;
        let found = command::nv_index(&mut self.context, COUNTER)?;
        let handle = found.ok_or(HostError::NoCounter(COUNTER))?;
        let auth = Auth::try_from(blob.auth().as_slice()).map_err(STEP.failed())?;
        self.context
            .tr_set_auth(handle.into(), auth)
            .map_err(STEP.failed())?;
        Ok(handle)
    }
}
