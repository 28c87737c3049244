//! Kept states of vTPMs (`vtpm.persistent`): whose each is, which is the last one, and the key that opens it.
//!
//! A guard asks for the key when it starts its vTPM, says when its container starts, and in which state the
//! vTPM was left when that has ended. In between, and if the end is never told, nobody is given the state.

use super::{Core, State, save};
use crate::{
    host::{
        OpenedVtpm,
        ledger::{Counter, Entry, Ledger},
        service::{VTPM_LEDGER, VTPM_MASTER},
    },
    ipc::Refused,
};
use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use std::{
    fs,
    io::ErrorKind,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tpm::host::{HostTpm, MasterBlob};
use verify::digest::FileDigest;

pub struct Kept {
    blob: MasterBlob,
    secret: hmac::Key,
    ledger: Mutex<Ledger>,
}

struct OnTpm<'a> {
    tpm: &'a mut HostTpm,
    blob: &'a MasterBlob,
}

impl Counter for OnTpm<'_> {
    fn read(&mut self) -> Result<u64> {
        Ok(self.tpm.counter(self.blob)?)
    }
    fn count(&mut self) -> Result<u64> {
        Ok(self.tpm.count(self.blob)?)
    }
}

/// HKDF-Expand (RFC 5869, 2.3) of one block; the secret is random and needs no extraction.
fn derived(secret: &hmac::Key, purpose: &str, name: &str) -> [u8; 32] {
    let info = format!("attestrun-vtpm-{purpose}-v1\0{name}\u{1}");
    let mut key = [0; 32];
    let block = hmac::sign(secret, info.as_bytes());
    key.iter_mut()
        .zip(block.as_ref())
        .for_each(|(to, from)| *to = *from);
    key
}

fn ledger_key(secret: &hmac::Key) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &derived(secret, "ledger", ""))
}

impl Kept {
    /// What `attestrun setup` has made.
    pub fn open(tpm: &mut HostTpm) -> Result<Self> {
        let bytes = fs::read(VTPM_MASTER).with_context(|| {
            format!(
                "cannot read {VTPM_MASTER}, which vtpm.persistent needs; `attestrun setup` makes it"
            )
        })?;
        let (blob, secret) = unseal(tpm, &bytes)?;
        let mut counter = OnTpm { tpm, blob: &blob };
        let ledger = Ledger::open(Path::new(VTPM_LEDGER), ledger_key(&secret), &mut counter)?;
        Ok(Self {
            blob,
            secret,
            ledger: Mutex::new(ledger),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // a thread that panicked left it unsettled: the next change reads it anew
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unseal(tpm: &mut HostTpm, bytes: &[u8]) -> Result<(MasterBlob, hmac::Key)> {
    let blob = MasterBlob::parse(bytes).with_context(|| format!("{VTPM_MASTER} is corrupt"))?;
    let secret = tpm
        .unseal_master(&blob)
        .with_context(|| format!("the host TPM does not unseal {VTPM_MASTER}"))?;
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    Ok((blob, secret))
}

/// Makes secret, counter and an empty ledger, once.
pub fn enroll(tpm: &mut HostTpm) -> Result<()> {
    match fs::read(VTPM_MASTER) {
        Ok(_) => Kept::open(tpm).map(drop),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let made = tpm.create_master()?;
            let (blob, secret) = unseal(tpm, &made.encode())?;
            tpm.define_counter(&blob)?;
            let mut counter = OnTpm { tpm, blob: &blob };
            Ledger::begin(Path::new(VTPM_LEDGER), ledger_key(&secret), &mut counter)?;
            // last: who finds it finds the others
            save(Path::new(VTPM_MASTER), &blob.encode())
        }
        Err(e) => Err(e).with_context(|| format!("cannot read {VTPM_MASTER}")),
    }
}

impl Core {
    fn kept(&self) -> Result<&Kept> {
        self.kept.as_ref().context(
            "the host service runs with a configuration without vtpm.persistent: restart it",
        )
    }

    /// The key of a kept vTPM, and the state that it was left in; no state: it begins now.
    pub fn open_vtpm(&self, name: &str) -> Result<OpenedVtpm> {
        let kept = self.kept()?;
        let state = match kept.ledger().entry(name) {
            Some(Entry::Running { .. }) => return Err(torn(name)),
            Some(Entry::Left { state, .. }) => Some(*state),
            None => None,
        };
        let key = BASE64.encode(derived(&kept.secret, "state", name));
        Ok(OpenedVtpm { key, state })
    }

    /// A container of `owner`'s starts, from `state`: until its end is told nobody else gets it.
    pub fn vtpm_runs(&self, name: &str, state: Option<FileDigest>, owner: String) -> Result<()> {
        self.change(name, |entry| {
            let refuse =
                |why| Err(Refused(format!("refused: the state of vTPM {name} {why}")).into());
            match (entry, state) {
                (Some(Entry::Running { .. }), _) => return Err(torn(name)),
                (Some(Entry::Left { owner: whose, .. }), _) if *whose != owner => {
                    return refuse(format!(
                        "is one of {whose}, and this container is one of {owner}"
                    ));
                }
                (Some(Entry::Left { state: left, .. }), Some(state)) if *left == state => {}
                (None, None) => {}
                _ => return refuse("has changed since this container was created".to_owned()),
            }
            Ok(Entry::Running { owner })
        })
    }

    /// The container has ended, and left its vTPM in `state`.
    pub fn vtpm_ended(&self, name: &str, state: FileDigest) -> Result<()> {
        self.change(name, |entry| match entry {
            Some(Entry::Running { owner }) => Ok(Entry::Left {
                state,
                owner: owner.clone(),
            }),
            _ => bail!("vTPM {name} does not run"),
        })
    }

    /// An administrator gives a state up.
    pub fn forget_vtpm(&self, name: &str) -> Result<()> {
        let kept = self.kept()?;
        let mut ledger = kept.ledger();
        let entry = ledger.entry(name);
        ensure!(entry.is_some(), "this host keeps no vTPM {name}");
        let State { tpm, .. } = &mut *self.state();
        let blob = &kept.blob;
        ledger.set(name, None, &mut OnTpm { tpm, blob })
    }

    fn change(&self, name: &str, to: impl FnOnce(Option<&Entry>) -> Result<Entry>) -> Result<()> {
        let kept = self.kept()?;
        let mut ledger = kept.ledger();
        let entry = to(ledger.entry(name))?;
        let State { tpm, .. } = &mut *self.state();
        let blob = &kept.blob;
        ledger.set(name, Some(entry), &mut OnTpm { tpm, blob })
    }
}

fn torn(name: &str) -> anyhow::Error {
    Refused(format!(
        "refused: vTPM {name} runs, or its guard was killed before it could say in which state it was left: a state \
         found now may be an older one. `attestrun host forget {name}` gives the state up; then a new vTPM begins"
    ))
    .into()
}
