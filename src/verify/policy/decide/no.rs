//! A reason against, and what to do about it.

use super::Material;
use std::fmt::Display;
use std::path::Path;

/// So many of the failed candidates are told; the rest is counted.
const MAX_TOLD: usize = 4;

/// One reason, and what to do about it.
pub(super) struct No {
    why: Why,
    pub reason: String,
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The policy says no.
    Refused,
    /// What the policy asks about could not be found out.
    Failed,
}

impl No {
    pub fn is_failure(&self) -> bool {
        self.why == Why::Failed
    }
}

/// What to do, each remedy once.
pub(super) fn hints(against: &[No]) -> Vec<String> {
    let mut hints: Vec<String> = Vec::new();
    for no in against {
        if !hints.contains(&no.hint) {
            hints.push(no.hint.clone());
        }
    }
    hints
}

pub(super) fn no(reason: impl Into<String>, hint: impl Into<String>) -> No {
    No {
        why: Why::Refused,
        reason: reason.into(),
        hint: hint.into(),
    }
}

fn failed(reason: String, hint: String) -> No {
    No {
        why: Why::Failed,
        reason,
        hint,
    }
}

/// A trust file's content; without it nothing can be found out.
pub(super) fn trusted<'m>(
    material: &'m Material<'_>,
    what: &str,
    path: &Path,
) -> Result<&'m [u8], No> {
    let file = path.display();
    material.trust.get(path).map_err(|why| {
        failed(
            format!("cannot read the {what} {file}: {why}"),
            format!("put the {what} in place at {file}"),
        )
    })
}

pub(super) fn corrupt(what: &str, path: &Path, why: &dyn Display) -> No {
    let file = path.display();
    failed(
        format!("the {what} {file} is unusable: {why}"),
        format!("put a good {what} in place at {file}"),
    )
}

/// A policy that was read, and asks for what nobody here can judge: it admits nothing.
pub(super) fn not_understood(what: &str, path: &Path, why: &dyn Display) -> No {
    let file = path.display();
    no(
        format!("the {what} {file} is unusable: {why}"),
        format!("put a good {what} in place at {file}"),
    )
}

/// The first few, and how many more there are.
pub(super) fn told(texts: &[String]) -> String {
    let mut distinct: Vec<&str> = Vec::new();
    for text in texts {
        if !distinct.contains(&text.as_str()) {
            distinct.push(text);
        }
    }
    let told = distinct
        .iter()
        .take(MAX_TOLD)
        .copied()
        .collect::<Vec<_>>()
        .join("; ");
    match distinct.len().saturating_sub(MAX_TOLD) {
        0 => told,
        more => format!("{told}; and {more} more"),
    }
}
