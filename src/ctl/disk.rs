//! Files: read with a limit, written whole or not at all, keys never overwritten.

use anyhow::{Context as _, bail};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Certificates, keys, policies, statements: everything that a person may have written.
pub const SMALL: u64 = 1 << 20;
/// Signature lists and evidence.
pub const LARGE: u64 = 256 << 20;

/// The content of `path`; `what` names it in errors ("the signing key").
pub fn read(path: &Path, what: &str, max: u64) -> anyhow::Result<Vec<u8>> {
    let context = || format!("reading {what} {}", path.display());
    let file = File::open(path).with_context(context)?;
    if file.metadata().with_context(context)?.is_dir() {
        bail!(
            "reading {what} {}: it is a directory; name a file",
            path.display()
        );
    }
    let mut bytes = Vec::new();
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .with_context(context)?;
    if bytes.len() as u64 > max {
        bail!("reading {what} {}: longer than {max} bytes", path.display());
    }
    Ok(bytes)
}

pub fn read_text(path: &Path, what: &str) -> anyhow::Result<String> {
    String::from_utf8(read(path, what, SMALL)?)
        .with_context(|| format!("reading {what} {}: it is not text", path.display()))
}

/// A revocation list: DER as it is, PEM decoded; whether it is well-formed, its reader says.
pub fn read_crl(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = read(path, "the revocation list", LARGE)?;
    match der::pem::decode_vec(&bytes) {
        Ok(("X509 CRL", der)) => Ok(der),
        _ => Ok(bytes),
    }
}

/// Puts `bytes` at `path`: readers see the old file or the new one, never a half.
pub fn replace(path: &Path, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || format!("writing {what} {}", path.display());
    let name = path
        .file_name()
        .with_context(|| format!("writing {what} {}: this is no file name", path.display()))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = write(&temporary, bytes, 0o644).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(context)
}

/// Puts `bytes` at `path`, which must not exist yet; readable by its owner alone.
pub fn create_secret(path: &Path, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
    create(path, what, bytes, 0o600)
}

/// Puts `bytes` at `path`, which must not exist yet.
pub fn create_public(path: &Path, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
    create(path, what, bytes, 0o644)
}

fn create(path: &Path, what: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    write(path, bytes, mode).with_context(|| {
        format!(
            "creating {what} {} (existing files are not overwritten)",
            path.display()
        )
    })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A directory of the caller's own, made if absent.
pub fn make_dir(path: &Path, what: &str) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {what} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn secrets_are_private_and_never_overwritten() {
        let dir = Scratch::new();
        let key = dir.path().join("k");
        create_secret(&key, "the key", b"1").unwrap();
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = format!("{:#}", create_secret(&key, "the key", b"2").unwrap_err());
        assert!(error.contains(&key.display().to_string()), "{error}");
        assert_eq!(fs::read(&key).unwrap(), b"1");
    }

    #[test]
    fn replacing_leaves_no_temporary_file() {
        let dir = Scratch::new();
        let file = dir.path().join("f");
        replace(&file, "the file", b"1").unwrap();
        replace(&file, "the file", b"2").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"2");
        assert!(replace(&dir.path().join("no/such"), "the file", b"").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuse_long_files_and_directories() {
        let dir = Scratch::new();
        let file = dir.path().join("f");
        fs::write(&file, b"12345").unwrap();
        assert!(read(&file, "the file", 5).is_ok());
        assert!(read(&file, "the file", 4).is_err());
        assert!(read(dir.path(), "the file", 4).is_err());
        let error = format!(
            "{:#}",
            read(&dir.path().join("x"), "the file", 4).unwrap_err()
        );
        assert!(error.starts_with("reading the file /"), "{error}");
    }
}
