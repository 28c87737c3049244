//! The table beside index.json: used, out of date, lying, and with many entries.

use super::*;
use crate::{oci, signatures::Store, testkit::Scratch};
use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, time::Instant};

fn entry(number: usize) -> Descriptor {
    let about = BlobDigest::of(number.to_string().as_bytes());
    Descriptor::new(oci::MANIFEST, format!("entry {number}").as_bytes())
        .annotated(super::super::KIND, super::super::KIND_SIGNATURES)
        .annotated(SUBJECT, about.to_string())
}

fn store(entries: usize) -> (Scratch, PathBuf) {
    let scratch = Scratch::new();
    let path = scratch.join("store");
    Store::create(&path).unwrap();
    let directory = Directory::open(&path).unwrap();
    let mut index = directory.index().unwrap();
    index.manifests = (0..entries).map(entry).collect();
    write(&directory, &index).unwrap();
    (scratch, path)
}

fn about(path: &std::path::Path, number: usize) -> Result<Vec<Descriptor>> {
    let digest = BlobDigest::of(number.to_string().as_bytes());
    Entries::open(&Directory::open(path).unwrap())
        .unwrap()
        .about(&digest)
}

#[test]
fn accept_the_table_as_index_json() {
    let (_scratch, path) = store(100);
    let entries = Entries::open(&Directory::open(&path).unwrap()).unwrap();
    assert!(matches!(entries.found, Found::Table { .. }));
    for number in 0..100 {
        assert_eq!(about(&path, number).unwrap(), [entry(number)]);
    }
    assert_eq!(about(&path, 100).unwrap(), []);
    // What says nothing about itself is looked at for every digest, in its place.
    let directory = Directory::open(&path).unwrap();
    let mut index = directory.index().unwrap();
    let silent = Descriptor::new(oci::MANIFEST, b"silent");
    index.manifests.insert(0, silent.clone());
    write(&directory, &index).unwrap();
    assert_eq!(about(&path, 7).unwrap(), [silent.clone(), entry(7)]);
    assert_eq!(about(&path, 200).unwrap(), [silent]);
}

#[test]
fn refuse_a_table_of_another_index() {
    let (_scratch, path) = store(3);
    // as cosign would: index.json alone is written
    let directory = Directory::open(&path).unwrap();
    let mut index = directory.index().unwrap();
    index.manifests.remove(1);
    std::fs::write(path.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    let entries = Entries::open(&directory).unwrap();
    assert!(matches!(entries.found, Found::Whole(_)));
    let digest = BlobDigest::of(b"1");
    let about = entries.about(&digest).unwrap();
    assert!(!about.contains(&entry(1)), "{about:?}");
}

#[test]
fn refuse_a_table_that_leads_astray() {
    let (_scratch, path) = store(3);
    let table = path.join(TABLE);
    let mut bytes = std::fs::read(&table).unwrap();
    for record in bytes[40..].as_chunks_mut::<RECORD>().0 {
        record[32] ^= 1;
    }
    std::fs::write(&table, &bytes).unwrap();
    let error = about(&path, 1).unwrap_err();
    assert!(error.to_string().contains("delete it"), "{error:#}");
    // no table, or one in pieces: index.json alone
    bytes.truncate(50);
    std::fs::write(&table, &bytes).unwrap();
    assert!(about(&path, 1).unwrap().contains(&entry(1)));
    std::fs::remove_file(&table).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &table).unwrap();
    assert!(about(&path, 1).unwrap().contains(&entry(1)));
}

#[test]
fn accept_ten_thousand_signatures() {
    let (_scratch, path) = store(10_000);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let since = Instant::now();
    let found = about(&path, 4321).unwrap();
    println!(
        "one of 10 000 entries, store opened anew: {:?}",
        since.elapsed()
    );
    assert_eq!(found, [entry(4321)]);
    std::fs::remove_file(path.join(TABLE)).unwrap();
    let since = Instant::now();
    assert!(about(&path, 4321).unwrap().contains(&entry(4321)));
    println!("the same without the table: {:?}", since.elapsed());
}
