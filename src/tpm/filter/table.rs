//! Every command of a TPM 2.0 and what becomes of it when a container sends it (command codes: TPM 2.0
//! Library Part 2, 6.5.2; handles: Part 3). What has no row is denied.
//!
//! Denied is what changes the vTPM as a whole (hierarchies, banks, lockout, clock, firmware), what
//! resets a PCR, what lets one container's key speak for the guard's, and TPM2_Rewrap: it takes a secret that
//! was sealed below the endorsement key out of its wrapper without asking for the secret's own policy.

use Check::{Capability, DefineNv, Flush, Persist, Primary, Public};
use Returns::{ASession, AnObject, AnyContext, Nothing};
use Rule::{Allow, Deny, With};
use Slot::{
    Entity, Key, Nv, NvAuth, NvRead, NvReadAuth, Owner, Parent, Pcr, PrimaryOf, Privacy, Saved,
    Session,
};

/// One command.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    pub code: u32,
    pub name: &'static str,
    pub rule: Rule,
    /// What may stand in its handle area; of a denied command none is looked at.
    pub slots: &'static [Slot],
    pub returns: Returns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Allow,
    Deny,
    /// Allowed if its parameters are such.
    With(Check),
}

/// What is looked at in the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The public area asks for no key that takes seconds to make.
    Public,
    /// The same, and in the endorsement hierarchy for the endorsement key alone.
    Primary,
    /// The persistent handle is in the workload's range.
    Persist,
    /// The index is in the workload's range.
    DefineNv,
    /// The handle to flush, a parameter, is the client's own.
    Flush,
    /// Transient objects and sessions are told from the client's own.
    Capability,
}

/// What may stand at one place of the handle area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// A transient object of the client's own, a persistent one, or none (TPM_RH_NULL).
    Key,
    /// The same, or the owner hierarchy.
    Parent,
    /// A hierarchy for primary keys: owner, none, endorsement.
    PrimaryOf,
    /// The endorsement hierarchy.
    Privacy,
    Owner,
    /// Whatever has an authorization value and is the workload's.
    Entity,
    /// An index in the workload's range.
    Nv,
    /// The same, or the endorsement certificate's.
    NvRead,
    /// What authorizes the use of an index: itself or the owner.
    NvAuth,
    NvReadAuth,
    /// A session of the client's own.
    Session,
    /// A PCR of the workload's, or none.
    Pcr,
    /// A transient object or a session of the client's own.
    Saved,
}

/// Which handle a successful response begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returns {
    Nothing,
    AnObject,
    ASession,
    AnyContext,
}

pub const EVICT_CONTROL: u32 = 0x120;
pub const SEQUENCE_COMPLETE: u32 = 0x13E;
pub const SEQUENCE_UPDATE: u32 = 0x15C;
pub const CONTEXT_LOAD: u32 = 0x161;
pub const CONTEXT_SAVE: u32 = 0x162;
pub const FLUSH_CONTEXT: u32 = 0x165;
pub const EVENT_SEQUENCE_COMPLETE: u32 = 0x185;

const fn row(code: u32, name: &'static str, rule: Rule, slots: &'static [Slot]) -> Row {
    Row {
        code,
        name,
        rule,
        slots,
        returns: Nothing,
    }
}

const fn giving(row: Row, returns: Returns) -> Row {
    Row { returns, ..row }
}

/// The row of a command; `None`: there is no such command.
pub fn row_of(code: u32) -> Option<&'static Row> {
    let at = TABLE.binary_search_by_key(&code, |row| row.code).ok()?;
    TABLE.get(at)
}

/// Ascending.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    row(0x11F, "NV_UndefineSpaceSpecial", Deny, &[]),
    row(EVICT_CONTROL, "EvictControl", With(Persist), &[Owner, Key]),
    row(0x121, "HierarchyControl", Deny, &[]),
    row(0x122, "NV_UndefineSpace", Allow, &[Owner, Nv]),
    row(0x124, "ChangeEPS", Deny, &[]),
    row(0x125, "ChangePPS", Deny, &[]),
    row(0x126, "Clear", Deny, &[]),
    row(0x127, "ClearControl", Deny, &[]),
    row(0x128, "ClockSet", Deny, &[]),
    row(0x129, "HierarchyChangeAuth", Deny, &[]),
    row(0x12A, "NV_DefineSpace", With(DefineNv), &[Owner]),
    row(0x12B, "PCR_Allocate", Deny, &[]),
    row(0x12C, "PCR_SetAuthPolicy", Deny, &[]),
    row(0x12D, "PP_Commands", Deny, &[]),
    row(0x12E, "SetPrimaryPolicy", Deny, &[]),
    row(0x12F, "FieldUpgradeStart", Deny, &[]),
    row(0x130, "ClockRateAdjust", Deny, &[]),
    giving(row(0x131, "CreatePrimary", With(Primary), &[PrimaryOf]), AnObject),
    row(0x132, "NV_GlobalWriteLock", Deny, &[]),
    row(0x133, "GetCommandAuditDigest", Deny, &[]),
    row(0x134, "NV_Increment", Allow, &[NvAuth, Nv]),
    row(0x135, "NV_SetBits", Allow, &[NvAuth, Nv]),
    row(0x136, "NV_Extend", Allow, &[NvAuth, Nv]),
    row(0x137, "NV_Write", Allow, &[NvAuth, Nv]),
    row(0x138, "NV_WriteLock", Allow, &[NvAuth, Nv]),
    row(0x139, "DictionaryAttackLockReset", Deny, &[]),
    row(0x13A, "DictionaryAttackParameters", Deny, &[]),
    row(0x13B, "NV_ChangeAuth", Allow, &[Nv]),
    row(0x13C, "PCR_Event", Allow, &[Pcr]),
    row(0x13D, "PCR_Reset", Deny, &[]),
    row(SEQUENCE_COMPLETE, "SequenceComplete", Allow, &[Key]),
    row(0x13F, "SetAlgorithmSet", Deny, &[]),
    row(0x140, "SetCommandCodeAuditStatus", Deny, &[]),
    row(0x141, "FieldUpgradeData", Deny, &[]),
    row(0x142, "IncrementalSelfTest", Deny, &[]),
    row(0x143, "SelfTest", Deny, &[]),
    row(0x144, "Startup", Deny, &[]),
    row(0x145, "Shutdown", Deny, &[]),
    row(0x146, "StirRandom", Allow, &[]),
    row(0x147, "ActivateCredential", Allow, &[Key, Key]),
    row(0x148, "Certify", Allow, &[Key, Key]),
    row(0x149, "PolicyNV", Allow, &[NvReadAuth, NvRead, Session]),
    row(0x14A, "CertifyCreation", Allow, &[Key, Key]),
    row(0x14B, "Duplicate", Allow, &[Key, Key]),
    row(0x14C, "GetTime", Allow, &[Privacy, Key]),
    row(0x14D, "GetSessionAuditDigest", Deny, &[]),
    row(0x14E, "NV_Read", Allow, &[NvReadAuth, NvRead]),
    row(0x14F, "NV_ReadLock", Allow, &[NvAuth, Nv]),
    row(0x150, "ObjectChangeAuth", Allow, &[Key, Key]),
    row(0x151, "PolicySecret", Allow, &[Entity, Session]),
    row(0x152, "Rewrap", Deny, &[]),
    row(0x153, "Create", With(Public), &[Key]),
    row(0x154, "ECDH_ZGen", Allow, &[Key]),
    row(0x155, "HMAC", Allow, &[Key]),
    row(0x156, "Import", Allow, &[Key]),
    giving(row(0x157, "Load", Allow, &[Key]), AnObject),
    row(0x158, "Quote", Allow, &[Key]),
    row(0x159, "RSA_Decrypt", Allow, &[Key]),
    giving(row(0x15B, "HMAC_Start", Allow, &[Key]), AnObject),
    row(SEQUENCE_UPDATE, "SequenceUpdate", Allow, &[Key]),
    row(0x15D, "Sign", Allow, &[Key]),
    row(0x15E, "Unseal", Allow, &[Key]),
    row(0x160, "PolicySigned", Allow, &[Key, Session]),
    giving(row(CONTEXT_LOAD, "ContextLoad", Allow, &[]), AnyContext),
    row(CONTEXT_SAVE, "ContextSave", Allow, &[Saved]),
    row(0x163, "ECDH_KeyGen", Allow, &[Key]),
    row(0x164, "EncryptDecrypt", Allow, &[Key]),
    row(FLUSH_CONTEXT, "FlushContext", With(Flush), &[]),
    giving(row(0x167, "LoadExternal", Allow, &[]), AnObject),
    row(0x168, "MakeCredential", Allow, &[Key]),
    row(0x169, "NV_ReadPublic", Allow, &[NvRead]),
    row(0x16A, "PolicyAuthorize", Allow, &[Session]),
    row(0x16B, "PolicyAuthValue", Allow, &[Session]),
    row(0x16C, "PolicyCommandCode", Allow, &[Session]),
    row(0x16D, "PolicyCounterTimer", Allow, &[Session]),
    row(0x16E, "PolicyCpHash", Allow, &[Session]),
    row(0x16F, "PolicyLocality", Allow, &[Session]),
    row(0x170, "PolicyNameHash", Allow, &[Session]),
    row(0x171, "PolicyOR", Allow, &[Session]),
    row(0x172, "PolicyTicket", Allow, &[Session]),
    row(0x173, "ReadPublic", Allow, &[Key]),
    row(0x174, "RSA_Encrypt", Allow, &[Key]),
    giving(row(0x176, "StartAuthSession", Allow, &[Key, Entity]), ASession),
    row(0x177, "VerifySignature", Allow, &[Key]),
    row(0x178, "ECC_Parameters", Allow, &[]),
    row(0x179, "FirmwareRead", Deny, &[]),
    row(0x17A, "GetCapability", With(Capability), &[]),
    row(0x17B, "GetRandom", Allow, &[]),
    row(0x17C, "GetTestResult", Allow, &[]),
    row(0x17D, "Hash", Allow, &[]),
    row(0x17E, "PCR_Read", Allow, &[]),
    row(0x17F, "PolicyPCR", Allow, &[Session]),
    row(0x180, "PolicyRestart", Allow, &[Session]),
    row(0x181, "ReadClock", Allow, &[]),
    row(0x182, "PCR_Extend", Allow, &[Pcr]),
    row(0x183, "PCR_SetAuthValue", Deny, &[]),
    row(0x184, "NV_Certify", Allow, &[Key, NvReadAuth, NvRead]),
    row(EVENT_SEQUENCE_COMPLETE, "EventSequenceComplete", Allow, &[Pcr, Key]),
    giving(row(0x186, "HashSequenceStart", Allow, &[]), AnObject),
    row(0x187, "PolicyPhysicalPresence", Allow, &[Session]),
    row(0x188, "PolicyDuplicationSelect", Allow, &[Session]),
    row(0x189, "PolicyGetDigest", Allow, &[Session]),
    row(0x18A, "TestParms", Allow, &[]),
    row(0x18B, "Commit", Allow, &[Key]),
    row(0x18C, "PolicyPassword", Allow, &[Session]),
    row(0x18D, "ZGen_2Phase", Allow, &[Key]),
    row(0x18E, "EC_Ephemeral", Allow, &[]),
    row(0x18F, "PolicyNvWritten", Allow, &[Session]),
    row(0x190, "PolicyTemplate", Allow, &[Session]),
    giving(row(0x191, "CreateLoaded", With(Public), &[Parent]), AnObject),
    row(0x192, "PolicyAuthorizeNV", Allow, &[NvReadAuth, NvRead, Session]),
    row(0x193, "EncryptDecrypt2", Allow, &[Key]),
    row(0x194, "AC_GetCapability", Deny, &[]),
    row(0x195, "AC_Send", Deny, &[]),
    row(0x196, "Policy_AC_SendSelect", Deny, &[]),
    row(0x197, "CertifyX509", Allow, &[Key, Key]),
    row(0x198, "ACT_SetTimeout", Deny, &[]),
    row(0x199, "ECC_Encrypt", Allow, &[Key]),
    row(0x19A, "ECC_Decrypt", Allow, &[Key]),
    row(0x19B, "PolicyCapability", Deny, &[]),
    row(0x19C, "PolicyParameters", Allow, &[Session]),
    row(0x19D, "NV_DefineSpace2", Deny, &[]),
    row(0x19E, "NV_ReadPublic2", Deny, &[]),
    row(0x19F, "SetCapability", Deny, &[]),
    row(0x1A0, "ReadOnlyControl", Deny, &[]),
    row(0x1A1, "PolicyTransportSPDM", Deny, &[]),
    row(0x2000_0000, "Vendor_TCG_Test", Deny, &[]),
];
