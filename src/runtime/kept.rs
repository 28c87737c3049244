//! A vTPM whose state outlives its container (`vtpm.persistent`, and the container asks for it): its name,
//! its file, and the guard's side of what the host service knows of it.
//!
//! The state is swtpm's, encrypted with a key that the host service derives for this name. It is brought into
//! the run directory when the vTPM starts and taken back when that was shut down; what it was then is
//! told to the host service, which gives the key for nothing else. A state that is missing, older, another
//! container's or another host's is refused: a vTPM begins anew only where there never was one.

use crate::{
    config::{Config, VTPM_STATES},
    host::{Client, OfVtpm, OpenedVtpm},
    ipc::Refused,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use oci_spec::runtime::Spec;
use rustix::{
    fs::{Mode, OFlags, open},
    pipe::{PipeFlags, pipe_with},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, DirBuilder, File},
    io::{ErrorKind, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, chown},
    },
    path::{Path, PathBuf},
};
use tpm::swtpm::STATE;
use verify::{digest::FileDigest, id::ContainerId};

/// By it a container asks.
const ANNOTATION: &str = "dev.attestrun.vtpm.persistent";
/// libtpms has room for 128 KiB in all.
const MAX_STATE: u64 = 1 << 20;

/// Whose vTPM it is, if its state is to be kept: the same container's under the same engine, by a name that
/// is a file's.
pub fn wanted(
    spec: &Spec,
    config: &Config,
    state_root: &Path,
    id: &ContainerId,
) -> Result<Option<String>> {
    let annotations = spec.annotations().as_ref();
    match annotations
        .and_then(|all| all.get(ANNOTATION))
        .map(String::as_str)
    {
        None | Some("false") => Ok(None),
        Some("true") if config.vtpm.persistent => {
            let root = state_root.as_os_str().as_encoded_bytes();
            let mut hash = Sha256::new_with_prefix(b"attestrun-vtpm-name-v1");
            hash.update((root.len() as u64).to_be_bytes());
            hash.update(root);
            hash.update(id.as_str());
            Ok(Some(hex::encode(hash.finalize())))
        }
        Some("true") => bail!(
            "annotation {ANNOTATION}: this host keeps no vTPM's state (vtpm.persistent in {})",
            crate::config::PATH
        ),
        Some(other) => bail!("annotation {ANNOTATION}: `{other}` is neither `true` nor `false`"),
    }
}

/// A kept vTPM, as its guard has it.
pub struct KeptVtpm {
    config: Config,
    name: String,
    key: [u8; 32],
    state: Option<FileDigest>,
    runs: bool,
}

impl KeptVtpm {
    pub fn open(config: &Config, name: &str) -> Result<Self> {
        let opened: OpenedVtpm = Client::connect(config)?.of_vtpm(OfVtpm::Open {
            name: name.to_owned(),
        })?;
        let key = BASE64.decode(&opened.key).context("the vTPM's key")?;
        let key = key
            .try_into()
            .ok()
            .context("the vTPM's key is not 32 bytes long")?;
        Ok(Self {
            config: config.clone(),
            name: name.to_owned(),
            key,
            state: opened.state,
            runs: false,
        })
    }

    /// Brings the state that the vTPM was left in into `dir`, for `uid`.
    pub fn lay(&self, dir: &Path, uid: u32) -> Result<()> {
        let path = path_of(&self.name);
        let found = match read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error),
        };
        let refuse = |why: &str| -> Result<()> {
            Err(Refused(format!(
                "refused: the state of the container's vTPM, {}, {why}",
                path.display()
            ))
            .into())
        };
        let bytes = match (found, self.state) {
            (None, None) => return Ok(()),
            (Some(_), None) => {
                return refuse(
                    "is none that this host has kept for it: another host's, or given up",
                );
            }
            (None, Some(_)) => return refuse("is missing"),
            (Some(bytes), Some(state)) if FileDigest::of(&bytes) != state => {
                return refuse("is not the one that it was left in: an older one, or another's");
            }
            (Some(bytes), Some(_)) => bytes,
        };
        let place = dir.join(STATE);
        let doing = || format!("cannot write {}", place.display());
        let mut options = File::options();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&place).with_context(doing)?;
        file.write_all(&bytes).with_context(doing)?;
        chown(&place, Some(uid), Some(uid)).with_context(doing)
    }

    /// From it swtpm reads its key, once.
    pub fn key_fd(&self) -> Result<OwnedFd> {
        let (reads, writes) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        File::from(writes)
            .write_all(&self.key)
            .context("cannot write the vTPM's key into its pipe")?;
        Ok(reads)
    }

    /// The container, whose `owner` is known by now, starts.
    pub fn runs(&mut self, owner: String) -> Result<()> {
        Client::connect(&self.config)?.of_vtpm::<()>(OfVtpm::Runs {
            name: self.name.clone(),
            state: self.state,
            owner,
        })?;
        self.runs = true;
        Ok(())
    }

    /// Whether the container was started, so that its state is another one now.
    pub fn has_run(&self) -> bool {
        self.runs
    }

    /// Takes the state back from `dir`, where the vTPM has ended after its shut-down.
    pub fn ended(self, dir: &Path) -> Result<()> {
        let bytes = read(&dir.join(STATE))?;
        let path = path_of(&self.name);
        let doing = || format!("cannot keep the vTPM's state in {}", path.display());
        let mut directory = DirBuilder::new();
        let made = directory.recursive(true).mode(0o700).create(VTPM_STATES);
        made.with_context(doing)?;
        let new = path.with_extension("new");
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new).with_context(doing)?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| File::open(VTPM_STATES)?.sync_all())
            .with_context(doing)?;
        Client::connect(&self.config)?.of_vtpm::<()>(OfVtpm::Ended {
            name: self.name,
            state: FileDigest::of(&bytes),
        })
    }
}

/// Takes the file of a state away that was given up.
pub fn remove(name: &str) -> Result<()> {
    let hex = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    ensure!(hex, "`{name}` is no vTPM's name");
    match fs::remove_file(path_of(name)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path_of(name).display()))
        }
        _ => Ok(()),
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(VTPM_STATES).join(name)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::NOENT)
}

/// A state: a regular file, since the directory of one that runs is its own to fill.
fn read(path: &Path) -> Result<Vec<u8>> {
    let doing = || format!("cannot read the vTPM's state {}", path.display());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty()).with_context(doing)?);
    ensure!(
        file.metadata().with_context(doing)?.is_file(),
        "{} is no regular file",
        path.display()
    );
    let mut bytes = Vec::new();
    file.take(MAX_STATE + 1)
        .read_to_end(&mut bytes)
        .with_context(doing)?;
    ensure!(
        bytes.len() as u64 <= MAX_STATE,
        "the vTPM's state {} is larger than {MAX_STATE} bytes",
        path.display()
    );
    Ok(bytes)
}
