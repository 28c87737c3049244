//! The same rootfs judged whole and by its directories; and what stands above the layers.

use super::*;
use crate::{
    digest::FileDigest,
    rootfs::{Engine, LayerBuilder, compare, merge},
};

fn path(text: &str) -> RootfsPath {
    RootfsPath::parse(text.as_bytes()).unwrap()
}

fn entry(kind: Kind, mode: u16) -> Entry {
    Entry {
        kind,
        mode,
        ..Entry::implied_directory()
    }
}

fn file(content: &str) -> Entry {
    let digest = FileDigest::of(content.as_bytes());
    let size = content.len() as u64;
    entry(Kind::File { size, digest }, 0o644)
}

fn directory(mode: u16) -> Entry {
    entry(Kind::Directory, mode)
}

/// As a directory on disk: the root is always there.
fn on_disk(items: &[(&str, Entry)], whiteouts: &[&str], opaque: &[&str]) -> Layer {
    let mut builder = LayerBuilder::default();
    let root = [("", directory(0o755))];
    for (name, entry) in root.iter().chain(items) {
        let item = LayerEntry::Entry(entry.clone());
        builder.restore(path(name), item).unwrap();
    }
    for name in whiteouts {
        builder.whiteout(path(name)).unwrap();
    }
    for name in opaque {
        builder.opaque(path(name)).unwrap();
    }
    builder.build()
}

fn base() -> Layer {
    on_disk(
        &[
            ("bin", directory(0o755)),
            ("bin/app", file("app")),
            ("etc", directory(0o755)),
            ("etc/hosts", file("hosts")),
        ],
        &[],
        &[],
    )
}

/// `usr` has no entry in the archive: the engine made it, with a mode of its own.
fn implied() -> (Layer, Layer) {
    let mut signed = LayerBuilder::default();
    let item = LayerEntry::Entry(file("x"));
    signed.add(path("usr/x"), item).unwrap();
    let found = on_disk(&[("usr", directory(0o700)), ("usr/x", file("x"))], &[], &[]);
    (signed.build(), found)
}

fn checked() -> CheckedLayers {
    let (signed, found) = implied();
    compare_layers(
        &merge([base(), signed]).unwrap(),
        &merge([base(), found]).unwrap(),
    )
    .unwrap()
}

fn docker() -> Stubs {
    Stubs::new(Engine::Docker, [b"/mnt/data".as_slice()]).unwrap()
}

/// What the whole mounted tree says; that both ways agree is the point.
fn both(above: &[Layer]) -> Result<CheckedRootfs, Vec<Difference>> {
    let (signed, found) = implied();
    let expected = merge([base(), signed]).unwrap();
    let layers = [base(), found].into_iter().chain(above.iter().cloned());
    let whole = compare(&expected, merge(layers).unwrap().tree(), &docker());
    let by_directories = checked().with(above.iter().cloned(), &docker()).unwrap();
    match (&whole, &by_directories) {
        (Ok(_), Ok(_)) => assert_eq!(whole, by_directories),
        (Err(_), Err(_)) => {}
        _ => panic!("{whole:?}\n{by_directories:?}"),
    }
    by_directories
}

#[test]
fn accept_a_pristine_upper_directory() {
    assert_eq!(
        both(&[on_disk(&[], &[], &[])]).unwrap().stubs(),
        ["implied-directory:/usr:0700"]
    );
    assert!(both(&[]).is_ok());
}

#[test]
fn accept_stubs_and_copies() {
    let init = on_disk(
        &[("etc", directory(0o755)), ("etc/hosts", file(""))],
        &[],
        &[],
    );
    let upper = on_disk(
        &[
            ("bin", directory(0o755)),
            ("bin/app", file("app")),
            ("mnt", directory(0o755)),
            ("mnt/data", directory(0o755)),
            ("usr", directory(0o755)),
        ],
        &["nothing"],
        &["mnt"],
    );
    let found = both(&[init, upper]).unwrap();
    assert_eq!(
        found.stubs(),
        [
            "docker:/etc/hosts",
            "mount-point:/mnt",
            "mount-point:/mnt/data"
        ]
    );
}

#[test]
fn refuse_what_the_image_does_not_have() {
    let refused = |above: Layer| both(&[above]).unwrap_err();
    let extra = refused(on_disk(
        &[("etc", directory(0o755)), ("etc/evil", file("evil"))],
        &[],
        &[],
    ));
    assert_eq!(extra.len(), 1);
    assert_eq!(extra[0].path, path("etc/evil"));
    refused(on_disk(
        &[("bin", directory(0o755)), ("bin/app", file("other"))],
        &[],
        &[],
    ));
    refused(on_disk(&[("bin", directory(0o4755))], &[], &[]));
    refused(on_disk(&[("bin", file(""))], &[], &[]));
    refused(on_disk(&[("", directory(0o777))], &[], &[]));
}

#[test]
fn refuse_what_was_taken_away() {
    let refused = |above: Layer| both(&[above]).unwrap_err();
    let etc = [("etc", directory(0o755))];
    let missing = Difference {
        path: path("etc/hosts"),
        what: What::Missing,
    };
    assert_eq!(
        refused(on_disk(&etc, &["etc/hosts"], &[])),
        std::slice::from_ref(&missing)
    );
    assert_eq!(refused(on_disk(&etc, &[], &["etc"])), [missing]);
    refused(on_disk(&[], &["usr"], &[]));
    refused(on_disk(&[], &[], &[""]));
    // Taken away by one, put back by the next: the kernel shows it again, and so it is refused only here.
    let back = on_disk(
        &[("etc", directory(0o755)), ("etc/hosts", file("hosts"))],
        &[],
        &[],
    );
    let gone = on_disk(&etc, &["etc/hosts"], &[]);
    assert!(checked().with([gone, back], &docker()).unwrap().is_err());
}

#[test]
fn refuse_other_layers() {
    let (signed, _) = implied();
    let expected = || merge([base(), signed.clone()]).unwrap();
    let hidden = on_disk(&[("bin", directory(0o755))], &["bin/app"], &[]);
    let (_, found) = implied();
    assert!(compare_layers(&expected(), &merge([base()]).unwrap()).is_err());
    assert!(compare_layers(&expected(), &merge([base(), found, hidden]).unwrap()).is_err());
    // A stub is the container's business, never the layers'.
    let stub = on_disk(&[(".dockerenv", file(""))], &[], &[]);
    let (_, found) = implied();
    assert!(compare_layers(&expected(), &merge([base(), found, stub]).unwrap()).is_err());
}
