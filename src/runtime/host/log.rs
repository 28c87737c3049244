//! The binding log of one boot: append, fsync, then extend the host PCR. After a crash the log may be
//! one entry ahead of the PCR; that entry is completed. Any other difference is an error that nobody
//! can wave away: the log was truncated, or somebody else extended the PCR.

use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use verify::binding::{LogEntry, parse_log, replay};

pub struct BindingLog {
    file: File,
    path: PathBuf,
    bytes: Vec<u8>,
    entries: Vec<LogEntry>,
    start: [u8; 32],
    /// The last extend failed: log and PCR are brought together before anything else is logged.
    unsettled: bool,
}

/// What stands in the TPM for the log: read and extended only here.
pub trait BindingPcr {
    fn read(&mut self) -> Result<[u8; 32]>;
    fn extend(&mut self, value: &[u8; 32]) -> Result<()>;
}

impl BindingLog {
    /// Opens the log of boot `boot_id` below `dir` and brings log and PCR together.
    pub fn open(dir: &Path, boot_id: &str, pcr: &mut dyn BindingPcr) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join(format!("binding-{boot_id}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(&path);
        let file =
            file.with_context(|| format!("cannot open the binding log {}", path.display()))?;
        let bytes = fs::read(&path)
            .with_context(|| format!("cannot read the binding log {}", path.display()))?;
        let complete = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |end| end + 1);
        if complete < bytes.len() {
            // a line without its end was never extended: append, fsync, extend
            file.set_len(complete as u64)?;
            file.sync_all()?;
        }
        let bytes = bytes.get(..complete).unwrap_or_default().to_vec();
        let entries = parse_log(&bytes)
            .with_context(|| format!("the binding log {} is corrupt", path.display()))?;
        let mut log = Self {
            file,
            path,
            bytes,
            entries,
            start: [0; 32],
            unsettled: true,
        };
        log.settle(pcr)?;
        Ok(log)
    }

    fn settle(&mut self, pcr: &mut dyn BindingPcr) -> Result<()> {
        let now = pcr.read()?;
        if replay(self.start, &self.entries) == now {
            self.unsettled = false;
            return Ok(());
        }
        if let Some((last, before)) = self.entries.split_last()
            && replay(self.start, before) == now
        {
            pcr.extend(&last.value())?;
            self.unsettled = false;
            return Ok(());
        }
        bail!(
            "the binding log {} ({} entries) does not explain the host's binding PCR ({}): the log was cut, or \
             something else extended that PCR; containers of this boot cannot be bound. Reboot, or choose another \
             host_tpm.binding_pcr that starts at zero",
            self.path.display(),
            self.entries.len(),
            verify::digest::RecordDigest::from_bytes(now).hex(),
        )
    }

    pub fn append(&mut self, entry: LogEntry, pcr: &mut dyn BindingPcr) -> Result<()> {
        if self.unsettled {
            self.settle(pcr)?;
        }
        let line = entry.line()?;
        let before = self.bytes.len() as u64;
        let written = self
            .file
            .write_all(&line)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // a full disk: take back what may have been written, so that the next entry starts a line
            self.file.set_len(before).ok();
            return Err(error).with_context(|| {
                format!("cannot append to the binding log {}", self.path.display())
            });
        }
        self.bytes.extend_from_slice(&line);
        let value = entry.value();
        self.entries.push(entry);
        self.unsettled = true;
        pcr.extend(&value)
            .context("the binding log is one entry ahead of the host PCR")?;
        self.unsettled = false;
        Ok(())
    }

    /// The log as challengers get it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    pub fn start(&self) -> &[u8; 32] {
        &self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use verify::{binding::Kind, digest::RecordDigest, pcr::extend_sha256, tpm2::TpmName};

    /// A PCR whose next extend can be made to fail, as a TPM in lockout does.
    #[derive(Default)]
    struct Register {
        value: [u8; 32],
        fail: bool,
    }
    impl BindingPcr for Register {
        fn read(&mut self) -> Result<[u8; 32]> {
            Ok(self.value)
        }
        fn extend(&mut self, value: &[u8; 32]) -> Result<()> {
            anyhow::ensure!(!std::mem::take(&mut self.fail), "lockout");
            self.value = extend_sha256(&self.value, value);
            Ok(())
        }
    }

    fn entry(n: u8) -> LogEntry {
        LogEntry::new(
            Kind::Bind,
            &TpmName::of_public(&[n]),
            RecordDigest::of(&[n]),
        )
    }

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("attestrun-log-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        dir
    }

    #[test]
    fn completes_what_a_crash_left_pending() {
        let (dir, mut pcr) = (dir("pending"), Register::default());
        let mut log = BindingLog::open(&dir, "b", &mut pcr).unwrap();
        log.append(entry(1), &mut pcr).unwrap();
        pcr.fail = true;
        assert!(log.append(entry(2), &mut pcr).is_err());
        log.append(entry(3), &mut pcr).unwrap();
        pcr.fail = true;
        assert!(log.append(entry(4), &mut pcr).is_err());
        drop(log);
        let log = BindingLog::open(&dir, "b", &mut pcr).unwrap();
        assert_eq!(log.entries().len(), 4);
        assert_eq!(replay([0; 32], log.entries()), pcr.value);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn refuse_a_truncated_log_and_a_foreign_extend() {
        let (dir, mut pcr) = (dir("cut"), Register::default());
        let mut log = BindingLog::open(&dir, "b", &mut pcr).unwrap();
        log.append(entry(1), &mut pcr).unwrap();
        log.append(entry(2), &mut pcr).unwrap();
        let path = log.path.clone();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(BindingLog::open(&dir, "b", &mut pcr).is_err());
        fs::write(&path, &whole).unwrap();
        assert!(BindingLog::open(&dir, "b", &mut pcr).is_ok());
        pcr.extend(&[9; 32]).unwrap();
        assert!(BindingLog::open(&dir, "b", &mut pcr).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
