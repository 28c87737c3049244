//! `attestctl list diff`: what a new version of a list would change, for whoever has to sign it.

use super::read;
use crate::report::Report;
use ::verify::{imalog::encode_path, siglist::List};
use clap::Args;
use serde_json::json;
use std::{collections::BTreeSet, fmt::Display, path::PathBuf};

#[derive(Args)]
pub struct Diff {
    /// The list in force (in-toto statement)
    old: PathBuf,
    /// The one that shall follow it
    new: PathBuf,
}

pub fn run(args: &Diff) -> anyhow::Result<Report> {
    let ((_, old), (_, new)) = (read(&args.old)?, read(&args.new)?);
    let files = Files::between(&old, &new);
    let mut text = Vec::new();
    let mut field = |what: &str, old: &dyn Display, new: &dyn Display| {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            text.push(format!("{what}: {old} -> {new}"));
        }
    };
    field("name", &old.name(), &new.name());
    field("serial", &old.serial(), &new.serial());
    field("issued", &old.issued_at(), &new.issued_at());
    field("expires", &old.expires_at(), &new.expires_at());
    let images = |list: &List| {
        let all: Vec<_> = list.images().iter().map(ToString::to_string).collect();
        all.join(" ")
    };
    field("images", &images(&old), &images(&new));
    if new.name() == old.name() && new.serial() <= old.serial() {
        text.push("the serial does not rise: hosts that have seen the old list refuse the new one, or cannot choose".to_owned());
    }
    for (mark, paths) in [
        ('+', &files.added),
        ('-', &files.removed),
        ('!', &files.changed),
        ('x', &files.startable),
    ] {
        text.extend(paths.iter().map(|path| format!("{mark} {path}")));
    }
    text.push(format!(
        "{} added (+), {} removed (-), {} with other content (!), {} with another right to be started (x)",
        files.added.len(),
        files.removed.len(),
        files.changed.len(),
        files.startable.len()
    ));
    Ok(Report::done(
        text.join("\n"),
        json!({
            "old": { "name": old.name(), "serial": old.serial(), "digest": old.digest() },
            "new": { "name": new.name(), "serial": new.serial(), "digest": new.digest() },
            "added": files.added,
            "removed": files.removed,
            "changed": files.changed,
            "startable_changed": files.startable,
        }),
    ))
}

/// Encoded paths.
#[derive(Debug, Default)]
struct Files {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<String>,
    startable: Vec<String>,
}

impl Files {
    fn between(old: &List, new: &List) -> Self {
        let mut found = Self::default();
        let paths = |list| List::files(list).iter().map(|(path, _)| path);
        let all: BTreeSet<&[u8]> = paths(old).chain(paths(new)).collect();
        for path in all {
            let shown = || encode_path(path);
            match (old.files().get(path), new.files().get(path)) {
                (None, _) => found.added.push(shown()),
                (_, None) => found.removed.push(shown()),
                (before, after) => {
                    if before != after {
                        found.changed.push(shown());
                    }
                    if old.starts(path) != new.starts(path) {
                        found.startable.push(shown());
                    }
                }
            }
        }
        found
    }
}
