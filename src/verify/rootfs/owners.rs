//! Owners as a container with a user namespace sees them (user_namespaces(7)): engines give its files to
//! the host's users that the namespace's maps make of the image's owners.

use super::{Entry, Tree};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use std::fmt;

/// An owner that no map has: no file of an image can have it (chown(2) takes it for "unchanged").
pub(super) const NOBODY: u32 = u32::MAX;

/// The maps of the user namespace that a container is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Owners {
    /// `None`: the container has no user namespace of its own, or one that somebody else has mapped.
    pub fn of(spec: &Spec) -> Option<Self> {
        let linux = spec.linux().as_ref()?;
        let mut namespaces = linux.namespaces().iter().flatten();
        let user = namespaces.find(|n| n.typ() == LinuxNamespaceType::User)?;
        let joins = user
            .path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty());
        let maps = Self {
            uids: linux.uid_mappings().clone().unwrap_or_default(),
            gids: linux.gid_mappings().clone().unwrap_or_default(),
        };
        (!joins && !maps.uids.is_empty() && !maps.gids.is_empty()).then_some(maps)
    }

    /// The tree with the owners that it has inside.
    pub fn inside(&self, tree: Tree) -> Tree {
        let seen = |entry: Entry| Entry {
            uid: inside(&self.uids, entry.uid),
            gid: inside(&self.gids, entry.gid),
            ..entry
        };
        let entries = tree.entries.into_iter();
        Tree {
            entries: entries.map(|(path, entry)| (path, seen(entry))).collect(),
        }
    }
}

fn inside(maps: &[LinuxIdMapping], host: u32) -> u32 {
    let within = maps.iter().find_map(|map| {
        let offset = host.checked_sub(map.host_id())?;
        (offset < map.size()).then(|| map.container_id().checked_add(offset))?
    });
    within.unwrap_or(NOBODY)
}

/// `uids 0:100000:65536 gids …`, as in uid_map(5): inside, outside, how many.
impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |maps: &[LinuxIdMapping]| {
            let one =
                |m: &LinuxIdMapping| format!("{}:{}:{}", m.container_id(), m.host_id(), m.size());
            maps.iter().map(one).collect::<Vec<_>>().join(",")
        };
        write!(f, "uids {} gids {}", text(&self.uids), text(&self.gids))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, RootfsPath};
    use super::*;
    use serde_json::json;

    fn owners(namespace: serde_json::Value) -> Option<Owners> {
        let map = json!([
            { "containerID": 0, "hostID": 100_000, "size": 1000 },
            { "containerID": 5000, "hostID": 7, "size": 1 },
        ]);
        let spec = json!({
            "ociVersion": "1.0.2", "root": { "path": "r" },
            "linux": { "namespaces": [namespace], "uidMappings": map, "gidMappings": map },
        });
        Owners::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn owners_are_seen_through_the_maps() {
        let maps = owners(json!({ "type": "user" })).unwrap();
        let entry = |uid, gid| Entry {
            kind: Kind::Directory,
            mode: 0o755,
            uid,
            gid,
            xattrs: Default::default(),
        };
        for (host, seen) in [
            (100_000, 0),
            (100_999, 999),
            (7, 5000),
            (101_000, NOBODY),
            (99_999, NOBODY),
            (0, NOBODY),
            (8, NOBODY),
        ] {
            let tree = Tree::new(vec![(RootfsPath::root(), entry(host, 100_001))]).unwrap();
            let tree = maps.inside(tree);
            let root = tree.get(&RootfsPath::root()).unwrap();
            assert_eq!((root.uid, root.gid), (seen, 1), "{host}");
        }
        assert_eq!(
            maps.to_string(),
            "uids 0:100000:1000,5000:7:1 gids 0:100000:1000,5000:7:1"
        );
    }

    #[test]
    fn refuse_to_guess_anothers_maps() {
        assert_eq!(
            owners(json!({ "type": "user", "path": "/proc/1/ns/user" })),
            None
        );
        assert_eq!(owners(json!({ "type": "pid" })), None);
    }
}
