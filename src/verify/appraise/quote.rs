//! Checks of the two quotes (Q-…).

use super::expect::FirmwareRule;
use super::facts::{Facts, Quoted};
use super::memory::not_rolled_back;
use super::{Answer, Problem, ok, refused, unknown};
use crate::check::{Check, Subject};
use crate::tpm2::{Attest, QuoteError, Signature};

pub(super) fn answer(check: Check, subject: Subject, facts: &Facts<'_>) -> Answer {
    let (quoted, attest, signature) = match subject {
        Subject::Host => (
            &facts.host,
            &facts.evidence.host_attest,
            &facts.evidence.host_sig,
        ),
        Subject::Container => (
            &facts.container,
            &facts.evidence.container_attest,
            &facts.evidence.container_sig,
        ),
    };
    match check {
        Check::QParse => parse(quoted, attest, signature),
        Check::QAkattr => key(quoted),
        Check::QPcrdig => pcr_digest(quoted),
        _ => part(check, quoted),
    }
}

/// Public area, attestation structure and signature, each by itself.
fn parse(quoted: &Quoted, attest: &[u8], signature: &[u8]) -> Answer {
    let public = quoted.public.as_ref().err().map(ToString::to_string);
    let attest = Attest::parse(attest).err().map(|e| e.to_string());
    let signature = Signature::parse(signature).err().map(|e| e.to_string());
    super::all_of(
        [public, attest, signature].into_iter().flatten().collect(),
        "strictly parsed",
    )
}

fn key(quoted: &Quoted) -> Answer {
    match &quoted.key {
        Some(Ok(key)) => ok(format!("attributes {:#010x}", key.public().attributes())),
        Some(Err(refusal)) => refused(refusal.to_string()),
        None => unknown("the attestation key does not parse"),
    }
}

/// Magic, type, signature, qualifying data, selection: what [`crate::tpm2::verify_quote`] checks.
fn part(check: Check, quoted: &Quoted) -> Answer {
    match &quoted.quote {
        None => unknown("there is no attestation key to check the quote with"),
        Some(Ok(quote)) => ok(match check {
            Check::QSig => "ECDSA P-256 with SHA-256".to_owned(),
            Check::QSel => "SHA-256 bank, exactly the demanded PCRs".to_owned(),
            Check::QQd => "this challenge's nonce and container".to_owned(),
            _ => format!("firmware {:#x}", quote.firmware()),
        }),
        Some(Err(errors)) => match errors.iter().find(|e| e.check() == check) {
            Some(error) => refused(error.to_string()),
            None if errors.iter().any(|e| hides(e, check)) => {
                unknown("the quote cannot be read so far")
            }
            None => ok("as demanded"),
        },
    }
}

/// Whether `error` keeps `check` from being made.
fn hides(error: &QuoteError, check: Check) -> bool {
    match error {
        QuoteError::Parse(_) => true,
        QuoteError::Type { .. } => check == Check::QSel,
        _ => false,
    }
}

fn pcr_digest(quoted: &Quoted) -> Answer {
    match &quoted.pcrs {
        Some(Ok(_)) => ok("the PCR values give the signed digest"),
        Some(Err(error)) => refused(error.to_string()),
        None => unknown("there is no verified quote, or there are no values"),
    }
}

pub(super) fn host_clock(facts: &Facts<'_>) -> Answer {
    let quote = facts.host_quote()?;
    let expected = facts.record()?.host.host_reset;
    if quote.reset() != expected {
        let found = quote.reset();
        return refused(format!(
            "the host TPM was reset since: resetCount {found}, the record has {expected}"
        ));
    }
    not_rolled_back(facts, Subject::Host)?;
    safe(quote.safe(), "host")?;
    ok(format!(
        "resetCount {}, restartCount {}",
        quote.reset(),
        quote.restart()
    ))
}

pub(super) fn vtpm_clock(facts: &Facts<'_>) -> Answer {
    let (quote, claim) = (facts.vtpm_quote()?, &facts.record()?.claim);
    let (found, expected) = (
        (quote.reset(), quote.restart()),
        (claim.vtpm_reset, claim.vtpm_restart),
    );
    if found != expected {
        return refused(format!(
            "the vTPM was restarted since: resetCount and restartCount {found:?}, the record has {expected:?}"
        ));
    }
    not_rolled_back(facts, Subject::Container)?;
    safe(quote.safe(), "v")?;
    ok(format!(
        "resetCount {}, restartCount {}, safe",
        found.0, found.1
    ))
}

/// Vulnerabilities of TPMs are fixed by firmware (CVE-2017-15361, CVE-2023-1017): which version it is, the
/// quote says.
pub(super) fn firmware(facts: &Facts<'_>, subject: Subject) -> Answer {
    let (quote, accepted) = match subject {
        Subject::Host => (facts.host_quote()?, &facts.expect.firmware.host),
        Subject::Container => (facts.vtpm_quote()?, &facts.expect.firmware.vtpm),
    };
    let found = format!("{:#018x}", quote.firmware());
    match accepted {
        FirmwareRule::Any(_) => ok(format!("{found}; any is accepted")),
        FirmwareRule::OneOf(accepted) if accepted.contains(&found) => ok(found),
        FirmwareRule::OneOf(_) => refused(format!("firmware {found} is not an expected one")),
    }
}

/// A clock that may have gone back says nothing; it becomes safe again by itself.
fn safe(safe: bool, whose: &str) -> Result<(), Problem> {
    match safe {
        true => Ok(()),
        false => Err(Problem::Unknown(format!(
            "the {whose}TPM's clock is not safe yet after an unclean stop; ask again later"
        ))),
    }
}
