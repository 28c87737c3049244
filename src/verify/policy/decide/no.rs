//! A reason against, and what to do about it.

use super::Material;
use std::fmt::Display;
use std::path::Path;

/// So many of the failed candidates are told; the rest is counted.
const MAX_TOLD: usize = 4;

/// One reason, and what to do about it.
pub(super) struct No {
    pub reason: String,
    pub hint: String,
}

pub(super) fn no(reason: impl Into<String>, hint: impl Into<String>) -> No {
    No {
        reason: reason.into(),
        hint: hint.into(),
    }
}

/// A trust file's content; what is missing or unreadable refuses.
pub(super) fn trusted<'m>(
    material: &'m Material<'_>,
    what: &str,
    path: &Path,
) -> Result<&'m [u8], No> {
    let file = path.display();
    material.trust.get(path).map_err(|why| {
        no(
            format!("cannot read the {what} {file}: {why}"),
            format!("put the {what} in place at {file}"),
        )
    })
}

pub(super) fn corrupt(what: &str, path: &Path, why: &dyn Display) -> No {
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
