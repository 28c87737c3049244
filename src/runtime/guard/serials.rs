//! Which serial of each signature list this host has seen: a list does not go back, whatever the image.
//!
//! `attestrun setup` makes the record, once, before it makes the host's key. From then on a record that
//! is missing or cannot be read is a failure and never a first time. Trusts: root's own directory.

use crate::{config, ipc::Refused};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use verify::{
    id::UnixTime,
    policy::{Admission, Programs, plain_text},
};

const VERSION: u32 = 1;
const RECORD: &str = "serials.json";
/// Taken for as long as the record is read, judged and replaced; never itself replaced.
const LOCK: &str = "serials.lock";
/// Some hundred thousand lists.
const MAX_RECORD: u64 = 64 << 20;

/// tenant → list's name → what was seen of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    lists: BTreeMap<String, BTreeMap<String, Seen>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    serial: u64,
    issued_at: UnixTime,
}

/// A list that is about to count.
#[derive(Debug, Clone, Copy)]
struct Claimed<'a> {
    tenant: &'a str,
    name: &'a str,
    seen: Seen,
}

/// The admitted list is no older than what this host has seen, and has been seen now; made here alone.
#[derive(Debug)]
pub struct Current(());

/// Compares the admission's list with the record, and records it. No list: nothing to compare.
pub fn advance(admission: &Admission, now: UnixTime) -> Result<Result<Current, Refused>> {
    let Programs::Listed(listed) = admission.programs() else {
        return Ok(Ok(Current(())));
    };
    let list = listed.list();
    let claimed = Claimed {
        tenant: listed.signer().tenant(),
        name: list.name(),
        seen: Seen {
            serial: list.serial(),
            issued_at: list.list().issued_at(),
        },
    };
    Ok(match Store::of_host().advance(claimed, now)? {
        Ok(()) => Ok(Current(())),
        Err(why) => Err(Refused(plain_text(&format!(
            "refused: {}: {why} [policy {} rule {}]",
            admission.made(),
            config::POLICY,
            admission.rule()
        )))),
    })
}

/// For `attestrun setup`: the record of a host that has none yet. `enrolled`: the host has its key, so
/// it had a record, and whoever removed it must be asked.
pub fn set_up(enrolled: bool) -> Result<()> {
    Store::of_host().set_up(enrolled)
}

/// For `attestrun doctor`: the record is there and whole.
pub fn readable() -> Result<()> {
    Store::of_host().read().map(drop)
}

struct Store {
    directory: PathBuf,
}

impl Store {
    fn of_host() -> Self {
        Self {
            directory: config::HOST_STATE.into(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(RECORD)
    }

    fn set_up(&self, enrolled: bool) -> Result<()> {
        fs::create_dir_all(&self.directory)
            .and_then(|()| {
                let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
                fs::set_permissions(&self.directory, private)
            })
            .with_context(|| format!("cannot make {}", self.directory.display()))?;
        let _lock = self.lock()?;
        let path = self.path();
        if path
            .try_exists()
            .with_context(|| path.display().to_string())?
        {
            return self.read().map(drop);
        }
        ensure!(
            !enrolled,
            "{} is missing, although this host was set up before: without it older lists could pass \
             again. Put it back from a backup; or, to begin anew, write `{}` into it",
            path.display(),
            serde_json::to_string(&Record::empty())?
        );
        self.write(&Record::empty())
    }

    fn advance(&self, claimed: Claimed<'_>, now: UnixTime) -> Result<Result<(), String>> {
        let _lock = self.lock()?;
        let mut record = self.read()?;
        if let Err(why) = record.judge(claimed, now) {
            return Ok(Err(why));
        }
        if record.take(claimed) {
            self.write(&record)?;
        }
        Ok(Ok(()))
    }

    fn lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK);
        let doing = || format!("cannot lock {}; `attestrun setup` makes it", path.display());
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .with_context(doing)?;
        flock(&file, FlockOperation::LockExclusive).with_context(doing)?;
        Ok(file)
    }

    fn read(&self) -> Result<Record> {
        let path = self.path();
        let doing = || {
            format!(
                "cannot read which lists were seen, {} (`attestrun setup` makes it on a new host; \
                 else put it back from a backup)",
                path.display()
            )
        };
        let file = File::options()
            .read(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .with_context(doing)?;
        let data = file.metadata().with_context(doing)?;
        let mut bytes = Vec::new();
        file.take(MAX_RECORD)
            .read_to_end(&mut bytes)
            .with_context(doing)?;
        let read = || -> Result<Record> {
            ensure!(data.is_file(), "it is no regular file");
            ensure!(
                data.uid() == rustix::process::geteuid().as_raw(),
                "it belongs to user {}",
                data.uid()
            );
            let others = Mode::WGRP | Mode::WOTH;
            ensure!(
                !Mode::from_raw_mode(data.mode()).intersects(others),
                "others than its owner may write to it"
            );
            let record: Record = serde_json::from_slice(&bytes).context("it is corrupt")?;
            match record.version {
                VERSION => Ok(record),
                other => bail!("its version is {other}, not {VERSION}"),
            }
        };
        read().with_context(doing)
    }

    /// The old record or the new one, whenever the power fails.
    fn write(&self, record: &Record) -> Result<()> {
        let (path, new) = (self.path(), self.directory.join(".serials.new"));
        let write = || -> Result<()> {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&new)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            Ok(sync(&self.directory)?)
        };
        write()
            .with_context(|| format!("cannot record which lists were seen in {}", path.display()))
    }
}

fn sync(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Record {
    fn empty() -> Self {
        Self {
            version: VERSION,
            lists: BTreeMap::new(),
        }
    }

    fn judge(&self, claimed: Claimed<'_>, now: UnixTime) -> Result<(), String> {
        let Claimed { tenant, name, seen } = claimed;
        let known = self.lists.get(tenant).and_then(|lists| lists.get(name));
        if let Some(known) = known.filter(|known| seen.serial < known.serial) {
            return Err(format!(
                "its list `{name}` of {tenant} has serial {}, and this host has seen serial {} of that \
                 list; sign the list anew with a higher serial, or give the image a list of its own name",
                seen.serial, known.serial
            ));
        }
        // Whoever sets the clock back revives what has run out.
        let latest = self
            .lists
            .values()
            .flat_map(BTreeMap::values)
            .map(|seen| seen.issued_at)
            .max();
        match latest.filter(|latest| now < *latest) {
            Some(latest) => Err(format!(
                "the clock says {now}, but this host has seen a list that was issued at {latest}; set \
                 the clock"
            )),
            None => Ok(()),
        }
    }

    /// Whether anything changed.
    fn take(&mut self, claimed: Claimed<'_>) -> bool {
        let Claimed { tenant, name, seen } = claimed;
        let lists = self.lists.entry(tenant.to_owned()).or_default();
        let new = match lists.get(name) {
            None => seen,
            Some(known) => Seen {
                serial: seen.serial.max(known.serial),
                issued_at: seen.issued_at.max(known.issued_at),
            },
        };
        lists.insert(name.to_owned(), new) != Some(new)
    }
}

#[cfg(test)]
#[path = "serials_tests.rs"]
mod tests;
