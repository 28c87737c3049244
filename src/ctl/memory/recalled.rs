//! All that is remembered, at hand: a fleet's round reads no file while it runs, and writes once after it.

use super::{
    Kept, LISTS, Learned, ROLLING, SIGLISTS, Snapshot, TPMS, is_later, kept_list, memory_of, parse,
};
use anyhow::Context as _;
use redb::{ReadableTable as _, TableError};
use std::{collections::HashMap, sync::Arc};
use verify::{
    appraise::{Expectations, KeptList, Memory, TpmState},
    evidence::Evidence,
};

#[derive(Default)]
pub struct Recalled {
    tpms: HashMap<String, TpmState>,
    serials: HashMap<(String, String), u64>,
    kept: HashMap<(String, String), Kept>,
}

impl Recalled {
    pub fn load(snapshot: &Snapshot) -> anyhow::Result<Self> {
        let mut all = Self::default();
        all.read(snapshot)
            .context("reading the challenger's memory")?;
        Ok(all)
    }

    fn read(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        // The first thing that is ever written makes all of them.
        let tpms = match snapshot.read.open_table(TPMS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        for entry in tpms.iter()? {
            let (name, state) = entry?;
            self.tpms
                .insert(name.value().to_owned(), parse(state.value())?);
        }
        for entry in snapshot.read.open_table(LISTS)?.iter()? {
            let (list, serial) = entry?;
            let (tenant, name) = list.value();
            let list = (tenant.to_owned(), name.to_owned());
            self.serials.insert(list, serial.value());
        }
        let mut lists: HashMap<String, Arc<KeptList>> = HashMap::new();
        for entry in snapshot.read.open_table(SIGLISTS)?.iter()? {
            let (digest, list) = entry?;
            lists.insert(digest.value().to_owned(), kept_list(list.value()));
        }
        for entry in snapshot.read.open_table(ROLLING)?.iter()? {
            let (place, entry) = entry?;
            let (agent, container) = place.value();
            let (digest, rolling) = entry.value();
            let siglist = match digest {
                "" => None,
                digest => Some(lists.get(digest).context("a signature list is lost")?),
            };
            let kept = Kept {
                rolling: Some(Arc::new(parse(rolling)?)),
                siglist: siglist.cloned(),
            };
            let place = (agent.to_owned(), container.to_owned());
            self.kept.insert(place, kept);
        }
        Ok(())
    }

    pub fn kept(&self, agent: &str, container: &str) -> Kept {
        let place = (agent.to_owned(), container.to_owned());
        self.kept.get(&place).cloned().unwrap_or_default()
    }

    /// What to compare the evidence with.
    pub fn memory(
        &self,
        kept: &Kept,
        evidence: &Evidence,
        expect: &Expectations,
    ) -> anyhow::Result<Memory> {
        let list = (expect.tenant.clone(), expect.list.name.clone());
        let serial = self.serials.get(&list).copied().unwrap_or(0);
        memory_of(kept, evidence, serial, |name| {
            Ok(self.tpms.get(name).cloned())
        })
    }

    pub fn learn(&mut self, learned: Learned) {
        let mut latest = false;
        for (name, state) in [&learned.seen.host, &learned.seen.container] {
            let name = name.to_string();
            latest = is_later(state, self.tpms.get(&name).cloned());
            if latest {
                self.tpms.insert(name, state.clone());
            }
        }
        let serial = self.serials.entry(learned.list).or_default();
        *serial = learned.seen.list_serial.max(*serial);
        let place = (learned.agent, learned.container);
        match learned.kept.rolling {
            Some(_) if latest => drop(self.kept.insert(place, learned.kept)),
            None if latest => drop(self.kept.remove(&place)),
            _ => {}
        }
    }
}
