//! The two TPMs of attestrun: a container's vTPM and, with feature `host`, the machine's own.
//!
//! They are two types, not two settings: a [`vtpm::Vtpm`] is a connected socket whose other end is
//! the swtpm process that the guard started; a [`host::HostTpm`] is opened by the host service
//! alone. Neither starts a process, and neither takes a TPM's name from the environment.
//!
//! Proves: nothing. What a TPM returns is evidence; `verify` judges it.
#![forbid(unsafe_code)]

mod channel; // one command and one answer at a time
pub mod filter; // what a container may say to its vTPM
#[cfg(feature = "host")]
pub mod host; // the machine's TPM: AIK, binding PCR, quotes
mod random; // random bytes of the operating system
pub mod rc; // response codes in words
pub mod swtpm; // how swtpm must be started
pub mod vtpm; // a container's TPM over a connected socket
pub mod wire; // commands and responses as bytes

use verify::tpm2::TpmName;

/// A key that is loaded in a vTPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub handle: u32,
    /// TPMT_PUBLIC.
    pub public: Vec<u8>,
    pub name: TpmName,
}

/// What a TPM says of its make (TPM 2.0 Library Part 2, 6.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Make {
    /// Of the specification: 0, and 159 for revision 1.59.
    pub level: u32,
    pub revision: u32,
    /// The value in the TCG Vendor ID Registry.
    pub manufacturer: u32,
    pub firmware: u32,
}

/// What TPM2_Quote returns, as the TPM wrote it (TPM 2.0 Library Part 3, 18.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE over SHA-256 of `attest`.
    pub signature: Vec<u8>,
}

/// TPMS_CLOCK_INFO (Part 2, 10.11.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds that the TPM has been powered.
    pub clock_ms: u64,
    /// TPM Resets: of a machine its boots, of a vTPM its starts.
    pub reset_count: u32,
    /// TPM Restarts and Resumes since the last Reset.
    pub restart_count: u32,
    /// No value of `clock_ms` greater than this one was reported before.
    pub safe: bool,
}
