//! What a challenger remembers between challenges, in one file: each TPM's counters, clock and log, and the
//! highest serial of each list. It is how a rollback shows that one answer alone cannot show.
//!
//! Trusts: the file, which is the challenger's own. A file that cannot be read is a failure, never a first
//! time. Of two states of a TPM the later one stays, whoever writes last.

use anyhow::{Context as _, bail};
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableTable as _, TableDefinition,
    TableError,
};
use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use verify::{
    appraise::{Before, Expectations, Memory, Seen, TpmState},
    evidence::Evidence,
    tpm2::{Public, TpmName},
    wire::{Has, Prefix},
};

/// Attestation key's name -> [`TpmState`] in JSON.
const TPMS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tpms-v1");
/// Attestation key's name -> the log behind its PCRs.
const LOGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("logs-v1");
/// Agent and container -> the names of the two keys that answered last.
const KEYS: TableDefinition<'_, (&str, &str), (&str, &str)> = TableDefinition::new("keys-v1");
/// Tenant and name of a list -> its highest serial.
const LISTS: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("lists-v1");

/// Another process may be in the middle of a challenge.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Store {
    database: Database,
    path: PathBuf,
}

/// What was known before the question was sent: an answer is never compared with a later one.
pub struct Snapshot {
    read: ReadTransaction,
}

/// The logs that an earlier answer left, and need not be sent again.
#[derive(Default)]
pub struct Kept {
    container: Vec<u8>,
    host: Vec<u8>,
}

impl Kept {
    pub fn has(&self) -> Has {
        Has {
            container: Prefix::of(&self.container),
            host: Prefix::of(&self.host),
        }
    }
    /// The evidence with its logs in one piece.
    pub fn complete(&self, evidence: Evidence) -> Evidence {
        evidence.with(&self.container, &self.host)
    }
}

impl Store {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("opening the challenger's memory {}", path.display());
        let since = Instant::now();
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .with_context(|| format!("{} (or name another place with --memory)", context()))?;
            match Builder::new().create_file(file) {
                Ok(database) => {
                    let path = path.to_owned();
                    return Ok(Self { database, path });
                }
                Err(DatabaseError::DatabaseAlreadyOpen) if since.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(e) => return Err(e).with_context(context),
            }
        }
    }

    pub fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let read = self.database.begin_read().with_context(|| self.reading())?;
        Ok(Snapshot { read })
    }

    /// Remembers what an appraisal proved.
    pub fn remember(
        &self,
        agent: &str,
        expect: &Expectations,
        evidence: &Evidence,
        container: &str,
        seen: Seen,
    ) -> anyhow::Result<()> {
        let context = || format!("writing the challenger's memory {}", self.path.display());
        let write = self.database.begin_write().with_context(context)?;
        {
            let mut tpms = write.open_table(TPMS).with_context(context)?;
            let mut logs = write.open_table(LOGS).with_context(context)?;
            let (host, vtpm) = (seen.host.0.to_string(), seen.container.0.to_string());
            for (name, state, log) in [
                (&host, seen.host.1, &evidence.binding_log),
                (&vtpm, seen.container.1, &evidence.container_log),
            ] {
                let old = tpms.get(name.as_str()).with_context(context)?;
                let old = old.map(|old| parse(old.value())).transpose()?;
                let later = match old {
                    Some(old) => state.clone().later(old),
                    None => state.clone(),
                };
                if later != state {
                    continue;
                }
                let bytes = serde_json::to_vec(&later).with_context(context)?;
                tpms.insert(name.as_str(), bytes.as_slice())
                    .with_context(context)?;
                logs.insert(name.as_str(), log.as_slice())
                    .with_context(context)?;
            }
            let mut keys = write.open_table(KEYS).with_context(context)?;
            keys.insert((agent, container), (host.as_str(), vtpm.as_str()))
                .with_context(context)?;
            let mut lists = write.open_table(LISTS).with_context(context)?;
            let list = (expect.tenant.as_str(), expect.list.name.as_str());
            let old = lists.get(list).with_context(context)?.map(|n| n.value());
            if seen.list_serial > old.unwrap_or(0) {
                lists.insert(list, seen.list_serial).with_context(context)?;
            }
        }
        write.commit().with_context(context)
    }

    fn reading(&self) -> String {
        format!("reading the challenger's memory {}", self.path.display())
    }
}

impl Snapshot {
    /// The logs of the two keys that answered for this container last.
    pub fn kept(&self, agent: &str, container: &str) -> anyhow::Result<Kept> {
        let keys = match self.read.open_table(KEYS) {
            Ok(table) => table.get((agent, container))?.map(|keys| {
                let (host, vtpm) = keys.value();
                (host.to_owned(), vtpm.to_owned())
            }),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(e).context("reading the challenger's memory"),
        };
        let Some((host, vtpm)) = keys else {
            return Ok(Kept::default());
        };
        let logs = self.read.open_table(LOGS)?;
        let log = |name: &str| -> anyhow::Result<Vec<u8>> {
            let log = logs.get(name)?.map(|log| log.value().to_vec());
            log.with_context(|| format!("the challenger's memory lost the log of {name}"))
        };
        Ok(Kept {
            container: log(&vtpm)?,
            host: log(&host)?,
        })
    }

    /// What to compare the evidence with.
    pub fn memory(&self, evidence: &Evidence, expect: &Expectations) -> anyhow::Result<Memory> {
        let list = (expect.tenant.as_str(), expect.list.name.as_str());
        let list_serial = match self.read.open_table(LISTS) {
            Ok(table) => table.get(list)?.map_or(0, |serial| serial.value()),
            Err(TableError::TableDoesNotExist(_)) => 0,
            Err(e) => return Err(e).context("reading the challenger's memory"),
        };
        Ok(Memory::Fresh {
            host: self.before(&evidence.host_ak)?,
            container: self.before(&evidence.container_ak)?,
            list_serial,
        })
    }

    fn before(&self, public: &[u8]) -> anyhow::Result<Before> {
        // A key that is none is refused by its own check.
        let Ok(public) = Public::parse_2b(public) else {
            return Ok(Before::Never);
        };
        let name: TpmName = public.name();
        match self.read.open_table(TPMS) {
            Ok(table) => match table.get(name.to_string().as_str())? {
                Some(state) => Ok(Before::Seen(parse(state.value())?)),
                None => Ok(Before::Never),
            },
            Err(TableError::TableDoesNotExist(_)) => Ok(Before::Never),
            Err(e) => Err(e).context("reading the challenger's memory"),
        }
    }
}

fn parse(bytes: &[u8]) -> anyhow::Result<TpmState> {
    match serde_json::from_slice(bytes) {
        Ok(state) => Ok(state),
        Err(e) => bail!("the challenger's memory is corrupt: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_is_no_memory_is_not_taken_for_a_new_one() {
        let dir = Scratch::new();
        let path = dir.path().join("memory");
        std::fs::write(
            &path,
            "not a database, and long enough to be looked at".repeat(100),
        )
        .unwrap();
        let error = Store::open(&path).map(drop).unwrap_err();
        assert!(format!("{error:#}").contains("memory"), "{error:#}");
        let new = dir.path().join("new");
        drop(Store::open(&new).unwrap());
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&new).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // and again, with nothing in it
        let store = Store::open(&new).unwrap();
        let kept = store.snapshot().unwrap().kept("a", "c").unwrap();
        assert!(kept.has().is_nothing());
    }
}
