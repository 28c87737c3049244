//! Who may have made a keyless signature: the names in its certificate.

use regex::{Regex, RegexBuilder};
use sigstore_verify::SubjectAltName;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("it is empty: no certificate has such a name")]
    Empty,
    #[error("not a regular expression: {0}")]
    NotARegexp(String),
}

/// A certificate's subject and the provider that vouched for it, both of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub issuer: Pattern,
    pub subject: Subject,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Email(Pattern),
    Uri(Pattern),
    /// Whichever of the two the certificate has.
    Any(Pattern),
}

/// A text, or a regular expression for the whole of it.
#[derive(Clone)]
pub struct Pattern(Kind);

#[derive(Clone)]
enum Kind {
    Exact(String),
    Regexp { text: String, whole: Regex },
}

impl Pattern {
    pub fn exact(text: &str) -> Result<Self, PatternError> {
        match text {
            "" => Err(PatternError::Empty),
            text => Ok(Self(Kind::Exact(text.to_owned()))),
        }
    }
    /// Unlike cosign's, it must match from the first character to the last: what merely contains
    /// `https://github.com/acme/` may belong to anybody.
    pub fn regexp(text: &str) -> Result<Self, PatternError> {
        let compile = |text: &str| {
            RegexBuilder::new(text)
                .size_limit(1 << 20)
                .build()
                .map_err(|e| PatternError::NotARegexp(e.to_string()))
        };
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        // Alone first: `a)|(b` is none, but would be between the brackets below.
        compile(text)?;
        Ok(Self(Kind::Regexp {
            text: text.to_owned(),
            whole: compile(&format!(r"\A(?:{text})\z"))?,
        }))
    }
    fn fits(&self, text: &str) -> bool {
        match &self.0 {
            Kind::Exact(wanted) => wanted == text,
            Kind::Regexp { whole, .. } => whole.is_match(text),
        }
    }
    fn key(&self) -> (bool, &str) {
        match &self.0 {
            Kind::Exact(text) => (false, text),
            Kind::Regexp { text, .. } => (true, text),
        }
    }
}

impl Identity {
    pub(super) fn fits(&self, issuer: &str, subject: &SubjectAltName) -> bool {
        let subject = match (&self.subject, subject) {
            (Subject::Email(pattern), SubjectAltName::Email(text)) => pattern.fits(text),
            (Subject::Uri(pattern), SubjectAltName::Uri(text)) => pattern.fits(text),
            (Subject::Any(pattern), text) => pattern.fits(text.as_str()),
            _ => false,
        };
        subject && self.issuer.fits(issuer)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Exact(text) => f.write_str(text),
            Kind::Regexp { text, .. } => write!(f, "/{text}/"),
        }
    }
}
