//! Digests of the host's executables that a container's trust rests on: attestrun itself, swtpm, the
//! external backend. Hashed once per boot and file: the stamp (inode, size, times) says whether the
//! file is still the one that was hashed.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use verify::digest::FileDigest;

/// Root's alone, and gone with the boot that made it: a stamp cannot be trusted across a reboot.
#[cfg(not(test))]
const CACHE: &str = "/run/attestrun/cache/executables";
/// Unit tests leave the host's directory alone: below a device nothing can be made.
#[cfg(test)]
const CACHE: &str = "/dev/null/executables";

/// SHA-256 of the executable at `path`.
pub fn digest(path: &Path) -> Result<FileDigest> {
    let doing = || format!("cannot measure the executable {}", path.display());
    let mut file = File::open(path).with_context(doing)?;
    let entry = Path::new(CACHE).join(stamp(&file.metadata().with_context(doing)?));
    if let Some(known) = fs::read_to_string(&entry)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return Ok(known);
    }
    let before = stamp(&file.metadata()?);
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).with_context(doing)?;
    let digest = FileDigest::from_bytes(hasher.finalize().into());
    anyhow::ensure!(
        before == stamp(&file.metadata()?),
        "{} changed while it was measured",
        path.display()
    );
    remember(&entry, &digest.to_string()).ok(); // a cache that cannot be written costs time, nothing else
    Ok(digest)
}

/// Something that an executable says about itself, asked once per boot and content.
pub fn remembered(
    what: &str,
    of: &FileDigest,
    ask: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let entry = Path::new(CACHE).join(format!("{what}-{}", of.hex()));
    if let Ok(known) = fs::read_to_string(&entry) {
        return Ok(known);
    }
    let answer = ask()?;
    remember(&entry, &answer).ok();
    Ok(answer)
}

fn stamp(m: &fs::Metadata) -> PathBuf {
    format!(
        "{}-{}-{}-{}.{}-{}.{}",
        m.dev(),
        m.ino(),
        m.size(),
        m.mtime(),
        m.mtime_nsec(),
        m.ctime(),
        m.ctime_nsec()
    )
    .into()
}

fn remember(entry: &Path, text: &str) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(CACHE)?;
    let new = entry.with_extension(format!("{}.new", std::process::id()));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fs::rename(&new, entry)
}
