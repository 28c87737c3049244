//! The parameters of those few commands whose parameters matter.
//!
//! A session may encrypt the first parameter, if it is a TPM2B; its size stays in clear (Part 1, 21). What
//! is looked at here is never a first TPM2B.

use super::{NV, Own, PERSISTENT, Refusal, Then, is_session, is_transient, table::Check};
use crate::wire::{CAP_HANDLES, RH_ENDORSEMENT, Reader};
use verify::tpm2::{alg, ek_template};

/// An RSA key of this size takes up to 0.7 s to make, a longer one many seconds.
const MAX_RSA_BITS: u16 = 2048;
const ALG_RSA: u16 = 0x01;
/// RSAES: the one scheme of an RSA key that names no hash.
const ALG_RSAES: u16 = 0x15;

/// Decides, and says how the command is carried out.
pub fn check(
    check: Check,
    handles: &[u32],
    with_sessions: bool,
    reader: &mut Reader<'_>,
    own: &Own,
) -> Result<Then, Refusal> {
    match check {
        Check::Public | Check::Primary => {
            reader.sized()?; // inSensitive
            let public = reader.sized()?;
            if check == Check::Primary && handles.first() == Some(&RH_ENDORSEMENT) {
                // any other template may be the guard's attestation key's
                return match public == ek_template() {
                    true => Ok(Then::Forward),
                    false => Err(Refusal::HIERARCHY),
                };
            }
            quickly_made(public)
        }
        Check::Persist => match PERSISTENT.contains(&reader.u32()?) {
            true => Ok(Then::Forward),
            false => Err(Refusal::HANDLE),
        },
        Check::DefineNv => {
            reader.sized()?; // auth
            let mut public = Reader::new(reader.sized()?);
            match NV.contains(&public.u32()?) {
                true => Ok(Then::Forward),
                false => Err(Refusal::NV_RANGE),
            }
        }
        Check::Flush => {
            let handle = reader.u32()?;
            let owned = own.objects.contains(&handle)
                || own.sessions.contains(&handle)
                || own.saved.contains(&handle);
            match (with_sessions, owned) {
                (true, _) => Err(Refusal::AUTH_CONTEXT),
                (_, true) => Ok(Then::Flush(handle)),
                (_, false) => Err(Refusal::HANDLE),
            }
        }
        Check::Capability => {
            let (capability, from, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
            match capability == CAP_HANDLES && (is_transient(from) || is_session(from)) {
                false => Ok(Then::Forward),
                // the answer is not the TPM's, so no session of the TPM's can vouch for it
                true if with_sessions => Err(Refusal::AUTH_CONTEXT),
                true => Ok(Then::List { from, count }),
            }
        }
    }
}

/// A TPMT_PUBLIC (Part 2, 12.2.4) that is no long RSA key.
fn quickly_made(public: &[u8]) -> Result<Then, Refusal> {
    let mut reader = Reader::new(public);
    if reader.u16()? != ALG_RSA {
        return Ok(Then::Forward);
    }
    reader.u16()?; // nameAlg
    reader.u32()?; // attributes
    reader.sized()?; // authPolicy
    if reader.u16()? != alg::NULL {
        reader.u32()?; // symmetric: bits and mode
    }
    if ![alg::NULL, ALG_RSAES].contains(&reader.u16()?) {
        reader.u16()?; // the scheme's hash
    }
    match reader.u16()? > MAX_RSA_BITS {
        true => Err(Refusal::KEY_SIZE),
        false => Ok(Then::Forward),
    }
}
