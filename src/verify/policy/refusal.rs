//! A "no", in words: which image, why, by which policy and rule, and what to do about it.

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

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = match &self.rule {
            Some(rule) => format!("rule {rule}"),
            None => "no rule".to_owned(),
        };
        let text = format!(
            "refused: {}: {} [policy {PATH} {rule}]; {}",
            self.subject,
            self.reasons.join("; "),
            self.hint,
        );
        f.write_str(&plain_text(&text))
    }
}

impl std::error::Error for Refusal {}

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
