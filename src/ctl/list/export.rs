//! `attestctl list export`: the list in other people's formats. What one of them cannot say is an error,
//! never left out.

use super::read;
use crate::{
    disk,
    report::{Report, Usage},
};
use ::verify::{imalog::encode_path, rootfs, siglist::List};
use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

#[derive(Args)]
#[command(group(clap::ArgGroup::new("format").required(true).args(["keylime", "mtree", "sha256sum"])))]
pub struct Export {
    /// The list (in-toto statement)
    list: PathBuf,
    /// A Keylime runtime policy (version 1, JSON)
    #[arg(long)]
    keylime: bool,
    /// An mtree(5) specification with sha256digest
    #[arg(long)]
    mtree: bool,
    /// Lines of sha256sum(1), for `sha256sum -c` in the root of the file system
    #[arg(long)]
    sha256sum: bool,
    /// Where it goes; standard output otherwise
    #[arg(short, long)]
    output: Option<PathBuf>,
}

pub fn run(args: &Export) -> anyhow::Result<Report> {
    let (_, list) = read(&args.list)?;
    let text = if args.keylime {
        format!("{:#}\n", keylime(&list))
    } else if args.mtree {
        mtree(&list)?
    } else {
        sha256sum(&list)?
    };
    let about =
        json!({ "list": list.digest(), "files": list.files().len(), "output": args.output });
    match &args.output {
        Some(path) => {
            disk::replace(path, "the exported list", text.as_bytes())?;
            let done = format!("{} files in {}", list.files().len(), path.display());
            Ok(Report::done(done, about))
        }
        None => {
            let mut report = Report::done(text.trim_end(), about);
            report.add("exported", text);
            Ok(report)
        }
    }
}

/// keylime/ima/types.py, RuntimePolicyType; paths are spelt as in a container's event log. It says
/// neither for which image nor until when: that stays with the signed list.
pub fn keylime(list: &List) -> Value {
    let digests: BTreeMap<String, Vec<String>> = list
        .files()
        .iter()
        .map(|(path, digests)| {
            let hex = digests.iter().map(|digest| digest.hex()).collect();
            (encode_path(path), hex)
        })
        .collect();
    json!({
        "meta": { "version": 1, "generator": 0, "timestamp": list.issued_at() },
        "release": 0,
        "digests": digests,
        "excludes": [],
        "keyrings": {},
        "ima": { "ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null },
        "ima-buf": {},
        "verification-keys": "",
    })
}

fn mtree(list: &List) -> anyhow::Result<String> {
    let mut text = "#mtree\n".to_owned();
    for (path, digest) in one_each(list)? {
        // vis(3), as in the rootfs manifest
        let name = rootfs::encode(path.strip_prefix(b"/").unwrap_or(path));
        let _ = writeln!(text, "./{name} type=file sha256digest={digest}");
    }
    Ok(text)
}

fn sha256sum(list: &List) -> anyhow::Result<String> {
    let mut text = String::new();
    for (path, digest) in one_each(list)? {
        let Ok(path) = std::str::from_utf8(path) else {
            bail!(Usage(format!(
                "{} is not text, which this format needs; use --mtree",
                encode_path(path)
            )));
        };
        // coreutils escapes backslashes in names and says so with one in front (lists hold no newlines)
        let (mark, name) = match path.contains('\\') {
            true => ("\\", path.replace('\\', "\\\\")),
            false => ("", path.to_owned()),
        };
        let _ = writeln!(text, "{mark}{digest}  .{name}");
    }
    Ok(text)
}

/// Formats with one content per path cannot hold a list that allows several.
fn one_each(list: &List) -> anyhow::Result<Vec<(&[u8], String)>> {
    list.files()
        .iter()
        .map(|(path, digests)| match digests.first() {
            Some(one) if digests.len() == 1 => Ok((path, one.hex())),
            _ => bail!(Usage(format!(
                "{} may have {} contents, and this format knows one; use --keylime",
                encode_path(path),
                digests.len()
            ))),
        })
        .collect()
}
