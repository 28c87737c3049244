//! The machine's TPM through tss-esapi: the host's attestation key, PCR extends and quotes.
//!
//! Trusts: the configuration for *which* TPM; the caller for being the only user of it (the host
//! service). Whether the TPM is hardware is found out here and never assumed, see [`Root`].

mod blob;
mod command;
mod device;
mod error;
mod master;
mod vtpm_ca;

pub use blob::{AikBlob, BlobError, MasterBlob, VtpmCaBlob};
pub use device::Root;
pub use error::HostError;

use crate::{Clock, Quote, random};
use sha1::{Digest as _, Sha1};
use tss_esapi::{
    Context,
    attributes::SessionAttributesBuilder,
    constants::SessionType,
    handles::{AuthHandle, KeyHandle, ObjectHandle, PcrHandle, SessionHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        resource_handles::Hierarchy,
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        AttestInfo, Auth, Data, Digest, DigestValues, EncryptedSecret, IdObject, PcrSelectionList,
        PcrSelectionListBuilder, PcrSlot, Private, Public, SensitiveData, Signature,
        SignatureScheme, SymmetricDefinition,
    },
    traits::{Marshall as _, UnMarshall as _},
};
use verify::pcr::PcrIndex;
use verify::tpm2::{self, AttestationKey, Credential, TpmName};

use blob::{KeyBlob, Role};
use command::Step;

/// Which TPM is the machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTpmConfig {
    /// `device:/dev/tpmrm0`; in tests `swtpm:host=127.0.0.1,port=2321`.
    pub tcti: String,
}

/// The machine's TPM, open.
pub struct HostTpm {
    context: Context,
    root: Root,
    /// The SHA-1 bank is extended too where the firmware keeps one.
    has_sha1: bool,
    aik: Option<LoadedAik>,
    ca: Option<vtpm_ca::Loaded>,
}

/// TCG EK Credential Profile, 2.2.1.4: the certificate of the key of template L-2.
const EK_CERTIFICATE: u32 = 0x01C0_000A;

struct LoadedAik {
    handle: KeyHandle,
    key: AttestationKey,
}

impl HostTpm {
    /// Opens the TPM and finds out what it is. A TPM without a SHA-256 bank is refused.
    pub fn open(config: &HostTpmConfig) -> Result<Self, HostError> {
        let place = device::Place::parse(&config.tcti)?;
        let mut context = place.open()?;
        if !place.has_resource_manager() {
            command::flush_leftovers(&mut context)?;
        }
        let root = device::root_of(&place, &mut context)?;
        let banks = command::pcr_banks(&mut context)?;
        if !banks.contains(&HashingAlgorithm::Sha256) {
            return Err(HostError::NoSha256Bank);
        }
        let has_sha1 = banks.contains(&HashingAlgorithm::Sha1);
        Ok(Self {
            context,
            root,
            has_sha1,
            aik: None,
            ca: None,
        })
    }

    /// Hardware, or a software root that only tests and demonstrations may use.
    pub const fn kind(&self) -> Root {
        self.root
    }

    /// Makes a new attestation key: a random child of the endorsement key, used only with its
    /// authorization value. Not a primary, which whoever may open the TPM could make again from its
    /// template without knowing any secret. The key is not loaded yet.
    pub fn create_aik(&mut self) -> Result<AikBlob, HostError> {
        let blob = self.create_child(Step::CreateAik, &tpm2::aik_template(), None)?;
        attestation_key(blob.public())?;
        Ok(blob)
    }

    fn create_child<R: Role>(
        &mut self,
        step: Step,
        template: &[u8],
        sealed: Option<SensitiveData>,
    ) -> Result<KeyBlob<R>, HostError> {
        let auth: [u8; 32] = random::bytes().map_err(HostError::Random)?;
        let secret = Auth::try_from(auth.as_slice()).map_err(step.failed())?;
        let template = public(template, step)?;
        let created = self.under_ek(step, |context, ek| {
            context.create(ek, template, Some(secret), sealed, None, None)
        })?;
        let public = created.out_public.marshall().map_err(step.failed())?;
        KeyBlob::new(public, created.out_private.value().to_vec(), auth).map_err(HostError::Blob)
    }

    /// Loads the attestation key; it stays loaded until this value is dropped.
    pub fn load_aik(&mut self, blob: &AikBlob) -> Result<(), HostError> {
        const STEP: Step = Step::LoadAik;
        let key = attestation_key(blob.public())?;
        if let Some(old) = self.aik.take() {
            self.context
                .flush_context(old.handle.into())
                .map_err(STEP.failed())?;
        }
        let handle = self.load_child(STEP, blob)?;
        self.aik = Some(LoadedAik { handle, key });
        Ok(())
    }

    fn load_child<R: Role>(
        &mut self,
        step: Step,
        blob: &KeyBlob<R>,
    ) -> Result<KeyHandle, HostError> {
        let public = public(blob.public(), step)?;
        let private = Private::try_from(blob.private()).map_err(step.failed())?;
        let auth = Auth::try_from(blob.auth().as_slice()).map_err(step.failed())?;
        let handle = self.under_ek(step, |context, ek| context.load(ek, private, public))?;
        self.context
            .tr_set_auth(handle.into(), auth)
            .map_err(step.failed())?;
        let name = self
            .context
            .tr_get_name(handle.into())
            .map_err(step.failed())?;
        if name.value() != blob.name().as_bytes() {
            return Err(HostError::OtherName);
        }
        Ok(handle)
    }

    /// TPMT_PUBLIC of the loaded attestation key.
    pub fn aik_public(&self) -> Result<&[u8], HostError> {
        self.aik().map(|aik| aik.key.public().as_bytes())
    }

    pub fn aik_name(&self) -> Result<TpmName, HostError> {
        self.aik().map(|aik| aik.key.name())
    }

    /// TPMT_PUBLIC of the endorsement key, template L-2.
    pub fn ek_public(&mut self) -> Result<Vec<u8>, HostError> {
        const STEP: Step = Step::CreateEk;
        let template = public(&tpm2::ek_template(), STEP)?;
        let ek = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
            })
            .map_err(STEP.failed())?;
        let flushed = self.context.flush_context(ek.key_handle.into());
        flushed.map_err(STEP.failed())?;
        ek.out_public.marshall().map_err(STEP.failed())
    }

    /// What the TPM keeps as the certificate of that key; `None`: nothing.
    pub fn ek_certificate(&mut self) -> Result<Option<Vec<u8>>, HostError> {
        command::nv_content(&mut self.context, EK_CERTIFICATE)
    }

    /// The secret in a credential that was made for the endorsement key and the attestation key's name
    /// (Part 3, 12.5). The TPM opens none that was made for another key.
    pub fn activate(&mut self, credential: &Credential) -> Result<Vec<u8>, HostError> {
        const STEP: Step = Step::Activate;
        let aik = self.aik()?.handle;
        let blob = IdObject::try_from(credential.blob.clone()).map_err(STEP.failed())?;
        let seed = EncryptedSecret::try_from(credential.seed.clone()).map_err(STEP.failed())?;
        let session = self.start_session(STEP, SessionType::Hmac, None)?;
        let opened = self.under_ek(STEP, |context, ek| {
            let (policy, ..) = context.sessions();
            context.execute_with_sessions((Some(session), policy, None), |context| {
                context.activate_credential(aik, ek, blob, seed)
            })
        });
        let flushed = self.flush_session(STEP, session);
        let secret = opened?;
        flushed.map(|()| secret.value().to_vec())
    }

    /// Extends the SHA-256 bank with `value` and the SHA-1 bank with SHA-1 of it.
    pub fn pcr_extend(&mut self, pcr: PcrIndex, value: [u8; 32]) -> Result<(), HostError> {
        const STEP: Step = Step::Extend;
        let mut digests = DigestValues::new();
        digests.set(HashingAlgorithm::Sha256, digest(&value)?);
        if self.has_sha1 {
            digests.set(HashingAlgorithm::Sha1, digest(&Sha1::digest(value))?);
        }
        let handle = PcrHandle::try_from(u32::from(pcr)).map_err(STEP.failed())?;
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.pcr_extend(handle, digests)
            })
            .map_err(STEP.failed())
    }

    /// The SHA-256 bank's value.
    pub fn pcr_read(&mut self, pcr: PcrIndex) -> Result<[u8; 32], HostError> {
        const STEP: Step = Step::Read;
        let wanted = selection(&[pcr], STEP)?;
        let (_, got, digests) = self
            .context
            .execute_without_session(|context| context.pcr_read(wanted.clone()))
            .map_err(STEP.failed())?;
        match digests.value() {
            [value] if got == wanted => value
                .value()
                .try_into()
                .map_err(|_| STEP.malformed("a value is not 32 bytes long")),
            _ => Err(STEP.malformed("it does not hold the one value that was asked for")),
        }
    }

    /// Signs the SHA-256 bank's `pcrs` over `qualifying_data` with the attestation key.
    pub fn quote(
        &mut self,
        qualifying_data: &[u8; 32],
        pcrs: &[PcrIndex],
    ) -> Result<Quote, HostError> {
        const STEP: Step = Step::Quote;
        if pcrs.is_empty() {
            return Err(STEP.malformed("no PCR was selected"));
        }
        let selected = selection(pcrs, STEP)?;
        let data = Data::try_from(qualifying_data.as_slice()).map_err(STEP.failed())?;
        let handle = self.aik()?.handle;
        // An HMAC session: the authorization value itself does not cross the bus.
        let session = self.start_session(STEP, SessionType::Hmac, None)?;
        let quoted = self.context.execute_with_session(Some(session), |context| {
            context.quote(handle, data, SignatureScheme::Null, selected)
        });
        self.end_session(STEP, session, quoted)
            .and_then(|(attest, signature)| {
                Ok(Quote {
                    attest: attest.marshall().map_err(STEP.failed())?,
                    signature: Signature::marshall(&signature).map_err(STEP.failed())?,
                })
            })
    }

    /// The clock, by TPM2_GetTime without a signature: its time part is in clear, and tss-esapi
    /// 7.7 has no TPM2_ReadClock.
    pub fn read_clock(&mut self) -> Result<Clock, HostError> {
        const STEP: Step = Step::Clock;
        let passwords = (
            Some(AuthSession::Password),
            Some(AuthSession::Password),
            None,
        );
        let (attest, _) = self
            .context
            .execute_with_sessions(passwords, |context| {
                let nobody = KeyHandle::from(u32::from(ObjectHandle::Null));
                context.get_time(nobody, Data::default(), SignatureScheme::Null)
            })
            .map_err(STEP.failed())?;
        match attest.attested() {
            AttestInfo::Time { info } => {
                let clock = info.time_info().clock_info();
                Ok(Clock {
                    clock_ms: clock.clock(),
                    reset_count: clock.reset_count(),
                    restart_count: clock.restart_count(),
                    safe: clock.safe(),
                })
            }
            _ => Err(STEP.malformed("it is not a time")),
        }
    }

    /// Boots of the machine, as the TPM counts them.
    pub fn reset_count(&mut self) -> Result<u32, HostError> {
        self.read_clock().map(|clock| clock.reset_count)
    }

    fn aik(&self) -> Result<&LoadedAik, HostError> {
        self.aik.as_ref().ok_or(HostError::NoAik)
    }

    /// Runs a command on the endorsement key (TCG EK Credential Profile, template L-2). Its policy
    /// is PolicySecret(endorsement): it has no userWithAuth, so a password would not do. The session
    /// is salted with the key itself and encrypts the first parameter, so that a new key's
    /// authorization value does not cross the bus in clear.
    fn under_ek<T>(
        &mut self,
        step: Step,
        command: impl FnOnce(&mut Context, KeyHandle) -> tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let template = public(&tpm2::ek_template(), Step::CreateEk)?;
        let ek = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
            })
            .map_err(Step::CreateEk.failed())?
            .key_handle;
        let result = self.with_policy(step, ek, command);
        let flushed = self
            .context
            .flush_context(ek.into())
            .map_err(Step::CreateEk.failed());
        let value = result?;
        flushed.map(|()| value)
    }

    fn with_policy<T>(
        &mut self,
        step: Step,
        ek: KeyHandle,
        command: impl FnOnce(&mut Context, KeyHandle) -> tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let session = self.start_session(step, SessionType::Policy, Some(ek))?;
        let result = self.policy_secret(session).and_then(|()| {
            self.context
                .execute_with_session(Some(session), |context| command(context, ek))
                .map_err(step.failed())
        });
        let flushed = self.flush_session(step, session);
        let value = result?;
        flushed.map(|()| value)
    }

    fn policy_secret(&mut self, session: AuthSession) -> Result<(), HostError> {
        const STEP: Step = Step::Policy;
        let policy = PolicySession::try_from(session).map_err(STEP.failed())?;
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.policy_secret(
                    policy,
                    AuthHandle::Endorsement,
                    Default::default(),
                    Default::default(),
                    Default::default(),
                    None,
                )
            })
            .map(drop)
            .map_err(STEP.failed())
    }

    fn start_session(
        &mut self,
        step: Step,
        kind: SessionType,
        salt: Option<KeyHandle>,
    ) -> Result<AuthSession, HostError> {
        let cipher = SymmetricDefinition::AES_128_CFB;
        let session = self
            .context
            .execute_without_session(|context| {
                context.start_auth_session(salt, None, None, kind, cipher, HashingAlgorithm::Sha256)
            })
            .map_err(Step::Session.failed())?
            .ok_or_else(|| step.malformed("it holds no session"))?;
        if salt.is_some() {
            let (attributes, mask) = SessionAttributesBuilder::new()
                .with_decrypt(true)
                .with_encrypt(true)
                .build();
            self.context
                .tr_sess_set_attributes(session, attributes, mask)
                .map_err(Step::Session.failed())?;
        }
        Ok(session)
    }

    fn end_session<T>(
        &mut self,
        step: Step,
        session: AuthSession,
        result: tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let flushed = self.flush_session(step, session);
        let value = result.map_err(step.failed())?;
        flushed.map(|()| value)
    }

    fn flush_session(&mut self, step: Step, session: AuthSession) -> Result<(), HostError> {
        self.context
            .flush_context(SessionHandle::from(session).into())
            .map_err(step.failed())
    }
}

impl std::fmt::Debug for HostTpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostTpm")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Only a key that is fit to attest is ever written to disk or used.
fn attestation_key(public: &[u8]) -> Result<AttestationKey, HostError> {
    let public = tpm2::Public::parse(public).map_err(HostError::KeyPublic)?;
    AttestationKey::check(&public).map_err(HostError::AikAttributes)
}

fn public(tpmt_public: &[u8], step: Step) -> Result<Public, HostError> {
    Public::unmarshall(tpmt_public).map_err(step.failed())
}

fn digest(bytes: &[u8]) -> Result<Digest, HostError> {
    Digest::try_from(bytes).map_err(Step::Extend.failed())
}

/// One bank alone, since tss-esapi 7.7 keeps banks in an unordered map.
fn selection(pcrs: &[PcrIndex], step: Step) -> Result<PcrSelectionList, HostError> {
    let slots: Result<Vec<_>, _> = pcrs
        .iter()
        .map(|pcr| PcrSlot::try_from(1u32 << u32::from(*pcr)))
        .collect();
    PcrSelectionListBuilder::new()
        .with_selection(HashingAlgorithm::Sha256, &slots.map_err(step.failed())?)
        .build()
        .map_err(step.failed())
}
