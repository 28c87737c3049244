//! The container's event log and the vTPM whose PCRs it explains: one decision path. An entry is
//! appended, then extended, and only then does what it tells of happen.
//!
//! Evidence is served from this process's memory; the file is for people and for the container.

use anyhow::{Context, Result};
use std::{collections::HashSet, fs::File, io::Write, path::Path};
use tpm::vtpm::Vtpm;
use verify::{
    digest::FileDigest,
    event::{Event, Fault},
    imalog::{EncodedPath, Entry},
};

pub struct Journal {
    vtpm: Vtpm,
    file: File,
    log: Vec<u8>,
    max_bytes: u64,
    /// (path, digest) of each entry of PCR 10: only first use and change are news.
    seen: HashSet<(Vec<u8>, FileDigest)>,
    capped: bool,
}

/// Room that only the record of the cap itself may use.
const RESERVE_BYTES: u64 = 4096;

impl Journal {
    pub fn new(vtpm: Vtpm, path: &Path, max_bytes: u64) -> Result<Self> {
        let file = File::options().create_new(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot make the event log {}", path.display()))?;
        Ok(Self {
            vtpm,
            file,
            log: Vec::new(),
            max_bytes,
            seen: HashSet::new(),
            capped: false,
        })
    }

    pub fn vtpm(&mut self) -> &mut Vtpm {
        &mut self.vtpm
    }

    pub fn log(&self) -> &[u8] {
        &self.log
    }

    pub fn record(&mut self, event: &Event) -> Result<()> {
        self.append(&event.to_entry()?)
    }

    /// An execution of `path`: the first of this content is an entry of PCR 10.
    pub fn execution(&mut self, path: &[u8], digest: FileDigest) -> Result<()> {
        if self.seen.contains(&(path.to_vec(), digest)) {
            return Ok(());
        }
        self.append(&Entry::file(digest, EncodedPath::of(path)?))?;
        self.seen.insert((path.to_vec(), digest));
        Ok(())
    }

    fn append(&mut self, entry: &Entry) -> Result<()> {
        let bytes = entry.encode();
        let room = self.max_bytes - RESERVE_BYTES;
        if self.log.len() as u64 + bytes.len() as u64 > room {
            self.cap()?;
            anyhow::bail!(
                "the event log has reached its cap of {} bytes (vtpm.log_max_bytes)",
                self.max_bytes
            );
        }
        self.write(entry, &bytes)
    }

    /// Says in PCR 8, once, that from here on everything is denied.
    fn cap(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.capped, true) {
            return Ok(());
        }
        let fault = Event::Fault(Fault {
            kind: "log-cap".into(),
            detail: format!("{} bytes", self.max_bytes),
        });
        let entry = fault.to_entry()?;
        self.write(&entry, &entry.encode())
    }

    fn write(&mut self, entry: &Entry, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .context("cannot append to the event log")?;
        self.log.extend_from_slice(bytes);
        let (sha1, sha256) = entry.extend_values();
        self.vtpm
            .extend(entry.pcr(), &sha1, &sha256)
            .context("cannot extend the vTPM")?;
        Ok(())
    }
}
