//! `attestctl list`: signature lists, from an image to a signed statement and back.

mod create;
mod sign;
mod verify;

use crate::{
    disk,
    report::{Refused, Report},
};
use ::verify::{
    imalog::encode_path,
    siglist::{List, Programs},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum Verb {
    /// Make a list of the programs in an image's layers; nothing of the image is run
    Create(create::Create),
    /// Sign a list with a user's certificate (CMS, detached)
    Sign(sign::Sign),
    /// Verify a list's signature, tenant, name, serial and lifetime
    Verify(verify::Verify),
    /// Print a list; nothing is verified
    Show(Show),
}

#[derive(Args)]
pub struct Show {
    /// The list (in-toto statement)
    list: PathBuf,
}

pub fn run(verb: &Verb) -> anyhow::Result<Report> {
    match verb {
        Verb::Create(args) => create::run(args),
        Verb::Sign(args) => sign::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Show(args) => show(args),
    }
}

/// The list's bytes and what they say; malformed lists are refused.
fn read(path: &Path) -> anyhow::Result<(Vec<u8>, List)> {
    let bytes = disk::read(path, "the signature list", disk::LARGE)?;
    let list = List::parse(&bytes)
        .map_err(|e| Refused(e.to_string()))
        .with_context(|| format!("reading the signature list {}", path.display()))?;
    Ok((bytes, list))
}

fn title(list: &List) -> String {
    format!(
        "list `{}`, serial {}, {} files\n  digest {}\n  issued {}, expires {}",
        list.name(),
        list.serial(),
        list.files().len(),
        list.digest(),
        list.issued_at(),
        list.expires_at()
    )
}

fn show(args: &Show) -> anyhow::Result<Report> {
    let (_, list) = read(&args.list)?;
    let mut text = title(&list);
    for image in list.images() {
        text.push_str(&format!("\n  image {image}"));
    }
    let starts = |path: &[u8]| match list.programs() {
        Programs::AllFiles => true,
        Programs::Only(paths) => paths.contains(path),
    };
    let mut files = serde_json::Map::new();
    for (path, digests) in list.files() {
        let shown = encode_path(path);
        let mark = if starts(path) {
            ""
        } else {
            "  (not to be started)"
        };
        for digest in digests {
            text.push_str(&format!("\n{}  {shown}{mark}", digest.hex()));
        }
        files.insert(
            shown,
            json!({ "digests": digests, "program": starts(path) }),
        );
    }
    Ok(Report::done(
        text,
        json!({
            "name": list.name(),
            "serial": list.serial(),
            "digest": list.digest(),
            "issued_at": list.issued_at(),
            "expires_at": list.expires_at(),
            "images": list.images(),
            "files": files,
        }),
    ))
}
