//! `attestrun doctor`: is this host ready to attest, and what is to be done where it is not. It looks
//! only: nothing is changed, and no TPM is opened.

mod host;
mod programs;
mod tiers;

use crate::{config::Config, verbs};
use serde::Serialize;
use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

/// Every check, in the order in which it is told. A new one is a function of [`Examined`] and a line here.
const CHECKS: &[fn(&Examined) -> Vec<Finding>] = &[
    host::configuration,
    host::policy,
    host::attestation_key,
    host::vtpm_ca,
    host::serials,
    host::tpm_devices,
    host::sha256,
    tiers::tier,
    programs::programs,
];

/// What several checks look at, read once.
pub struct Examined {
    /// Or why it cannot be read, for people.
    pub config: Result<Config, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// Something is wrong.
    Refused,
    /// It could not be found out.
    Unknown,
}

/// What one check says about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name: stable, for programs.
    check: &'static str,
    outcome: Outcome,
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }
    pub fn refused(
        check: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Refused,
            remedy: Some(remedy.into()),
            ..Self::ok(check, detail)
        }
    }
    pub fn unknown(
        check: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Unknown,
            remedy: Some(remedy.into()),
            ..Self::ok(check, detail)
        }
    }
}

/// The findings and what they come to.
#[derive(Debug, Serialize)]
struct Diagnosis {
    outcome: Outcome,
    findings: Vec<Finding>,
}

impl Diagnosis {
    /// What is wrong outweighs what is not known.
    fn of(findings: Vec<Finding>) -> Self {
        let any = |outcome| findings.iter().any(|finding| finding.outcome == outcome);
        let outcome = match () {
            () if any(Outcome::Refused) => Outcome::Refused,
            () if any(Outcome::Unknown) => Outcome::Unknown,
            () => Outcome::Ok,
        };
        Self { outcome, findings }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let word = word(finding.outcome);
            text += &format!("{word:<8} {:<14} {}\n", finding.check, finding.detail);
            if let Some(remedy) = &finding.remedy {
                text += &format!("{:>23} -> {remedy}\n", "");
            }
        }
        text + match self.outcome {
            Outcome::Ok => "This host is ready to attest.\n",
            Outcome::Refused => "This host is not ready to attest.\n",
            Outcome::Unknown => "Nothing is wrong, but not everything is known.\n",
        }
    }

    /// As attestctl's: 0 all is well, 1 something is wrong, 2 something could not be found out.
    fn code(&self) -> u8 {
        match self.outcome {
            Outcome::Ok => 0,
            Outcome::Refused => 1,
            Outcome::Unknown => 2,
        }
    }
}

const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Refused => "refused",
        Outcome::Unknown => "unknown",
    }
}

/// `words` follow the verb.
pub fn main(words: &[OsString]) -> ExitCode {
    let json = match words {
        [] => false,
        [word] if word == "--json" => true,
        _ => {
            eprintln!("attestrun doctor [--json]: says what this host lacks to attest");
            return ExitCode::from(64);
        }
    };
    if let Err(error) = verbs::seal_off() {
        eprintln!("attestrun doctor: {error:#}");
        return ExitCode::from(2);
    }
    let diagnosis = Diagnosis::of(findings());
    let text = match json {
        true => format!("{:#}\n", serde_json::json!(diagnosis)),
        false => diagnosis.text(),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(diagnosis.code()),
        Err(error) => {
            eprintln!("attestrun doctor: cannot write to standard output: {error}");
            ExitCode::from(2)
        }
    }
}

fn findings() -> Vec<Finding> {
    let examined = Examined {
        config: Config::load().map_err(|error| format!("{error:#}")),
    };
    CHECKS.iter().flat_map(|check| check(&examined)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_outweighs_what_is_not_known() {
        let (ok, no) = (
            Finding::ok("a", "good"),
            Finding::refused("b", "bad", "mend it"),
        );
        let unknown = Finding::unknown("c", "dark", "look");
        let code = |findings: &[&Finding]| {
            Diagnosis::of(findings.iter().copied().cloned().collect()).code()
        };
        assert_eq!(code(&[&ok]), 0);
        assert_eq!(code(&[&ok, &unknown]), 2);
        assert_eq!(code(&[&unknown, &no, &ok]), 1);
        let text = Diagnosis::of(vec![ok, no]).text();
        assert!(
            text.contains("refused  b              bad\n") && text.contains("-> mend it"),
            "{text}"
        );
    }
}
