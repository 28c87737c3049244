//! No admission, in words: which image, why, by which policy and rule, and what to do about it. Either
//! the policy says no, or what it asks about could not be found out.

use super::PATH;
use std::fmt;

/// Why a container was not admitted. All reasons that could be found out, not only the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was to run: the image by name and digest, or the directory.
    pub subject: String,
    /// The policy's entry that was applied; none when none fits.
    pub rule: Option<Box<str>>,
    pub reasons: Vec<String>,
    /// What to do about it.
    pub hint: String,
}

/// Why it could not be decided whether a container is admitted: a key, certificate, root or revocation
/// list that the policy names is missing, unreadable or no such thing. Never a "no" that mode `audit`
/// could let pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecided(Refusal);

/// Why there is no admission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Undecided(#[from] Undecided),
}

impl Undecided {
    /// `why` has the reasons that are failures, and no other.
    pub(super) fn of(why: Refusal) -> Self {
        Self(why)
    }
}

impl Refusal {
    /// After these words, everything on one line.
    fn told(&self, begin: &str) -> String {
        let rule = match &self.rule {
            Some(rule) => format!("rule {rule}"),
            None => "no rule".to_owned(),
        };
        plain_text(&format!(
            "{begin} {}: {} [policy {PATH} {rule}]; {}",
            self.subject,
            self.reasons.join("; "),
            self.hint,
        ))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told("refused:"))
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.told("cannot decide about"))
    }
}

impl std::error::Error for Undecided {}

/// Phrases in a runtime's message that engines answer with exit status 126 or 127 (docker
/// `daemon/start.go`, podman `define.ExitCode`): the container would be said to lack its program.
const PHRASES: [&str; 4] = [
    "no such file",
    "permission denied",
    "operation not permitted",
    "executable file not found",
];

/// One line of text that engines do not take for something else. Parts of it (names of images and
/// files) were chosen by others.
pub fn plain_text(text: &str) -> String {
    let mut plain: String = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    for phrase in PHRASES {
        // Lower case for ASCII keeps all byte positions.
        while let Some(at) = plain.to_ascii_lowercase().find(phrase) {
            let end = at + phrase.len();
            let found = plain.get(at..end).unwrap_or(phrase).replace(' ', "-");
            plain.replace_range(at..end, &found);
        }
    }
    plain
}
