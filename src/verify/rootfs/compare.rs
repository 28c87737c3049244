//! Is the tree that was found the one that the layers describe? Every difference, by path.

use super::{Entry, Kind, Owners, RootfsManifest, RootfsPath, Said, Stubs, Tree, encode};
use crate::digest::{FileDigest, RootfsDigest};
use std::{borrow::Cow, cmp::Ordering, fmt};

/// Modes that engines give to directories which no layer names (moby MkdirAllAndChown, containerd
/// mkparent, containers/storage), besides the lower layer's own.
const IMPLIED_MODES: [u16; 4] = [0o755, 0o777, 0o700, 0o600];
/// Modes that engines give to the rootfs directory itself: containers/storage 0555, moby and
/// containerd 0755.
const ROOT_MODES: [u16; 2] = [0o555, 0o755];

/// One entry that is not what the signed layers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: RootfsPath,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Missing,
    Extra {
        found: &'static str,
    },
    Kind {
        expected: &'static str,
        found: &'static str,
    },
    Content {
        expected: FileDigest,
        found: FileDigest,
    },
    Target {
        expected: Vec<u8>,
        found: Vec<u8>,
    },
    Device {
        expected: (u32, u32),
        found: (u32, u32),
    },
    Mode {
        expected: u16,
        found: u16,
    },
    Owner {
        expected: (u32, u32),
        found: (u32, u32),
    },
    /// Absent, or with another value.
    Xattr {
        name: Vec<u8>,
        expected: Option<Vec<u8>>,
        found: Option<Vec<u8>>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.what {
            What::Missing => write!(f, "{path} is missing"),
            What::Extra { found } => write!(f, "{path} ({found}) is in no layer"),
            What::Kind { expected, found } => write!(f, "{path} is a {found}, not a {expected}"),
            What::Content { expected, found } => {
                write!(f, "{path} has content {found}, the layer says {expected}")
            }
            What::Target { expected, found } => {
                write!(
                    f,
                    "{path} links to {}, not to {}",
                    encode(found),
                    encode(expected)
                )
            }
            What::Device { expected, found } => write!(
                f,
                "{path} is device {}:{}, not {}:{}",
                found.0, found.1, expected.0, expected.1
            ),
            What::Mode { expected, found } => {
                write!(f, "{path} has mode {found:04o}, not {expected:04o}")
            }
            What::Owner { expected, found } => write!(
                f,
                "{path} belongs to {}:{}, not to {}:{}",
                found.0, found.1, expected.0, expected.1
            ),
            What::Xattr {
                name,
                expected,
                found,
            } => {
                let state = match (expected, found) {
                    (None, _) => "that no layer gives it",
                    (_, None) => "missing",
                    _ => "with another value",
                };
                write!(
                    f,
                    "{path} has the extended attribute {} {state}",
                    encode(name)
                )
            }
        }
    }
}

/// The first differences and how many more there are, for one line of text.
pub fn summary(differences: &[Difference]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = differences
        .iter()
        .take(SHOWN)
        .map(Difference::to_string)
        .collect();
    let more = differences.len().saturating_sub(SHOWN);
    let tail = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    format!("{}{tail}", shown.join("; "))
}

/// Witness: the tree that was walked is the one that the layers describe. Only [`compare`] and
/// [`super::CheckedLayers::with`] make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedRootfs {
    pub(super) manifest: RootfsDigest,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) stubs: Vec<String>,
}

impl CheckedRootfs {
    /// The owners are those that a container with these maps sees.
    pub fn by(mut self, owners: &Owners) -> Self {
        self.stubs.push(format!("owners:{owners}"));
        self
    }

    /// Of the manifest that the layers make; the stubs are not in it.
    pub fn manifest(&self) -> RootfsDigest {
        self.manifest
    }
    /// How many paths were found.
    pub fn entries(&self) -> u64 {
        self.entries
    }
    /// How many bytes of regular files were found (and hashed by the walk).
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Whether something else than the manifest says may stand at this path.
    pub fn is_stub(&self, path: &RootfsPath) -> bool {
        let path = path.to_string();
        let at = |stub: &String| {
            let rest = stub.split_once(':').map_or("", |(_, rest)| rest);
            rest.strip_prefix(&path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        self.stubs.iter().any(at)
    }
    /// What was found besides the manifest, as `<rule>:<path>`, in the order of the paths.
    pub fn stubs(&self) -> &[String] {
        &self.stubs
    }
}

/// A tree as it was found: measured, and compared with nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredRootfs {
    manifest: RootfsDigest,
    entries: u64,
    bytes: u64,
}

impl MeasuredRootfs {
    pub fn of(found: &Tree) -> Self {
        Self {
            manifest: RootfsDigest::of(found.mtree().as_bytes()),
            entries: found.count(),
            bytes: found.bytes(),
        }
    }
    /// Of the manifest of the tree itself, whatever is in it.
    pub fn manifest(&self) -> RootfsDigest {
        self.manifest
    }
    pub fn entries(&self) -> u64 {
        self.entries
    }
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Compares every entry; on refusal reports every difference, never only the first.
pub fn compare(
    expected: &RootfsManifest,
    found: &Tree,
    stubs: &Stubs,
) -> Result<CheckedRootfs, Vec<Difference>> {
    let Ok(stubs) = stubs.resolved(expected);
    let mut judge = Judge::new(|path, wanted, here| stubs.explain(path, wanted, here));
    judge.trees(expected, found);
    let notes = judge.verdict()?;
    Ok(CheckedRootfs {
        manifest: expected.digest(),
        entries: found.count(),
        bytes: found.bytes(),
        stubs: notes.into_iter().map(|(_, note)| note).collect(),
    })
}

/// What was found at a path, though not exactly what the layers say: the rule that explains it.
pub(super) type Note = (RootfsPath, String);

/// Looks at one path after the other and keeps what it thinks of each.
pub(super) struct Judge<F> {
    explain: F,
    notes: Vec<Note>,
    differences: Vec<Difference>,
}

impl<F: Fn(&RootfsPath, Option<&Entry>, &Entry) -> Option<String>> Judge<F> {
    /// `explain` names the rule by which something else than what is expected may stand at a path.
    pub fn new(explain: F) -> Self {
        Self {
            explain,
            notes: Vec::new(),
            differences: Vec::new(),
        }
    }

    /// Every path of either tree.
    pub fn trees(&mut self, expected: &RootfsManifest, found: &Tree) {
        let mut left = expected.tree().iter().peekable();
        let mut right = found.iter().peekable();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let wanted = if order.is_le() { left.next() } else { None };
            let here = if order.is_ge() { right.next() } else { None };
            let (entry, stands) = (wanted.map(|(_, entry)| entry), here.map(|(_, entry)| entry));
            if entry != stands
                && let Some((path, _)) = wanted.or(here)
            {
                let said = entry.map(|entry| Said {
                    entry: Cow::Borrowed(entry),
                    implied: expected.is_implied(path),
                });
                self.look(path, said.as_ref(), stands);
            }
        }
    }

    pub fn look(&mut self, path: &RootfsPath, wanted: Option<&Said<'_>>, here: Option<&Entry>) {
        let mut used = Vec::new();
        let mut whats = whats(path, wanted, here, &mut used);
        if let Some(here) = here
            && !whats.is_empty()
            && let Some(rule) = (self.explain)(path, wanted.map(|said| &*said.entry), here)
        {
            used.push(rule);
            whats.clear();
        }
        self.notes
            .extend(used.into_iter().map(|note| (path.clone(), note)));
        self.differences
            .extend(whats.into_iter().map(|what| Difference {
                path: path.clone(),
                what,
            }));
    }

    /// No difference at all, or all of them.
    pub fn verdict(self) -> Result<Vec<Note>, Vec<Difference>> {
        match self.differences.is_empty() {
            true => Ok(self.notes),
            false => Err(self.differences),
        }
    }
}

fn whats(
    path: &RootfsPath,
    wanted: Option<&Said<'_>>,
    here: Option<&Entry>,
    used: &mut Vec<String>,
) -> Vec<What> {
    let implied = wanted.is_some_and(|said| said.implied);
    let (wanted, here) = match (wanted.map(|said| &*said.entry), here) {
        (None, None) => return Vec::new(),
        (Some(_), None) => return vec![What::Missing],
        (None, Some(here)) => {
            return vec![What::Extra {
                found: here.kind.name(),
            }];
        }
        (Some(wanted), Some(here)) => (wanted, here),
    };
    if wanted == here {
        return Vec::new();
    }
    let mut whats = Vec::new();
    match (&wanted.kind, &here.kind) {
        (Kind::File { digest: e, .. }, Kind::File { digest: f, .. }) if e != f => {
            whats.push(What::Content {
                expected: *e,
                found: *f,
            });
        }
        (Kind::Symlink { target: e }, Kind::Symlink { target: f }) if e != f => {
            whats.push(What::Target {
                expected: e.clone(),
                found: f.clone(),
            });
        }
        (
            Kind::CharDevice { major, minor },
            Kind::CharDevice {
                major: found_major,
                minor: found_minor,
            },
        )
        | (
            Kind::BlockDevice { major, minor },
            Kind::BlockDevice {
                major: found_major,
                minor: found_minor,
            },
        ) if (major, minor) != (found_major, found_minor) => {
            let found = (*found_major, *found_minor);
            whats.push(What::Device {
                expected: (*major, *minor),
                found,
            });
        }
        (e, f) if e.name() != f.name() => {
            return vec![What::Kind {
                expected: e.name(),
                found: f.name(),
            }];
        }
        _ => {}
    }
    let (owner, found_owner) = ((wanted.uid, wanted.gid), (here.uid, here.gid));
    // Where no layer says what a directory is like, the engine chooses, within these bounds.
    let chosen = match () {
        () if path.is_root() => Some(("root-directory", &ROOT_MODES[..])),
        () if implied => Some(("implied-directory", &IMPLIED_MODES[..])),
        () => None,
    };
    let differs = (wanted.mode, owner) != (here.mode, found_owner);
    match chosen {
        Some((rule, modes))
            if differs
                && (modes.contains(&here.mode) || here.mode == wanted.mode)
                && (found_owner == (0, 0) || found_owner == owner) =>
        {
            used.push(format!("{rule}:{path}:{:04o}", here.mode));
        }
        _ => {
            if wanted.mode != here.mode {
                whats.push(What::Mode {
                    expected: wanted.mode,
                    found: here.mode,
                });
            }
            if owner != found_owner {
                whats.push(What::Owner {
                    expected: owner,
                    found: found_owner,
                });
            }
        }
    }
    let names: std::collections::BTreeSet<_> =
        wanted.xattrs.keys().chain(here.xattrs.keys()).collect();
    for name in names {
        let (expected, found) = (wanted.xattrs.get(name), here.xattrs.get(name));
        if expected != found {
            let (expected, found) = (expected.cloned(), found.cloned());
            whats.push(What::Xattr {
                name: name.clone(),
                expected,
                found,
            });
        }
    }
    if whats.is_empty()
        && let (Kind::File { size: e, .. }, Kind::File { size: f, .. }) = (&wanted.kind, &here.kind)
        && e != f
    {
        // Equal digests of unequal sizes: a collision, or a walk that lies.
        whats.push(What::Kind {
            expected: "file",
            found: "file of another size",
        });
    }
    whats
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
