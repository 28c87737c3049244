//! The directories that an overlay mount lays over each other, held open: those of the image's layers,
//! and those above, which are the container's and its engine's.

use crate::{
    once::FilesRead,
    seal::{self, Sealed},
    tree::{self, Unpacked, WalkError},
};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use verify::{digest::DiffId, rootfs::Layer};

/// Lowest first.
#[derive(Debug)]
pub struct Stack {
    layers: Vec<OwnedFd>,
    above: Vec<OwnedFd>,
}

/// Names the state of a stack's layers, and which layers they are to be. Equal keys: nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// `seals` of the layers' directories, lowest first; `wanted`: the diff-IDs of the layers that they
    /// are to hold.
    pub fn of(seals: impl IntoIterator<Item = [u8; 32]>, wanted: &[DiffId]) -> Self {
        let mut digest = Sha256::new_with_prefix(b"attestrun-stack-v1\0");
        for seal in seals {
            digest.update(seal);
        }
        for diff_id in wanted {
            digest.update(diff_id.as_bytes());
        }
        Self(digest.finalize().into())
    }
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The layers of a stack as they stood at one time.
#[derive(Debug)]
pub struct Seals(Vec<Sealed>);

impl Seals {
    /// See [`Key::of`].
    pub fn key(&self, wanted: &[DiffId]) -> Key {
        Key::of(self.0.iter().map(|sealed| sealed.seal), wanted)
    }

    /// See [`Sealed::settled`].
    pub fn settled(&self, began: seal::Moment) -> bool {
        self.0.iter().all(|sealed| sealed.settled(began))
    }
}

impl Stack {
    pub(crate) fn new(layers: Vec<OwnedFd>, above: Vec<OwnedFd>) -> Self {
        Self { layers, above }
    }

    /// Whether the layers lie where an unchanged stamp means an unchanged file.
    pub fn can_be_sealed(&self) -> bool {
        let known = |layer: &OwnedFd| seal::can_be_sealed(layer.as_fd()).unwrap_or(false);
        self.layers.iter().all(known)
    }

    /// The layers' directories, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.layers.iter().map(OwnedFd::as_fd)
    }

    /// The state of the image's layers.
    pub fn seal(&self) -> Result<Seals, WalkError> {
        // A pool of our own: its threads end with the work.
        let pool = rayon::ThreadPoolBuilder::new().build();
        let pool = pool.map_err(|error| WalkError::Threads(error.to_string()))?;
        pool.install(|| {
            let layers = self.layers.par_iter();
            let sealed = layers.map(|layer| seal::seal(layer.as_fd()));
            sealed.collect::<Result<_, _>>().map(Seals)
        })
    }

    /// Reads of the image's layers what was not `read` yet; true: nobody was writing to a file of
    /// theirs.
    pub fn unpacked(&self, read: &FilesRead) -> Result<(Vec<Layer>, bool), WalkError> {
        let read = self
            .layers
            .iter()
            .map(|layer| tree::unpacked(layer.as_fd(), read));
        let read: Vec<Unpacked> = read.collect::<Result<_, _>>()?;
        let quiet = read.iter().all(|one| one.quiet);
        Ok((read.into_iter().map(|one| one.layer).collect(), quiet))
    }

    /// Reads what lies above the layers.
    pub fn above(&self) -> Result<Vec<Layer>, WalkError> {
        let read = self
            .above
            .iter()
            .map(|directory| tree::unpacked(directory.as_fd(), &FilesRead::default()));
        read.map(|one| Ok(one?.layer)).collect()
    }
}
