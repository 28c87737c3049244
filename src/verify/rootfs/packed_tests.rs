//! Packed and whole say the same of every path; a changed bit is seen before it is understood.

use super::*;
use crate::{
    digest::FileDigest,
    rootfs::{Entry, Kind, LayerBuilder, LayerEntry, merge},
};
use std::sync::atomic::{AtomicU64, Ordering};

fn path(text: &[u8]) -> RootfsPath {
    RootfsPath::parse(text).unwrap()
}

fn layer(paths: impl IntoIterator<Item = Vec<u8>>) -> RootfsManifest {
    let mut layer = LayerBuilder::default();
    for name in paths {
        let digest = FileDigest::of(&name);
        let size = name.len() as u64;
        let entry = Entry {
            kind: Kind::File { size, digest },
            mode: 0o4755,
            uid: 1,
            gid: u32::MAX,
            xattrs: [(b"user.a".to_vec(), vec![0, 1])].into(),
        };
        layer.add(path(&name), LayerEntry::Entry(entry)).unwrap();
    }
    merge([layer.build()]).unwrap()
}

/// Odd names, and so many that there are three levels.
fn large() -> RootfsManifest {
    let many = (0..9_000u32).map(|n| format!("d{}/e{}/file-{n}", n % 7, n % 91).into_bytes());
    let odd = [
        &b"new\nline"[..],
        b"sp ace",
        b"%",
        b"\xff\xfe/x",
        b"d0",
        b"d0-",
        b"d00",
    ];
    let long = [b"l".repeat(255), b"l".repeat(255)].join(&b'/');
    let odd = odd.map(|name| [b"odd/", name].concat());
    layer(many.chain(odd).chain([long]))
}

fn restored(packed: &Packed) -> Packed {
    let nodes = packed.nodes().unwrap();
    Packed::restore(&packed.front_bytes(), Box::new(nodes)).unwrap()
}

#[test]
fn accept_each_path_as_it_was() {
    let manifest = large();
    let notes = vec![(RootfsPath::root(), "root-directory:/:0555".into())];
    let packed = Packed::of(&manifest, notes);
    assert_eq!(packed.front.levels, 2);
    let packed = restored(&packed);
    assert_eq!(packed.front.digest, manifest.digest());
    assert_eq!(packed.front.entries, manifest.tree().count());
    assert_eq!(packed.front.bytes, manifest.tree().bytes());
    assert_eq!(packed.front.notes.len(), 1);
    assert_eq!(packed.unpack().as_ref(), Ok(&manifest));
    for (at, entry) in manifest.tree().iter() {
        let said = packed.at(at).unwrap().unwrap();
        assert_eq!(&*said.entry, entry, "{at}");
        assert_eq!(said.implied, manifest.is_implied(at), "{at}");
        let (Ok(first), Ok(other)) = (manifest.first_below(at), packed.first_below(at)) else {
            panic!("{at}");
        };
        assert_eq!(first, other, "{at}");
    }
    for none in ["d0/e0/file-", "a", "zzz", "d0/e0/file-00", "odd", "d6/e0/x"] {
        let at = path(none.as_bytes());
        let said = packed.at(&at).unwrap().map(|said| said.entry.into_owned());
        assert_eq!(said.as_ref(), manifest.tree().get(&at), "{none}");
    }
}

#[test]
fn accept_the_smallest_tree() {
    let manifest = layer([]);
    let packed = restored(&Packed::of(&manifest, Vec::new()));
    assert_eq!(packed.front.levels, 0);
    assert!(packed.at(&RootfsPath::root()).unwrap().is_some());
    assert!(packed.at(&path(b"x")).unwrap().is_none());
    assert_eq!(packed.unpack(), Ok(manifest));
}

#[test]
fn refuse_every_changed_bit() {
    let manifest = layer((0..200u32).map(|n| format!("d/f{n}").into_bytes()));
    let packed = Packed::of(&manifest, Vec::new());
    assert_eq!(packed.front.levels, 1);
    let (front, nodes) = (packed.front_bytes(), packed.nodes().unwrap());
    for at in 0..nodes.len() {
        let mut bad = nodes.clone();
        bad[at] ^= 1 << (at % 8);
        let packed = Packed::restore(&front, Box::new(bad)).unwrap();
        assert_eq!(packed.unpack(), Err(Damaged), "byte {at}");
    }
    for end in [0, 1, nodes.len() / 2, nodes.len() - 1] {
        let packed = Packed::restore(&front, Box::new(nodes[..end].to_vec())).unwrap();
        assert_eq!(packed.unpack(), Err(Damaged), "{end} bytes");
        assert!(packed.at(&RootfsPath::root()).is_err());
    }
    for end in 0..front.len() {
        assert!(Packed::restore(&front[..end], Box::new(Vec::new())).is_err());
    }
    let longer = [&front[..], b"\0"].concat();
    assert!(Packed::restore(&longer, Box::new(nodes)).is_err());
}

/// Counts what is read of it.
struct Counted(Vec<u8>, Arc<AtomicU64>);

impl Place for Counted {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.1.fetch_add(length as u64, Ordering::Relaxed);
        self.0.read(offset, length)
    }
}

#[test]
fn a_look_reads_a_node_of_each_level() {
    let read = |files: u32| {
        let paths = (0..files).map(|n| format!("d{}/file-{n}", n % 100).into_bytes());
        let packed = Packed::of(&layer(paths), Vec::new());
        let count = Arc::new(AtomicU64::new(0));
        let place = Counted(packed.nodes().unwrap(), count.clone());
        let all = place.0.len() as u64;
        let packed = Packed::restore(&packed.front_bytes(), Box::new(place)).unwrap();
        assert!(packed.at(&path(b"d7/file-7")).unwrap().is_some());
        (count.load(Ordering::Relaxed), all)
    };
    let (few, _) = read(1_000);
    let (many, all) = read(30_000);
    assert!(all > 2_000_000, "{all}");
    assert!(many <= few + 2 * NODE as u64, "{few} and {many} bytes");
}
