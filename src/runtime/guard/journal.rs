//! The container's event log and the vTPM whose PCRs it explains: one decision path. An entry is
//! appended, then extended, and only then does what it tells of happen.
//!
//! Evidence is served from this process's memory; the file is for people and for the container. Several
//! threads write; each entry, and each quote with its log, is one step.

use crate::ipc::Refused;
use anyhow::{Context, Result};
use std::{
    collections::HashSet,
    fs::File,
    io::Write,
    path::Path,
    sync::{Mutex, MutexGuard},
};
use tpm::{Key, Make, Quote, filter::Broker, vtpm::Vtpm};
use verify::{
    digest::FileDigest,
    event::{Event, Fault},
    imalog::{EncodedPath, Entry},
    pcr::QUOTED,
};

pub struct Journal(Mutex<Pages>);

/// Whoever holds them must not wait for anything but the vTPM: the container waits for him.
struct Pages {
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
        Ok(Self(Mutex::new(Pages {
            vtpm,
            file,
            log: Vec::new(),
            max_bytes,
            seen: HashSet::new(),
            capped: false,
        })))
    }

    fn pages(&self) -> Result<MutexGuard<'_, Pages>> {
        // what a thread has left half written explains no PCR any more
        self.0
            .lock()
            .map_err(|_| anyhow::anyhow!("a thread panicked while it wrote the event log"))
    }

    /// The container's way to its vTPM.
    pub fn lend(&self) -> Result<Broker> {
        Ok(self.pages()?.vtpm.lend())
    }

    /// What the vTPM's certificate says of it.
    pub fn make(&self) -> Result<Make> {
        self.pages()?.vtpm.make().context("vTPM: its make")
    }

    /// Whether it has a certificate of its endorsement key.
    pub fn has_certificate(&self) -> Result<bool> {
        let found = self.pages()?.vtpm.has_certificate();
        found.context("vTPM: its certificate")
    }

    /// Nothing follows.
    pub fn shut_down(&self) -> Result<()> {
        self.pages()?.vtpm.shut_down().context("vTPM: shut-down")
    }

    /// Leaves the certificate of its endorsement key in the vTPM.
    pub fn deliver(&self, certificate: &[u8]) -> Result<()> {
        let delivered = self.pages()?.vtpm.deliver(certificate);
        delivered.context("vTPM: cannot write the certificate into its NV memory")
    }

    /// The vTPM's quote of now, and the log that explains it.
    pub fn quote(&self, key: &Key, qualifying_data: &[u8; 32]) -> Result<(Quote, Vec<u8>)> {
        let mut pages = self.pages()?;
        let quote = pages
            .vtpm
            .quote(key, qualifying_data, &QUOTED)
            .context("the vTPM does not quote")?;
        Ok((quote, pages.log.clone()))
    }

    pub fn record(&self, event: &Event) -> Result<()> {
        self.pages()?.append(&event.to_entry()?)
    }

    /// An execution of `path`: the first of this content is an entry of PCR 10. Whether it was the first.
    pub fn execution(&self, path: &[u8], digest: FileDigest) -> Result<bool> {
        let mut pages = self.pages()?;
        if pages.seen.contains(&(path.to_vec(), digest)) {
            return Ok(false);
        }
        pages.append(&Entry::file(digest, EncodedPath::of(path)?))?;
        pages.seen.insert((path.to_vec(), digest));
        Ok(true)
    }

    /// Whether a file of this content, wherever it lay, was recorded as executed.
    pub fn has_executed(&self, digest: &FileDigest) -> bool {
        let pages = self.pages();
        pages.is_ok_and(|pages| pages.seen.iter().any(|(_, seen)| seen == digest))
    }

    /// The rootfs's files, each by itself, in the order of their paths; then `done`. All of them or none.
    pub fn files(&self, files: &[(Vec<u8>, FileDigest)], done: &Event) -> Result<()> {
        let encoded =
            |(path, digest): &(Vec<u8>, FileDigest)| Ok((EncodedPath::of(path)?, *digest));
        let mut files: Vec<_> = files.iter().map(encoded).collect::<Result<_>>()?;
        files.sort_unstable_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        let count = files.len();
        let each = files.into_iter();
        let mut entries: Vec<Entry> = each
            .map(|(path, digest)| Entry::file(digest, path))
            .collect();
        entries.push(done.to_entry()?);
        let bytes: usize = entries.iter().map(|entry| entry.encode().len()).sum();
        let mut pages = self.pages()?;
        // half: the container's life is to be written down as well
        if !fits(pages.log.len() + bytes, bytes, pages.max_bytes) {
            return Err(Refused(format!(
                "refused: {} files measured by themselves are {bytes} bytes of log, more than half of its cap \
                 (vtpm.log_max_bytes = {}); let the policy have measure = \"manifest\" or \"listed\"",
                count,
                pages.max_bytes
            ))
            .into());
        }
        entries.iter().try_for_each(|entry| pages.append(entry))
    }
}

impl Pages {
    fn append(&mut self, entry: &Entry) -> Result<()> {
        let bytes = entry.encode();
        if self.capped || !fits(self.log.len(), bytes.len(), self.max_bytes) {
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

fn fits(log: usize, entry: usize, max_bytes: u64) -> bool {
    log as u64 + entry as u64 <= max_bytes.saturating_sub(RESERVE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::net::UnixStream};
    use verify::pcr;

    #[test]
    fn room_is_kept_for_the_last_word() {
        assert!(fits(0, 100, RESERVE_BYTES + 100));
        assert!(!fits(1, 100, RESERVE_BYTES + 100));
        assert!(!fits(0, 1, 0));
    }

    /// At the cap a shorter entry, which would still fit, is refused as well.
    #[test]
    fn nothing_follows_the_cap() {
        let path = std::env::temp_dir().join(format!("attestrun-journal-{}", std::process::id()));
        fs::remove_file(&path).ok();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let journal = Journal::new(Vtpm::new(ours), &path, 65536).unwrap();
        let mut pages = journal.pages().unwrap();
        pages.capped = true;
        let entry = Entry::buffer(pcr::LIFE, "attestrun.start", b"{}".to_vec()).unwrap();
        let error = pages.append(&entry).unwrap_err().to_string();
        assert!(error.contains("cap"), "{error}");
        assert!(pages.log.is_empty());
        fs::remove_file(path).unwrap();
    }
}
