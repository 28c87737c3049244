//! Certificates of vTPMs' endorsement keys, by a CA whose key is in the host TPM (`vtpm.ek_certificate`).
//!
//! Made when create has its answer already; the guard does not let the container start before the
//! certificate is in its vTPM. It is no part of what is appraised: evidence names the key itself.

use super::{Bound, Core, save};
use crate::{
    guard::{self, Endorsable},
    host::service::{VTPM_CA, VTPM_CA_CERTIFICATE},
    ipc::Answer,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use std::{fs, io::ErrorKind, path::Path, sync::PoisonError};
use tpm::{
    Make,
    host::{HostTpm, VtpmCaBlob},
};
use verify::{
    binding::Claim,
    id::{RunId, UnixTime},
    tpm2::{EndorsementKey, Public},
};

/// Loads the CA's key, which `attestrun setup` has made.
pub fn load(tpm: &mut HostTpm) -> Result<()> {
    let bytes = fs::read(VTPM_CA).with_context(|| {
        format!(
            "cannot read the key {VTPM_CA} of the CA of vTPMs, which vtpm.ek_certificate needs; `attestrun \
             setup` makes it"
        )
    })?;
    load_from(tpm, &bytes)
}

fn load_from(tpm: &mut HostTpm, bytes: &[u8]) -> Result<()> {
    let blob = VtpmCaBlob::parse(bytes).with_context(|| format!("{VTPM_CA} is corrupt"))?;
    tpm.load_vtpm_ca(&blob)
        .with_context(|| format!("the host TPM does not load the key {VTPM_CA}"))
}

/// Makes the CA, once; its certificate (PEM).
pub fn enroll(tpm: &mut HostTpm) -> Result<String> {
    match fs::read(VTPM_CA) {
        Ok(bytes) => load_from(tpm, &bytes)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let blob = tpm.create_vtpm_ca()?;
            tpm.load_vtpm_ca(&blob)?;
            save(Path::new(VTPM_CA), &blob.encode())?;
        }
        Err(e) => return Err(e).with_context(|| format!("cannot read {VTPM_CA}")),
    }
    match fs::read_to_string(VTPM_CA_CERTIFICATE) {
        Ok(pem) => Ok(pem),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let pem = pem(&tpm.vtpm_ca_certificate(now())?);
            save(Path::new(VTPM_CA_CERTIFICATE), pem.as_bytes())?;
            Ok(pem)
        }
        Err(e) => Err(e).with_context(|| format!("cannot read {VTPM_CA_CERTIFICATE}")),
    }
}

impl Core {
    /// Whether `endorsable` is of the vTPM that `claim` names, and can be certified.
    pub(super) fn check_endorsable(&self, endorsable: &Endorsable, claim: &Claim) -> Result<()> {
        ensure!(
            self.endorses,
            "the host service runs with a configuration without vtpm.ek_certificate: restart it"
        );
        ensure!(
            ek_of(endorsable)?.name() == claim.vtpm_ek_name,
            "the guard wants another key certified than its vTPM's"
        );
        Ok(())
    }

    /// Gives the vTPM of a bound container its certificate, or tells its guard why there is none.
    pub fn endorse(&self, run_id: &RunId, endorsable: &Endorsable) {
        let bound = self.by_run().get(run_id).cloned();
        let Some(bound) = bound else { return };
        let made = self.certificate(&bound, endorsable);
        if let Err(error) = bound.deliver(Answer::of(made)) {
            eprintln!("attestrun host: the certificate of run {run_id}'s vTPM: {error:#}");
        }
    }

    fn certificate(&self, bound: &Bound, endorsable: &Endorsable) -> Result<String> {
        let make = Make {
            level: endorsable.level,
            revision: endorsable.revision,
            manufacturer: endorsable.manufacturer,
            firmware: endorsable.firmware,
        };
        let container = &bound.record.claim.container;
        let ek = ek_of(endorsable)?;
        let made = self.state().tpm.certify_vtpm(&ek, container, &make, now());
        Ok(BASE64.encode(made?))
    }
}

impl Bound {
    fn deliver(&self, certificate: Answer<String>) -> Result<()> {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.send(&guard::FromHost::Certificate(certificate), &[])?;
        let (answer, _): (Answer<()>, _) = guard.expect()?;
        answer.into_result()
    }
}

fn ek_of(endorsable: &Endorsable) -> Result<EndorsementKey> {
    let public = BASE64
        .decode(&endorsable.ek)
        .context("the vTPM's endorsement key is not in base64")?;
    Ok(EndorsementKey::check(&Public::parse_2b(&public)?)?)
}

fn now() -> UnixTime {
    UnixTime::from_secs(chrono::Utc::now().timestamp())
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}
