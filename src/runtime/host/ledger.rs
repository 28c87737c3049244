//! Which state each kept vTPM was left in. The file says it with a counter of the host TPM that never goes
//! back, under a MAC whose key only that TPM unseals: an older file, another host's or a changed one is told
//! from this one.
//!
//! Each change is written before it is counted, so the file may be one ahead after a crash: then it is
//! counted, and no other file with that number is ever written. Any other difference is a failure.

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use verify::digest::FileDigest;

/// The host TPM's.
pub trait Counter {
    fn read(&mut self) -> Result<u64>;
    /// Adds one; the new value.
    fn count(&mut self) -> Result<u64>;
}

/// What is known of one vTPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// It was left in this state by a container of this owner's.
    Left { state: FileDigest, owner: String },
    /// It was started, and has not said since in which state it was left.
    Running { owner: String },
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    counter: u64,
    vtpms: BTreeMap<String, Entry>,
}

pub struct Ledger {
    path: PathBuf,
    key: hmac::Key,
    page: Page,
    /// What is on the disk may be newer than `page`.
    unsettled: bool,
}

impl Ledger {
    /// A first one, empty; there must be none yet.
    pub fn begin(path: &Path, key: hmac::Key, counter: &mut dyn Counter) -> Result<()> {
        ensure!(!path.exists(), "{} exists already", path.display());
        let page = Page {
            counter: counter.read()?,
            vtpms: BTreeMap::new(),
        };
        write(path, &key, &page)
    }

    pub fn open(path: &Path, key: hmac::Key, counter: &mut dyn Counter) -> Result<Self> {
        let page = read(path, &key)?;
        let mut ledger = Self {
            path: path.to_owned(),
            key,
            page,
            unsettled: false,
        };
        ledger.settle(counter)?;
        Ok(ledger)
    }

    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.page.vtpms.get(name)
    }

    /// `None` removes it.
    pub fn set(
        &mut self,
        name: &str,
        entry: Option<Entry>,
        counter: &mut dyn Counter,
    ) -> Result<()> {
        if self.unsettled {
            self.page = read(&self.path, &self.key)?;
            self.settle(counter)?;
        }
        let mut page = self.page.clone();
        page.counter += 1;
        match entry {
            Some(entry) => page.vtpms.insert(name.to_owned(), entry),
            None => page.vtpms.remove(name),
        };
        self.unsettled = true;
        write(&self.path, &self.key, &page)?;
        let counted = counter.count()?;
        ensure!(
            counted == page.counter,
            "the host TPM counted to {counted}, not to {}: somebody else counts",
            page.counter
        );
        self.page = page;
        self.unsettled = false;
        Ok(())
    }

    fn settle(&mut self, counter: &mut dyn Counter) -> Result<()> {
        let (ours, theirs) = (self.page.counter, counter.read()?);
        if theirs.checked_add(1) == Some(ours) {
            counter.count()?;
        } else if ours != theirs {
            bail!(
                "{} was put back: it is of change {ours}, and the host TPM has counted {theirs}; no kept vTPM of this \
                 host can be trusted to be in the state it was left in",
                self.path.display()
            );
        }
        self.unsettled = false;
        Ok(())
    }
}

/// A line with the MAC, then the page.
fn read(path: &Path, key: &hmac::Key) -> Result<Page> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let wrong = || {
        format!(
            "{} is not what this host wrote: it was changed, or is another host's",
            path.display()
        )
    };
    let (mac, body) = text.split_once('\n').with_context(wrong)?;
    let mac = hex::decode(mac).ok().with_context(wrong)?;
    hmac::verify(key, body.as_bytes(), &mac)
        .ok()
        .with_context(wrong)?;
    serde_json::from_str(body).with_context(wrong)
}

fn write(path: &Path, key: &hmac::Key, page: &Page) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    let body = serde_json::to_string(page)?;
    let mac = hex::encode(hmac::sign(key, body.as_bytes()));
    let new = path.with_extension("new");
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = file.open(&new).with_context(doing)?;
    file.write_all(format!("{mac}\n{body}").as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .with_context(doing)?;
    let dir = path.parent().with_context(doing)?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tpm {
        value: u64,
        fails: bool,
    }
    impl Counter for Tpm {
        fn read(&mut self) -> Result<u64> {
            Ok(self.value)
        }
        fn count(&mut self) -> Result<u64> {
            ensure!(!self.fails, "no TPM");
            self.value += 1;
            Ok(self.value)
        }
    }

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[7; 32])
    }

    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("ledger-{name}-{}", std::process::id()));
            fs::remove_dir_all(&dir).ok();
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
        fn file(&self) -> PathBuf {
            self.0.join("ledger")
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn left(n: u8) -> Entry {
        Entry::Left {
            state: FileDigest::from_bytes([n; 32]),
            owner: "somebody".to_owned(),
        }
    }

    #[test]
    fn refuse_an_older_file_and_a_changed_one() {
        let dir = Dir::new("older");
        let mut tpm = Tpm {
            value: 40,
            fails: false,
        };
        Ledger::begin(&dir.file(), key(), &mut tpm).unwrap();
        assert!(Ledger::begin(&dir.file(), key(), &mut tpm).is_err());
        let mut ledger = Ledger::open(&dir.file(), key(), &mut tpm).unwrap();
        ledger.set("a", Some(left(1)), &mut tpm).unwrap();
        let running = Entry::Running {
            owner: "somebody".to_owned(),
        };
        let older = fs::read(dir.file()).unwrap();
        ledger.set("a", Some(running.clone()), &mut tpm).unwrap();
        ledger.set("b", Some(left(2)), &mut tpm).unwrap();
        ledger.set("b", None, &mut tpm).unwrap();
        let again = Ledger::open(&dir.file(), key(), &mut tpm).unwrap();
        assert_eq!(again.entry("a"), Some(&running));
        assert_eq!((again.entry("b"), tpm.value), (None, 44));
        let error = |tpm: &mut Tpm, key| Ledger::open(&dir.file(), key, tpm).err().unwrap();
        let newer = fs::read(dir.file()).unwrap();
        fs::write(dir.file(), &older).unwrap();
        assert!(error(&mut tpm, key()).to_string().contains("put back"));
        for at in 0..newer.len() {
            let mut changed = newer.clone();
            changed[at] ^= 1;
            fs::write(dir.file(), &changed).unwrap();
            error(&mut tpm, key());
        }
        fs::write(dir.file(), &newer).unwrap();
        let other = hmac::Key::new(hmac::HMAC_SHA256, &[8; 32]);
        assert!(error(&mut tpm, other).to_string().contains("another host"));
        // a TPM that was cleared, or is another one, counts from elsewhere
        for value in [0, 42, 45, 46] {
            let mut other = Tpm {
                value,
                fails: false,
            };
            error(&mut other, key());
        }
        Ledger::open(&dir.file(), key(), &mut tpm).unwrap();
    }

    #[test]
    fn what_a_crash_left_uncounted_is_counted() {
        let dir = Dir::new("crash");
        let mut tpm = Tpm {
            value: 1,
            fails: false,
        };
        Ledger::begin(&dir.file(), key(), &mut tpm).unwrap();
        let mut ledger = Ledger::open(&dir.file(), key(), &mut tpm).unwrap();
        tpm.fails = true;
        assert!(ledger.set("a", Some(left(1)), &mut tpm).is_err());
        tpm.fails = false;
        // the next change of the same process
        ledger.set("c", Some(left(3)), &mut tpm).unwrap();
        assert_eq!((ledger.entry("a"), tpm.value), (Some(&left(1)), 3));
        // and another process
        tpm.fails = true;
        assert!(ledger.set("b", Some(left(2)), &mut tpm).is_err());
        tpm.fails = false;
        let ledger = Ledger::open(&dir.file(), key(), &mut tpm).unwrap();
        assert_eq!((ledger.entry("b"), tpm.value), (Some(&left(2)), 4));
    }
}
