//! Is the rootfs what the signed layers hold, at `create` and still at `start`?
//!
//! `full`: every file is read, in the directories of the mount: what is read there to know the layers
//! needs no second reading. `boot`: the image's layers only if they were not read in this boot or are not
//! the same any more (why a seal says so: `content::seal`), the container's own directories each time.
//! `watched`: not even the layers' stamps are looked at while a process of the host vouches for them.
//! What cannot be checked by its directories — another mount than a plain overlay, a store on a file
//! system whose stamps mean nothing, a container with a user namespace — is read through its mount;
//! with `stat` all but the files' content is looked at there. Evidence says which way it was.

use crate::{ipc::Refused, layerwatch, sys};
use anyhow::{Context, Result, bail};
use content::{
    cache::Cache,
    layer::{LayerSource, OtherLayer},
    once::FilesRead,
    seal::Moment,
    stack::{Key, Seals, Stack},
    store::{self, Roots},
    tree::{self, WalkError},
};
use std::{
    borrow::Cow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};
use verify::{
    digest::{DiffId, FileDigest},
    event::RootfsCheck,
    image::Image,
    policy::{Admission, CheckedPrograms, Refusal, plain_text},
    rootfs::{
        CheckedLayers, CheckedRootfs, Damaged, Difference, Entry, Expected, Kind, Layer,
        MeasuredRootfs, Owners, RootfsManifest, RootfsPath, Said, Stubs, Tree, compare,
        compare_above, compare_layers, merge, summary,
    },
};

/// Layers and stacks of layers that were read in this boot.
const CACHE: &str = "/run/attestrun/cache/layers";

/// What is asked about the rootfs.
pub struct Question<'a> {
    pub root: &'a store::Rootfs,
    pub image: &'a Image,
    pub layers: &'a [LayerSource],
    pub roots: &'a Roots,
    /// The policy's: also the laxest way in which it lets this be answered.
    pub admission: &'a Admission,
    /// Whose the files are, if the container has a user namespace.
    pub owners: Option<&'a Owners>,
}

/// What the rootfs turned out to be, and whether what the layers make agrees with the list.
pub enum Answer {
    Same(Box<Rootfs>, Listed),
    /// How it differs from what the layers make.
    Differs(Vec<Difference>, Listed),
}

pub type Listed = Result<CheckedPrograms, Refusal>;

/// What is known of the rootfs, and what it must still be at `start`.
pub struct Rootfs {
    outcome: Outcome,
    watch: Watch,
}

pub enum Outcome {
    /// It is what the image's layers say; checked never laxer than the policy lets it be.
    Checked(CheckedRootfs, RootfsCheck),
    /// It was read and measured; nothing says what it should be, or it may differ.
    Measured(MeasuredRootfs),
}

enum Watch {
    Layers(Box<Watched>),
    /// Nothing says what it should be: programs alone are judged again, by their content. These files
    /// were found.
    Nothing(Vec<(Vec<u8>, FileDigest)>),
    /// The container has started, and may write.
    Over,
}

/// Each regular file of `tree`, by the path that the container sees.
fn regular_files(tree: &Tree) -> Vec<(Vec<u8>, FileDigest)> {
    let file = |(path, entry): (&RootfsPath, &Entry)| match entry.kind {
        Kind::File { digest, .. } => Some((path.absolute(), digest)),
        _ => None,
    };
    tree.iter().filter_map(file).collect()
}

/// An image's rootfs before its start.
struct Watched {
    root: OwnedFd,
    path: PathBuf,
    image: String,
    expected: Made,
    stubs: Stubs,
    owners: Option<Owners>,
    wanted: Vec<DiffId>,
    /// The mount's directories and their state; `None`: it is read through its mount again.
    layers: Option<(Stack, Key)>,
    /// That state may be told by the watch of layers.
    vouched: bool,
    reading: Reading,
}

/// What the image's layers make of a rootfs.
enum Made {
    Whole(RootfsManifest),
    /// As their directories were found to have it: read as far as it is looked at.
    Packed(CheckedLayers),
}

impl Made {
    fn whole(&self) -> Result<Cow<'_, RootfsManifest>, Damaged> {
        Ok(match self {
            Self::Whole(manifest) => Cow::Borrowed(manifest),
            Self::Packed(layers) => Cow::Owned(layers.manifest()?),
        })
    }
}

impl Expected for Made {
    type Error = Damaged;

    fn at(&self, path: &RootfsPath) -> Result<Option<Said<'_>>, Damaged> {
        match self {
            Self::Whole(manifest) => {
                let Ok(said) = manifest.at(path);
                Ok(said)
            }
            Self::Packed(layers) => layers.at(path),
        }
    }

    fn first_below(&self, directory: &RootfsPath) -> Result<Option<RootfsPath>, Damaged> {
        match self {
            Self::Whole(manifest) => {
                let Ok(first) = manifest.first_below(directory);
                Ok(first)
            }
            Self::Packed(layers) => layers.first_below(directory),
        }
    }
}

/// What the layers' directories were found to hold, which was in this state.
struct Layers {
    checked: CheckedLayers,
    check: RootfsCheck,
    key: Key,
}

/// How a rootfs is read through its mount.
#[derive(Clone, Copy)]
enum Reading {
    Everything,
    /// All but the content of files that have the size of the image's.
    Attributes,
}

impl Reading {
    fn of(self, root: BorrowedFd<'_>, path: &Path, expected: &RootfsManifest) -> Result<Tree> {
        let found = match self {
            Self::Everything => tree::walk(root),
            Self::Attributes => tree::walk_unread(root, expected.tree()),
        };
        found.with_context(|| format!("rootfs {}", path.display()))
    }
    fn check(self) -> RootfsCheck {
        match self {
            Self::Everything => RootfsCheck::Full,
            Self::Attributes => RootfsCheck::Stat,
        }
    }
}

impl Question<'_> {
    /// Reads and compares. An error may be a [`Refused`]: the store's layers are not the image's.
    pub fn ask(&self, stubs: Stubs) -> Result<Answer> {
        let cache = Cache::open(Path::new(CACHE), |warning| {
            eprintln!("attestrun guard: {warning}");
        })?;
        // directories hold the owners of the host, which only the container's maps explain
        let stack = match self.owners {
            Some(_) => None,
            None => self.stack()?,
        };
        let by_directories = match &stack {
            Some(stack) => self.by_directories(stack, &stubs, &cache)?,
            None => None,
        };
        // what differs by its directories is read, to be named
        let reading = match (&stack, self.laxest()) {
            (None, RootfsCheck::Stat) => Reading::Attributes,
            _ => Reading::Everything,
        };
        let (outcome, listed, expected, key) = match by_directories {
            Some((outcome, listed, layers)) => {
                let expected = Made::Packed(layers.checked);
                (outcome, listed, expected, Some(layers.key))
            }
            None => {
                let seal = |stack| Ok::<_, anyhow::Error>(seal(stack)?.key(self.image.diff_ids()));
                let key = stack.as_ref().map(seal).transpose()?;
                let (expected, _) = self.expected(&cache)?;
                let Ok(listed) = self.admission.check_rootfs(&expected);
                let found = reading.of(self.root.as_fd(), self.root.path(), &expected)?;
                match same(&expected, found, &stubs, self.owners) {
                    Ok(checked) => {
                        let outcome = Outcome::Checked(checked, reading.check());
                        (outcome, listed, Made::Whole(expected), key)
                    }
                    Err(differences) => return Ok(Answer::Differs(differences, listed)),
                }
            }
        };
        let watched = Watched {
            root: self.root.as_fd().try_clone_to_owned()?,
            path: self.root.path().to_owned(),
            image: self.image_name(),
            expected,
            stubs,
            owners: self.owners.cloned(),
            wanted: self.image.diff_ids().to_vec(),
            layers: stack.zip(key),
            vouched: watch_may_vouch(self.laxest()),
            reading,
        };
        sys::give_back_memory();
        let watch = Watch::Layers(Box::new(watched));
        let rootfs = Rootfs { outcome, watch };
        Ok(Answer::Same(Box::new(rootfs), listed))
    }

    fn laxest(&self) -> RootfsCheck {
        self.admission.terms().rootfs
    }

    /// The rootfs is not what it should be.
    pub fn refusal(&self, differences: &[Difference]) -> Refused {
        refusal(&self.image_name(), self.root.path(), differences)
    }

    fn image_name(&self) -> String {
        format!("{} ({})", self.image.name(), self.image.manifest_digest())
    }

    fn stack(&self) -> Result<Option<Stack>> {
        let layers = self.image.diff_ids().len();
        let stack = self.roots.stack(self.root, layers)?;
        Ok(stack.filter(Stack::can_be_sealed))
    }

    /// `None`: a layer leads to files elsewhere, which only the mount shows, or something differs,
    /// which the mount shows best.
    fn by_directories(
        &self,
        stack: &Stack,
        stubs: &Stubs,
        cache: &Cache,
    ) -> Result<Option<(Outcome, Listed, Layers)>> {
        let above = match stack.above() {
            Err(WalkError::Marked { .. }) => return Ok(None),
            above => above.context("the container's own directories")?,
        };
        let Some(layers) = self.layers(stack, cache)? else {
            return Ok(None);
        };
        let (layers, judged) = match self.judged(&layers, &above, stubs) {
            Ok(judged) => (layers, judged),
            Err(Damaged) => {
                // a miss
                cache.damaged(&layers.key);
                let Some(read) = self.sealed(stack, cache, Kept::Unused)? else {
                    return Ok(None);
                };
                let judged = self.judged(&read, &above, stubs)?;
                (read, judged)
            }
        };
        Ok(judged.map(|(outcome, listed)| (outcome, listed, layers)))
    }

    fn judged(
        &self,
        layers: &Layers,
        above: &[Layer],
        stubs: &Stubs,
    ) -> Result<Option<(Outcome, Listed)>, Damaged> {
        let Ok(checked) = layers.checked.with(above.iter().cloned(), stubs)? else {
            return Ok(None);
        };
        let listed = self.admission.check_rootfs(&layers.checked)?;
        Ok(Some((Outcome::Checked(checked, layers.check), listed)))
    }

    /// What the image's layers hold, without a look at them where the policy lets that be.
    fn layers(&self, stack: &Stack, cache: &Cache) -> Result<Option<Layers>> {
        let watched = match watch_may_vouch(self.laxest()) {
            true => layerwatch::standing(stack),
            false => return self.sealed(stack, cache, Kept::Used),
        };
        let Some(seals) = watched else {
            let found = self.sealed(stack, cache, Kept::Used)?;
            layerwatch::begin(stack);
            return Ok(found);
        };
        let key = Key::of(seals, self.image.diff_ids());
        match cache.checked(&key) {
            Some(checked) => Ok(Some(Layers {
                checked,
                check: RootfsCheck::Watched,
                key,
            })),
            None => self.sealed(stack, cache, Kept::Used),
        }
    }

    /// What the image's layers hold, by their seal or by reading them.
    fn sealed(&self, stack: &Stack, cache: &Cache, kept: Kept) -> Result<Option<Layers>> {
        let began = Moment::now();
        let seals = seal(stack)?;
        let key = seals.key(self.image.diff_ids());
        let known = match (self.laxest(), kept) {
            (RootfsCheck::Full | RootfsCheck::Measured, _) | (_, Kept::Unused) => None,
            (RootfsCheck::Boot | RootfsCheck::Watched | RootfsCheck::Stat, Kept::Used) => {
                cache.checked(&key)
            }
        };
        let (checked, check) = match known {
            Some(known) => (known, RootfsCheck::Boot),
            None => match self.read(stack, cache, seals.settled(began), key)? {
                Some(read) => (read, RootfsCheck::Full),
                None => return Ok(None),
            },
        };
        Ok(Some(Layers {
            checked,
            check,
            key,
        }))
    }

    /// Reads the layers' directories and, beside that, the layers themselves; keeps the outcome if
    /// nothing can have slipped by.
    fn read(
        &self,
        stack: &Stack,
        cache: &Cache,
        settled: bool,
        key: Key,
    ) -> Result<Option<CheckedLayers>> {
        let (found, expected) = match self.layers.iter().any(LayerSource::is_recorded) {
            // What is read of the directories to have the layers needs no second reading.
            true => {
                let (expected, files) = self.expected(cache)?;
                (stack.unpacked(&files), expected)
            }
            false => {
                let (found, expected) = std::thread::scope(|scope| {
                    let expected = scope.spawn(|| self.expected(cache));
                    let found = stack.unpacked(&FilesRead::default());
                    (found, expected.join())
                });
                let expected = expected.unwrap_or_else(|_| bail!("a thread panicked"));
                (found, expected?.0)
            }
        };
        let (found, quiet) = match found {
            Err(WalkError::Marked { .. }) => return Ok(None),
            found => found.context("the image's layers")?,
        };
        let Ok(layers) = compare_layers(&expected, &merge(found)?) else {
            return Ok(None);
        };
        anyhow::ensure!(
            seal(stack)?.key(self.image.diff_ids()) == key,
            "the layers of {} changed while they were read; create the container again",
            self.image.name()
        );
        if quiet && settled {
            cache.keep_checked(&key, &layers);
        }
        Ok(Some(layers))
    }

    /// The tree that the layers make, once each has the diff-ID that the signed configuration says.
    fn expected(&self, cache: &Cache) -> Result<(RootfsManifest, FilesRead)> {
        let refuse = |why: &str| {
            let (name, digest) = (self.image.name(), self.image.manifest_digest());
            Refused(plain_text(&format!(
                "refused: image {name} ({digest}): {why}; remove the image and pull it again"
            )))
        };
        let (mounted, signed) = (self.layers.len(), self.image.diff_ids().len());
        if mounted != signed {
            return Err(refuse(&format!(
                "the rootfs is mounted from {mounted} layers, the signed image has {signed}"
            ))
            .into());
        }
        let layers = cache.layers(self.layers, self.image.diff_ids());
        let (layers, files) = layers.map_err(|error| match error.downcast_ref::<OtherLayer>() {
            Some(other) => refuse(&format!("{other}: its content was changed")).into(),
            None => error.context("cannot read the image's layers"),
        })?;
        Ok((merge(layers)?, files))
    }
}

/// Whether what was found before may tell.
#[derive(Clone, Copy)]
enum Kept {
    Used,
    Unused,
}

/// Everything that the mount shows, read and hashed.
pub fn walk(root: &store::Rootfs) -> Result<Tree> {
    tree::walk(root.as_fd()).with_context(|| format!("rootfs {}", root.path().display()))
}

/// Whether `found` is what is `expected`, by the owners that it has on the host; or, for a container with
/// a user namespace, by those that it has inside.
fn same(
    expected: &RootfsManifest,
    found: Tree,
    stubs: &Stubs,
    owners: Option<&Owners>,
) -> Result<CheckedRootfs, Vec<Difference>> {
    let outside = compare(expected, &found, stubs);
    let (Err(outside), Some(owners)) = (&outside, owners) else {
        return outside;
    };
    match compare(expected, &owners.inside(found), stubs) {
        Ok(checked) => Ok(checked.by(owners)),
        // those of the view that is the closer one
        Err(inside) if inside.len() < outside.len() => Err(inside),
        Err(_) => Err(outside.clone()),
    }
}

fn watch_may_vouch(laxest: RootfsCheck) -> bool {
    match laxest {
        RootfsCheck::Full | RootfsCheck::Boot | RootfsCheck::Measured => false,
        RootfsCheck::Watched | RootfsCheck::Stat => true,
    }
}

fn seal(stack: &Stack) -> Result<Seals> {
    stack.seal().context("the image's layers")
}

fn refusal(image: &str, rootfs: &Path, differences: &[Difference]) -> Refused {
    Refused(plain_text(&format!(
        "refused: image {image}: the rootfs {} is not what the signed layers hold: {}; remove the image and pull it again",
        rootfs.display(),
        summary(differences)
    )))
}

impl Rootfs {
    pub fn measured(found: &Tree) -> Self {
        Self {
            outcome: Outcome::Measured(MeasuredRootfs::of(found)),
            watch: Watch::Nothing(regular_files(found)),
        }
    }

    /// The files of what was measured, until the container has started: those of the image's manifest,
    /// or those that were found.
    pub fn files(&self) -> Result<Vec<(Vec<u8>, FileDigest)>> {
        match &self.watch {
            Watch::Layers(watched) => Ok(regular_files(watched.expected.whole()?.tree())),
            Watch::Nothing(found) => Ok(found.clone()),
            Watch::Over => bail!("no files of the rootfs are held"),
        }
    }

    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// The digest of the image's file at `path`, if that is what stands there; where it cannot be told,
    /// the file is read.
    pub fn known(&self, path: &[u8]) -> Option<FileDigest> {
        let at = RootfsPath::parse(path).ok()?;
        match (&self.outcome, &self.watch) {
            (Outcome::Checked(checked, _), Watch::Layers(watched)) if !checked.is_stub(&at) => {
                watched.expected.file(path).ok()?
            }
            _ => None,
        }
    }

    /// Asked at `start`: the layers are as they were at `create`, and above them there is nothing but
    /// what was allowed then (`cp` into a created container, a hook, an engine's own files).
    pub fn again(&self) -> Result<()> {
        match &self.watch {
            Watch::Layers(watched) => watched.again(),
            Watch::Nothing(_) => Ok(()),
            Watch::Over => bail!("the container was started before"),
        }
    }

    /// The container runs, and may write: nothing is compared any more.
    pub fn forget(&mut self) {
        self.watch = Watch::Over;
        sys::give_back_memory();
    }
}

impl Watched {
    fn again(&self) -> Result<()> {
        let differences = match &self.layers {
            Some((stack, key)) if self.unchanged(stack, key)? => match stack.above() {
                Ok(above) => compare_above(&self.expected, above, &self.stubs)
                    .context("create the container again")?,
                // as at create: what the directories alone do not say, the mount does
                Err(WalkError::Marked { .. }) => self.through_the_mount()?,
                Err(error) => return Err(error).context("the container's own directories"),
            },
            _ => self.through_the_mount()?,
        };
        differences.map_err(|differences| refusal(&self.image, &self.path, &differences).into())
    }

    fn unchanged(&self, stack: &Stack, key: &Key) -> Result<bool> {
        let told = match self.vouched {
            true => layerwatch::standing(stack),
            false => None,
        };
        let told = told.is_some_and(|seals| Key::of(seals, &self.wanted) == *key);
        Ok(told || seal(stack)?.key(&self.wanted) == *key)
    }

    fn through_the_mount(&self) -> Result<Result<(), Vec<Difference>>> {
        let root = self.root.as_fd();
        let expected = self.expected.whole()?;
        let found = self.reading.of(root, &self.path, &expected)?;
        let owners = self.owners.as_ref();
        Ok(same(&expected, found, &self.stubs, owners).map(drop))
    }
}
