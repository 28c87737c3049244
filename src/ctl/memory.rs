//! What a challenger remembers between challenges, in one file: each TPM's counters, clock and how far its log
//! went, the highest serial of each list, and from where a container's accepted log goes on. It is how a
//! rollback shows that one answer alone cannot show, and why only what is new is sent and judged.
//!
//! Trusts: the file, which is the challenger's own. A file that cannot be read is a failure, never a first
//! time. Of two states of a TPM the later one stays, whoever writes last.

use anyhow::{Context as _, bail};
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableTable as _, TableDefinition,
    TableError, WriteTransaction,
};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use verify::{
    appraise::{Before, Expectations, Memory, Rolling, Seen, Standard},
    evidence::{Evidence, list_digest},
    tpm2::{Public, TpmName},
    wire::Has,
};

/// Attestation key's name -> [`TpmState`] in JSON.
const TPMS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tpms-v1");
/// Agent and container -> digest of its signature list (or nothing), and the [`Rolling`] of its last accepted
/// answer in JSON.
const ROLLING: TableDefinition<'_, (&str, &str), (&str, &[u8])> =
    TableDefinition::new("rolling-v1");
/// Digest -> a signature list, and its signature.
const SIGLISTS: TableDefinition<'_, &str, (&[u8], &[u8])> = TableDefinition::new("siglists-v1");
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

/// What an earlier answer left, and need not be sent again.
#[derive(Default)]
pub struct Kept {
    rolling: Option<Arc<Rolling>>,
    /// A signature list and its signature.
    siglist: Option<(Vec<u8>, Vec<u8>)>,
}

impl Kept {
    pub fn has(&self, standard: &Standard) -> Has {
        let siglist = self.siglist.as_ref();
        Has {
            siglist: siglist.map(|(statement, signature)| list_digest(statement, signature)),
            ..(self.rolling.as_ref()).map_or_else(Has::default, |rolling| rolling.has(standard))
        }
    }
    /// The evidence with the list that it leaves out.
    pub fn complete(&self, evidence: Evidence) -> Evidence {
        match &self.siglist {
            Some((statement, signature)) => evidence.with_list(statement, signature),
            None => evidence,
        }
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
        rolling: Option<&Rolling>,
    ) -> anyhow::Result<()> {
        let context = || format!("writing the challenger's memory {}", self.path.display());
        let write = self.database.begin_write().with_context(context)?;
        let (_, vtpm) = &seen.container;
        let mut latest = true;
        {
            let mut tpms = write.open_table(TPMS).with_context(context)?;
            for (name, state) in [&seen.host, &seen.container] {
                let name = name.to_string();
                let old = tpms.get(name.as_str()).with_context(context)?;
                let old = old.map(|old| parse(old.value())).transpose()?;
                let later = match old {
                    Some(old) => state.clone().later(old),
                    None => state.clone(),
                };
                if later != *state {
                    latest &= state != vtpm;
                    continue;
                }
                let bytes = serde_json::to_vec(&later).with_context(context)?;
                tpms.insert(name.as_str(), bytes.as_slice())
                    .with_context(context)?;
            }
            let mut lists = write.open_table(LISTS).with_context(context)?;
            let list = (expect.tenant.as_str(), expect.list.name.as_str());
            let old = lists.get(list).with_context(context)?.map(|n| n.value());
            if seen.list_serial > old.unwrap_or(0) {
                lists.insert(list, seen.list_serial).with_context(context)?;
            }
        }
        if latest {
            roll(&write, (agent, container), evidence, rolling).with_context(context)?;
        }
        write.commit().with_context(context)
    }

    fn reading(&self) -> String {
        format!("reading the challenger's memory {}", self.path.display())
    }
}

impl Snapshot {
    /// What this container's last accepted answer left.
    pub fn kept(&self, agent: &str, container: &str) -> anyhow::Result<Kept> {
        let entry = match self.read.open_table(ROLLING) {
            Ok(table) => table.get((agent, container))?,
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(e).context("reading the challenger's memory"),
        };
        let Some(entry) = entry else {
            return Ok(Kept::default());
        };
        let (digest, rolling) = entry.value();
        let siglist = match digest {
            "" => None,
            digest => {
                let lists = self.read.open_table(SIGLISTS)?;
                let list = lists.get(digest)?.map(|list| {
                    let (statement, signature) = list.value();
                    (statement.to_vec(), signature.to_vec())
                });
                let lost = || format!("the challenger's memory lost the signature list {digest}");
                Some(list.with_context(lost)?)
            }
        };
        Ok(Kept {
            rolling: Some(Arc::new(parse(rolling)?)),
            siglist,
        })
    }

    /// What to compare the evidence with.
    pub fn memory(
        &self,
        kept: &Kept,
        evidence: &Evidence,
        expect: &Expectations,
    ) -> anyhow::Result<Memory> {
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
            rolling: kept.rolling.clone(),
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

/// From where the next answer of this container goes on. One that was not accepted must be read anew, and in
/// full.
fn roll(
    write: &WriteTransaction,
    place: (&str, &str),
    evidence: &Evidence,
    rolling: Option<&Rolling>,
) -> anyhow::Result<()> {
    let mut table = write.open_table(ROLLING)?;
    let Some(rolling) = rolling else {
        table.remove(place)?;
        return Ok(());
    };
    let mut lists = write.open_table(SIGLISTS)?;
    let (statement, signature) = (&evidence.siglist, &evidence.siglist_sig);
    let digest = match statement.is_empty() {
        true => String::new(),
        false => list_digest(statement, signature).hex(),
    };
    table.insert(place, (&*digest, &*serde_json::to_vec(rolling)?))?;
    if !digest.is_empty() && lists.get(&*digest)?.is_none() {
        lists.insert(&*digest, (&**statement, &**signature))?;
        // A new list often takes the place of one that nobody has any more.
        let mut used = BTreeSet::new();
        for entry in table.iter()? {
            used.insert(entry?.1.value().0.to_owned());
        }
        lists.retain(|digest, _| used.contains(digest))?;
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
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
        assert!(kept.rolling.is_none() && kept.siglist.is_none());
    }
}
