//! The pure part of attestrun: formats, verification, policy decision and appraisal.
//!
//! Bytes in, witnesses or refusals out. No I/O, no clock, no randomness, no environment: time,
//! nonces and trust anchors are parameters, so that the runtime, the challenger and the tests run
//! the same code. A successful check returns a value with a private field; the next step owns it.
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod appraise; // evidence + expectations -> every check by name, and the verdict
pub mod batch; // one host quote for many challenges
pub mod binding; // the record that ties container, image, list, vTPM and host boot together; its log
pub mod canon; // RFC 8785 canonical JSON
pub mod check; // outcomes of a check and the list of check names
pub mod cms; // CMS detached signatures and certificate chains of users
pub mod digest; // one type per thing that is hashed
pub mod event; // what each PCR's events say (golden contract)
pub mod evidence; // the CMW collection that answers a challenge
pub mod growing; // the digest of what only grows
pub mod hostlist; // host list and host policy: the programs of a class of hosts
pub mod id; // container id, run id, nonce, time
pub mod image; // OCI manifest, index, config: parsed from bytes whose digest is known
pub mod imalog; // IMA binary runtime list: encode, parse, replay
pub mod pcr; // PCR map and the extend operation
pub mod policy; // who may run what: the decision
pub mod profile; // launch profile: the summary of config.json that is judged
pub mod qualify; // qualifying data of quotes
pub mod release; // secrets for one container in one state
pub mod rootfs; // rootfs manifest (mtree), layers and their merging
pub mod siglist; // signature list: in-toto statement of the programs that may run
pub mod signature; // image signatures and attestations: cosign, Sigstore bundles
pub mod tpm2; // TPMT_PUBLIC, TPMS_ATTEST, TPMT_SIGNATURE, quote verification
pub mod wire; // messages between attestrun's processes

#[cfg(test)]
mod golden; // bytes of the contract that must never change
#[cfg(test)]
mod testkit; // keys and certificates that tests make
