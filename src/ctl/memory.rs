//! What a challenger remembers between challenges, in one file: each TPM's counters, clock and how far its log
//! went, the highest serial of each list, and from where a container's accepted log goes on. It is how a
//! rollback shows that one answer alone cannot show, and why only what is new is sent and judged.
//!
//! Trusts: the file, which is the challenger's own. A file that cannot be read is a failure, never a first
//! time. Of two states of a TPM the later one stays, whoever writes last.

mod recalled;
pub use recalled::Recalled;

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
    appraise::{Before, Expectations, KeptList, Memory, Rolling, Seen, Standard, TpmState},
    evidence::Evidence,
    id::ContainerId,
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
#[derive(Clone, Default)]
pub struct Kept {
    rolling: Option<Arc<Rolling>>,
    siglist: Option<Arc<KeptList>>,
}

impl Kept {
    pub fn has(&self, standard: &Standard) -> Has {
        let rolling = self.rolling.as_ref();
        Has {
            siglist: self.siglist.as_ref().map(|list| list.digest()),
            ..rolling.map_or_else(Has::default, |rolling| rolling.has(standard))
        }
    }
}

/// What one answer proved.
pub struct Learned {
    agent: String,
    container: String,
    /// Tenant and name of the list.
    list: (String, String),
    seen: Seen,
    kept: Kept,
}

impl Learned {
    /// `before`: what was kept when the question was sent.
    pub fn new(
        agent: String,
        container: &ContainerId,
        expect: &Expectations,
        evidence: &Evidence,
        before: &Kept,
        (seen, rolling): (Seen, Option<Rolling>),
    ) -> Self {
        let siglist = match evidence.log_from.siglist {
            true => before.siglist.clone(),
            false if evidence.siglist.is_empty() => None,
            false => {
                let (statement, signature) = (&evidence.siglist, &evidence.siglist_sig);
                let list = KeptList::new(statement.clone(), signature.clone());
                Some(Arc::new(list))
            }
        };
        // What was not accepted must be read anew, and in full.
        let kept = rolling.map(|rolling| Kept {
            rolling: Some(Arc::new(rolling)),
            siglist,
        });
        Self {
            agent,
            container: container.as_str().to_owned(),
            list: (expect.tenant.clone(), expect.list.name.clone()),
            seen,
            kept: kept.unwrap_or_default(),
        }
    }
}

/// Whether `state` is later than what is known, or there is nothing known.
fn is_later(state: &TpmState, known: Option<TpmState>) -> bool {
    known.is_none_or(|known| state.clone().later(known) == *state)
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

    /// Remembers what appraisals proved, all of it or nothing.
    pub fn remember(&self, all: &[Learned]) -> anyhow::Result<()> {
        let context = || format!("writing the challenger's memory {}", self.path.display());
        let write = self.database.begin_write().with_context(context)?;
        for learned in all {
            put(&write, learned).with_context(context)?;
        }
        forget_lists(&write).with_context(context)?;
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
        let rolling = Some(Arc::new(parse(rolling)?));
        if digest.is_empty() {
            let siglist = None;
            return Ok(Kept { rolling, siglist });
        }
        let lists = self.read.open_table(SIGLISTS)?;
        let list = lists.get(digest)?.map(|list| kept_list(list.value()));
        let lost = || format!("the challenger's memory lost the signature list {digest}");
        let siglist = Some(list.with_context(lost)?);
        Ok(Kept { rolling, siglist })
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
        memory_of(kept, evidence, list_serial, |name| {
            match self.read.open_table(TPMS) {
                Ok(table) => table
                    .get(name)?
                    .map(|state| parse(state.value()))
                    .transpose(),
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                Err(e) => Err(e).context("reading the challenger's memory"),
            }
        })
    }
}

fn kept_list((statement, signature): (&[u8], &[u8])) -> Arc<KeptList> {
    Arc::new(KeptList::new(statement.to_vec(), signature.to_vec()))
}

/// `known`: a TPM's state by its attestation key's name.
fn memory_of(
    kept: &Kept,
    evidence: &Evidence,
    list_serial: u64,
    known: impl Fn(&str) -> anyhow::Result<Option<TpmState>>,
) -> anyhow::Result<Memory> {
    let before = |public: &[u8]| -> anyhow::Result<Before> {
        // A key that is none is refused by its own check.
        let Ok(public) = Public::parse_2b(public) else {
            return Ok(Before::Never);
        };
        let name: TpmName = public.name();
        Ok(known(&name.to_string())?.map_or(Before::Never, Before::Seen))
    };
    Ok(Memory::Fresh {
        host: before(&evidence.host_ak)?,
        container: before(&evidence.container_ak)?,
        list_serial,
        rolling: kept.rolling.clone(),
        siglist: kept.siglist.clone(),
    })
}

fn put(write: &WriteTransaction, learned: &Learned) -> anyhow::Result<()> {
    let Learned { seen, kept, .. } = learned;
    let mut tpms = write.open_table(TPMS)?;
    let mut latest = false;
    for (name, state) in [&seen.host, &seen.container] {
        let name = name.to_string();
        let known = tpms.get(&*name)?;
        let known = known.map(|known| parse(known.value())).transpose()?;
        latest = is_later(state, known);
        if latest {
            tpms.insert(&*name, &*serde_json::to_vec(state)?)?;
        }
    }
    let mut lists = write.open_table(LISTS)?;
    let list = (&*learned.list.0, &*learned.list.1);
    let known = lists.get(list)?.map_or(0, |serial| serial.value());
    if seen.list_serial > known {
        lists.insert(list, seen.list_serial)?;
    }
    // the container's, which came last
    if !latest {
        return Ok(());
    }
    let mut table = write.open_table(ROLLING)?;
    let place = (&*learned.agent, &*learned.container);
    let Some(rolling) = &kept.rolling else {
        table.remove(place)?;
        return Ok(());
    };
    let digest = kept.siglist.as_ref().map(|list| list.digest().hex());
    let digest = digest.unwrap_or_default();
    table.insert(place, (&*digest, &*serde_json::to_vec(&**rolling)?))?;
    if let Some(list) = &kept.siglist {
        let mut lists = write.open_table(SIGLISTS)?;
        if lists.get(&*digest)?.is_none() {
            lists.insert(&*digest, (list.statement(), list.signature()))?;
        }
    }
    Ok(())
}

/// Those that nobody has any more.
fn forget_lists(write: &WriteTransaction) -> anyhow::Result<()> {
    let mut lists = write.open_table(SIGLISTS)?;
    let mut used = BTreeSet::new();
    for entry in write.open_table(ROLLING)?.iter()? {
        used.insert(entry?.1.value().0.to_owned());
    }
    Ok(lists.retain(|digest, _| used.contains(digest))?)
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
