//! `attestctl list import`: a list out of what other tools wrote. Their word is input, never truth: with
//! an image at hand every digest is compared with its layers, and a bill of materials needs that.

use super::{
    Life,
    create::{self, Files, Origin},
    title,
};
use crate::{
    disk,
    report::{Refused, Report, Usage},
    source::ImageArgs,
};
use ::verify::{
    digest::{FileDigest, ImageDigest},
    imalog::{EncodedPath, encode_path},
    siglist::{List, Programs},
};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf};

#[derive(Args)]
#[command(group(clap::ArgGroup::new("format").required(true).args(["keylime", "sha256sum", "spdx", "syft"])))]
#[command(group(clap::ArgGroup::new("subject").required(true).multiple(true).args(["image", "about", "hosts"])))]
pub struct Import {
    /// A Keylime runtime policy (version 1, JSON) without regular expressions
    #[arg(long, value_name = "FILE")]
    keylime: Option<PathBuf>,
    /// Output of sha256sum(1), run in the root of the file system
    #[arg(long, value_name = "FILE")]
    sha256sum: Option<PathBuf>,
    /// An SPDX 2 document (JSON) with files; needs --image
    #[arg(long, value_name = "FILE", requires = "image")]
    spdx: Option<PathBuf>,
    /// A syft document (JSON) with the digests of all files; needs --image
    #[arg(long, value_name = "FILE", requires = "image")]
    syft: Option<PathBuf>,
    /// The image (OCI layout directory or archive): what is imported must agree with its layers
    #[arg(long)]
    image: Option<PathBuf>,
    /// Tag, name or digest of the image, when the file holds several
    #[arg(long, requires = "image")]
    tag: Option<String>,
    /// Image that the list is about (manifest digest)
    #[arg(long, value_name = "DIGEST")]
    about: Vec<ImageDigest>,
    /// Class of hosts whose programs these are: a host list
    #[arg(long, value_name = "CLASS")]
    hosts: Option<String>,
    #[command(flatten)]
    life: Life,
    /// Where the list goes
    #[arg(short, long)]
    output: PathBuf,
}

type Reader = fn(&[u8]) -> anyhow::Result<Files>;

pub fn run(args: &Import) -> anyhow::Result<Report> {
    let (what, path, parse): (&str, &PathBuf, Reader) =
        match (&args.keylime, &args.sha256sum, &args.spdx, &args.syft) {
            (Some(path), ..) => ("the Keylime policy", path, keylime),
            (_, Some(path), ..) => ("the digests", path, sha256sum),
            (_, _, Some(path), _) => ("the SPDX document", path, spdx),
            (_, _, _, Some(path)) => ("the syft document", path, syft),
            _ => bail!(Usage("nothing to import".to_owned())),
        };
    let bytes = disk::read(path, what, disk::LARGE)?;
    let context = || format!("reading {what} {}", path.display());
    let files = parse(&bytes).with_context(context)?;
    ensure!(
        !files.is_empty(),
        "{}: it names no file with a SHA-256",
        context()
    );
    let mut images: Vec<_> = args
        .about
        .iter()
        .map(|digest| ("image".to_owned(), *digest))
        .collect();
    if let Some(class) = &args.hosts {
        images.push((format!("hosts {class}"), super::hosts(class)?));
    }
    let programs = match &args.image {
        None => Programs::AllFiles,
        Some(image) => {
            let origin = Origin::of_image(&ImageArgs {
                image: image.clone(),
                tag: args.tag.clone(),
            })?;
            agrees(&files, &origin).with_context(context)?;
            images.splice(0..0, origin.images.clone());
            create::startable(&origin, &files)?
        }
    };
    let bytes = args
        .life
        .draft(images, files, programs)
        .statement_bytes()
        .with_context(context)?;
    disk::replace(&args.output, "the signature list", &bytes)?;
    let list = List::parse(&bytes).with_context(context)?;
    Ok(Report::done(
        format!(
            "{}\n  written to {}; look at it with attestctl list show, then sign it",
            title(&list),
            args.output.display()
        ),
        json!({
            "name": list.name(),
            "serial": list.serial(),
            "digest": list.digest(),
            "files": list.files().len(),
            "output": args.output,
        }),
    ))
}

/// Every imported path is a file of the image with an imported content.
fn agrees(files: &Files, origin: &Origin) -> anyhow::Result<()> {
    const TOLD: usize = 8;
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|(path, digests)| match origin.manifest.file(path) {
            Some(found) if digests.contains(&found) => None,
            Some(found) => Some(format!(
                "{} has content {found} in the image",
                encode_path(path)
            )),
            None => Some(format!("{} is no file of the image", encode_path(path))),
        })
        .collect();
    match wrong.len() {
        0 => Ok(()),
        count => bail!(Refused(format!(
            "{count} files do not agree with the image: {}{}",
            wrong[..count.min(TOLD)].join("; "),
            if count > TOLD { "; …" } else { "" }
        ))),
    }
}

fn add(files: &mut Files, path: Vec<u8>, hex: &str) -> anyhow::Result<()> {
    let digest: FileDigest = format!("sha256:{hex}")
        .parse()
        .map_err(|_| anyhow::anyhow!("{}: `{hex}` is no SHA-256", encode_path(&path)))?;
    files.entry(path).or_default().insert(digest);
    Ok(())
}

/// `./bin/x`, `bin/x` and `/bin/x` are one path of the root file system.
fn absolute(path: &[u8]) -> Vec<u8> {
    let path = path
        .strip_prefix(b".")
        .filter(|rest| rest.starts_with(b"/"))
        .unwrap_or(path);
    match path.starts_with(b"/") {
        true => path.to_vec(),
        false => [b"/", path].concat(),
    }
}

#[derive(Deserialize)]
struct Keylime {
    digests: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    excludes: Vec<String>,
}

fn keylime(bytes: &[u8]) -> anyhow::Result<Files> {
    let policy: Keylime = serde_json::from_slice(bytes)?;
    if let Some(exclude) = policy.excludes.first() {
        bail!(Refused(format!(
            "its `excludes` has the regular expression `{exclude}`; a signature list names files, not \
             patterns: take it out and list what it would let pass"
        )));
    }
    let mut files = Files::new();
    for (text, digests) in policy.digests {
        // entries that are no paths (boot_aggregate) are the host's
        ensure!(text.starts_with('/'), "`{text}` is no absolute path");
        let path = EncodedPath::parse(&text)
            .with_context(|| format!("the path `{text}`"))?
            .decode();
        for hex in digests {
            add(&mut files, path.clone(), &hex)?;
        }
    }
    Ok(files)
}

fn sha256sum(bytes: &[u8]) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let wrong = || format!("line {}: not `<sha256>  <file>`", number + 1);
        let (escaped, line) = match line.strip_prefix(b"\\") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let (hex, rest) = line.split_at_checked(64).with_context(wrong)?;
        let name = rest
            .strip_prefix(b"  ")
            .or_else(|| rest.strip_prefix(b" *"))
            .with_context(wrong)?;
        let name = if escaped {
            unescaped(name)
        } else {
            name.to_vec()
        };
        let hex = std::str::from_utf8(hex).ok().with_context(wrong)?;
        add(&mut files, absolute(&name), hex).with_context(wrong)?;
    }
    Ok(files)
}

/// What coreutils does to names with a backslash or a newline.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut bytes = name.iter();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match (byte, byte == &b'\\') {
            (_, true) => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(other) => *other,
                None => b'\\',
            },
            (other, false) => *other,
        });
    }
    plain
}

#[derive(Deserialize)]
struct Spdx {
    #[serde(default)]
    files: Vec<SpdxFile>,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpdxFile {
    file_name: String,
    #[serde(default)]
    checksums: Vec<SpdxChecksum>,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpdxChecksum {
    algorithm: String,
    checksum_value: String,
}

fn spdx(bytes: &[u8]) -> anyhow::Result<Files> {
    let document: Spdx = serde_json::from_slice(bytes)?;
    let mut files = Files::new();
    for file in document.files {
        let sha256 = file.checksums.iter().find(|c| c.algorithm == "SHA256");
        let sha256 = sha256.with_context(|| without(&file.file_name))?;
        let path = absolute(file.file_name.as_bytes());
        add(&mut files, path, &sha256.checksum_value)?;
    }
    Ok(files)
}

#[derive(Deserialize)]
struct Syft {
    #[serde(default)]
    files: Vec<SyftFile>,
}
#[derive(Deserialize)]
struct SyftFile {
    location: SyftLocation,
    #[serde(default)]
    metadata: Option<SyftMetadata>,
    #[serde(default)]
    digests: Vec<SyftDigest>,
}
#[derive(Deserialize)]
struct SyftLocation {
    path: String,
}
#[derive(Deserialize)]
struct SyftMetadata {
    #[serde(default, rename = "type")]
    kind: Option<String>,
}
#[derive(Deserialize)]
struct SyftDigest {
    algorithm: String,
    value: String,
}

fn syft(bytes: &[u8]) -> anyhow::Result<Files> {
    let document: Syft = serde_json::from_slice(bytes)?;
    let mut files = Files::new();
    for file in document.files {
        let kind = file.metadata.as_ref().and_then(|data| data.kind.as_deref());
        if kind.is_some_and(|kind| kind != "RegularFile") {
            continue;
        }
        let sha256 = file.digests.iter().find(|d| d.algorithm == "sha256");
        let sha256 = sha256.with_context(|| without(&file.location.path))?;
        add(
            &mut files,
            absolute(file.location.path.as_bytes()),
            &sha256.value,
        )?;
    }
    Ok(files)
}

fn without(path: &str) -> String {
    format!(
        "{path} has no SHA-256 in it; make the document with digests of all files (syft: \
         SYFT_FILE_METADATA_SELECTION=all SYFT_FILE_METADATA_DIGESTS=sha256)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    fn paths(files: anyhow::Result<Files>) -> Vec<String> {
        files
            .unwrap()
            .keys()
            .map(|path| encode_path(path))
            .collect()
    }

    #[test]
    fn accept_lines_of_sha256sum() {
        let text = format!("{HEX}  ./bin/a\n{HEX} */b c\n\\{HEX}  d\\\\e\n{HEX}  ./bin/a\n");
        assert_eq!(
            paths(sha256sum(text.as_bytes())),
            ["/b%20c", "/bin/a", "/d\\e"]
        );
    }

    #[test]
    fn refuse_other_lines() {
        for bad in [
            "text",
            &format!("{HEX} x"),
            &format!("{}  x", "g".repeat(64)),
            &format!("{}  x", HEX.to_uppercase()),
        ] {
            let error = sha256sum(bad.as_bytes()).unwrap_err();
            assert!(format!("{error:#}").contains("line 1"), "{bad}: {error:#}");
        }
    }

    #[test]
    fn accept_keylime_policies_and_refuse_their_patterns() {
        let policy = |excludes: &str| {
            format!(
                r#"{{"meta":{{}},"digests":{{"/bin/a%20b":["{HEX}"]}},"excludes":[{excludes}]}}"#
            )
        };
        assert_eq!(paths(keylime(policy("").as_bytes())), ["/bin/a%20b"]);
        let error = keylime(policy("\"/tmp/.*\"").as_bytes()).unwrap_err();
        assert!(error.is::<Refused>(), "{error:#}");
        let host = format!(r#"{{"digests":{{"boot_aggregate":["{HEX}"]}}}}"#);
        assert!(keylime(host.as_bytes()).is_err());
    }

    #[test]
    fn accept_bills_of_materials_that_hash_every_file() {
        let spdx_file = format!(
            r#"{{"files":[{{"fileName":"./bin/a","checksums":[{{"algorithm":"SHA1","checksumValue":"00"}},
               {{"algorithm":"SHA256","checksumValue":"{HEX}"}}]}}]}}"#
        );
        assert_eq!(paths(spdx(spdx_file.as_bytes())), ["/bin/a"]);
        let syft_file = |digests: &str| {
            format!(
                r#"{{"files":[{{"location":{{"path":"/bin/a"}},"metadata":{{"type":"RegularFile"}},"digests":[{digests}]}},
                   {{"location":{{"path":"/bin"}},"metadata":{{"type":"Directory"}}}}]}}"#
            )
        };
        let good = syft_file(&format!(r#"{{"algorithm":"sha256","value":"{HEX}"}}"#));
        assert_eq!(paths(syft(good.as_bytes())), ["/bin/a"]);
        assert!(syft(syft_file("").as_bytes()).is_err());
    }
}
