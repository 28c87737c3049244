//! A signed result for relying parties that do not appraise themselves: EAT Attestation Results as JWT
//! (draft-ietf-rats-ear-04; JWS with ES256, RFC 7515 and RFC 7518, section 3.4). The trustworthiness
//! vector is AR4SI's (draft-ietf-rats-ar4si).
//!
//! It says what this challenger found, once, at one time: `exp` is when its evidence would be too old
//! for the challenger himself.

use crate::{challenger::Asked, key::SigningKey};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use verify::{
    appraise::Appraisal,
    check::{Check, Finding, Outcome, Subject},
};

const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";
/// AR4SI's anchors of its four tiers; higher is worse, but for 0, which says nothing.
const NONE: i64 = 0;
const AFFIRMING: i64 = 2;
const WARNING: i64 = 32;
const CONTRAINDICATED: i64 = 96;

/// The token. `nonce`: the relying party's, or the challenge's own if there is none.
pub fn token(
    appraisal: &Appraisal,
    asked: &Asked,
    nonce: &str,
    max_age_secs: u64,
    key: &SigningKey,
) -> anyhow::Result<String> {
    let submods: Map<String, Value> = Subject::ALL
        .iter()
        .map(|subject| (subject.name().to_owned(), submod(appraisal, *subject)))
        .collect();
    let claims = json!({
        "eat_profile": PROFILE,
        "iat": asked.at.secs(),
        "exp": asked.at.secs().saturating_add_unsigned(max_age_secs),
        "eat_nonce": nonce,
        "ear_verifier_id": {
            "developer": "https://github.com/attestrun/attestrun",
            "build": concat!("attestctl ", env!("CARGO_PKG_VERSION")),
        },
        "submods": submods,
    });
    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": key.fingerprint()?.to_string() });
    let part = |value: &Value| BASE64URL.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = fixed(&key.sign(signed.as_bytes())?).context("signing the result")?;
    Ok(format!("{signed}.{}", BASE64URL.encode(signature)))
}

/// What is said of host or container: the vector, its worst tier, and names that people look for.
fn submod(appraisal: &Appraisal, subject: Subject) -> Value {
    let findings = || appraisal.findings.iter().filter(|f| f.subject == subject);
    let mut vector: BTreeMap<&str, i64> = BTreeMap::new();
    for finding in findings() {
        let value = value(&finding.outcome);
        let claim = vector.entry(claim(finding.check)).or_insert(value);
        *claim = worse(*claim, value);
    }
    let worst = vector.values().copied().reduce(worse).unwrap_or(NONE);
    let named = |is: fn(&Outcome) -> bool| -> Vec<&str> {
        let those = findings().filter(|f: &&Finding| is(&f.outcome));
        those.map(|f| f.check.name()).collect()
    };
    let mut submod = json!({
        "ear_status": tier(worst),
        "ear_trustworthiness_vector": vector,
        "attestrun_refused": named(|o| matches!(o, Outcome::Refused { .. })),
        "attestrun_unknown": named(|o| matches!(o, Outcome::Unknown { .. })),
        "attestrun_waived": named(|o| matches!(o, Outcome::Waived { .. })),
    });
    let (host, container) = (&appraisal.host, &appraisal.container);
    match subject {
        Subject::Host => {
            submod["attestrun_host"] = json!(host.name);
            submod["attestrun_root"] = json!(host.root);
        }
        Subject::Container => {
            submod["attestrun_container"] = json!(container.id);
            submod["attestrun_record"] = json!(container.record);
            submod["attestrun_image"] = json!(container.image);
            submod["attestrun_list"] = json!(container.list);
            submod["ear_appraisal_policy_ids"] = json!(container.policy.iter().collect::<Vec<_>>());
        }
    }
    submod
}

/// The claim of AR4SI's vector that a check is about.
fn claim(check: Check) -> &'static str {
    match check {
        Check::HRoot | Check::QFw => "hardware",
        Check::PRootfs | Check::PMounts | Check::CMount => "file-system",
        _ => match check.name().split_once('-') {
            Some(("C", _)) | Some(("T", "TIER")) => "configuration",
            Some(("P", "MODE" | "POLICY" | "ORIGIN")) => "configuration",
            Some(("P" | "L", _)) => "executables",
            _ => "instance-identity",
        },
    }
}

fn value(outcome: &Outcome) -> i64 {
    match outcome {
        Outcome::Ok => AFFIRMING,
        Outcome::Waived { .. } => WARNING,
        Outcome::Unknown { .. } => NONE,
        Outcome::Refused { .. } => CONTRAINDICATED,
    }
}

/// Nothing known is worse than a warning, and better than something wrong.
fn worse(a: i64, b: i64) -> i64 {
    let rank = |value: i64| match value {
        AFFIRMING => 0,
        WARNING => 1,
        NONE => 2,
        _ => 3,
    };
    match rank(a) >= rank(b) {
        true => a,
        false => b,
    }
}

fn tier(value: i64) -> &'static str {
    match value {
        AFFIRMING => "affirming",
        WARNING => "warning",
        NONE => "none",
        _ => "contraindicated",
    }
}

/// An ECDSA signature's two numbers, 32 bytes each, from their DER form (RFC 3279, section 2.2.3).
fn fixed(der: &[u8]) -> Option<[u8; 64]> {
    let mut fixed = [0; 64];
    let body = match der {
        [0x30, length, body @ ..] if usize::from(*length) == body.len() => body,
        _ => return None,
    };
    let (r, rest) = integer(body)?;
    let (s, []) = integer(rest)? else {
        return None;
    };
    for (number, half) in [r, s].into_iter().zip(fixed.chunks_exact_mut(32)) {
        let start = half.len().checked_sub(number.len())?;
        half.get_mut(start..)?.copy_from_slice(number);
    }
    Some(fixed)
}

/// An unsigned INTEGER without its leading zero, and what follows it.
fn integer(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x02, length, rest @ ..] = der else {
        return None;
    };
    let (number, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((number.strip_prefix(&[0]).unwrap_or(number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_have_two_halves_of_32_bytes() {
        let r = [&[0x02, 33, 0][..], &[0x80; 32]].concat();
        let s = [&[0x02, 2][..], &[1, 2]].concat();
        let der = [
            &[0x30, u8::try_from(r.len() + s.len()).unwrap()][..],
            &r,
            &s,
        ]
        .concat();
        let fixed = fixed(&der).unwrap();
        assert_eq!(fixed[..32], [0x80; 32]);
        assert_eq!((&fixed[32..62], &fixed[62..]), (&[0; 30][..], &[1, 2][..]));
        for bad in [
            &der[..der.len() - 1],
            &[&der[..], &[0]].concat(),
            &[],
            &[0x30, 0],
        ] {
            assert_eq!(super::fixed(bad), None, "{bad:02x?}");
        }
    }

    #[test]
    fn the_worst_outcome_decides() {
        assert_eq!(
            [AFFIRMING, WARNING].into_iter().reduce(worse),
            Some(WARNING)
        );
        assert_eq!([NONE, WARNING].into_iter().reduce(worse), Some(NONE));
        let all = [AFFIRMING, CONTRAINDICATED, NONE, WARNING];
        assert_eq!(
            all.into_iter().reduce(worse).map(tier),
            Some("contraindicated")
        );
        for check in Check::ALL {
            let vector = [
                "hardware",
                "file-system",
                "configuration",
                "executables",
                "instance-identity",
            ];
            assert!(vector.contains(&claim(*check)), "{check}");
        }
    }
}
