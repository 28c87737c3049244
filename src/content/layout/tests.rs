//! Images written, read back, packed into tars, and spoiled.

use super::*;
use crate::testkit::{Scratch, archive};
use serde_json::json;

fn layers() -> Vec<Vec<u8>> {
    vec![
        archive(&[
            ("bin/", None),
            ("bin/app", Some(b"app")),
            ("old", Some(b"old")),
        ]),
        archive(&[(".wh.old", Some(b"")), ("etc/new", Some(b"new"))]),
    ]
}

fn tar_of(directory: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", directory).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn accept_what_was_written() {
    let scratch = Scratch::new();
    let path = scratch.join("layout");
    let config = json!({"Cmd": ["/bin/app"]});
    let digest = write_image(&path, "localhost/demo:v1", &layers(), &config).unwrap();
    assert_eq!(
        write_image(&scratch.join("again"), "x", &layers(), &config).unwrap(),
        digest
    );
    let file = ImageFile::open(&path, None).unwrap();
    assert_eq!(file.name.as_deref(), Some("localhost/demo:v1"));
    assert_eq!(
        ImageDigest::of(file.manifest_bytes.as_ref().unwrap()),
        digest
    );
    let rootfs = file.rootfs().unwrap();
    let names: Vec<_> = rootfs
        .tree()
        .iter()
        .map(|(path, _)| path.to_string())
        .collect();
    assert_eq!(names, ["/", "/bin", "/bin/app", "/etc", "/etc/new"]);
    // The same from a tar of the layout.
    let packed = ImageFile::open(&scratch.write("layout.tar", tar_of(&path)), None).unwrap();
    assert_eq!(packed.rootfs().unwrap().digest(), rootfs.digest());
    assert_eq!(packed.config(), file.config());
}

#[test]
fn accept_one_of_several() {
    let scratch = Scratch::new();
    let path = scratch.join("layout");
    let one = write_image(&path, "one", &layers()[..1], &json!({})).unwrap();
    write_image(&path, "two", &layers(), &json!({})).unwrap();
    let chosen = ImageFile::open(&path, Some("one")).unwrap();
    assert_eq!(ImageDigest::of(&chosen.manifest_bytes.unwrap()), one);
    assert!(ImageFile::open(&path, Some(&one.to_string())).is_ok());
    for wrong in [None, Some("three")] {
        let error = format!("{:#}", ImageFile::open(&path, wrong).unwrap_err());
        assert!(error.contains("one, two"), "{error}");
    }
    // A tag that is written again moves.
    let moved = write_image(&path, "one", &layers(), &json!({})).unwrap();
    let chosen = ImageFile::open(&path, Some("one")).unwrap();
    assert_eq!(ImageDigest::of(&chosen.manifest_bytes.unwrap()), moved);
}

#[test]
fn accept_docker_archives() {
    let scratch = Scratch::new();
    let diff_ids: Vec<_> = layers()
        .iter()
        .map(|layer| verify::digest::DiffId::of(layer))
        .collect();
    let config =
        serde_json::to_vec(&json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}})).unwrap();
    let list = json!([{"Config": "c.json", "RepoTags": ["demo:v1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let list = serde_json::to_vec(&list).unwrap();
    let all = layers();
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("c.json", &config);
    add("manifest.json", &list);
    add("a/layer.tar", &all[0]);
    add("shared/layer.tar", &all[1]);
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder
        .append_link(&mut link, "b/layer.tar", "../shared/layer.tar")
        .unwrap();
    let path = scratch.write("docker.tar", builder.into_inner().unwrap());
    let file = ImageFile::open(&path, Some("demo:v1")).unwrap();
    assert_eq!(
        (file.manifest_bytes.is_none(), file.layers.len()),
        (true, 2)
    );
    assert_eq!(file.rootfs().unwrap().tree().count(), 5);
    assert!(ImageFile::open(&path, Some("other")).is_err());
}

#[test]
fn refuse_changed_blobs() {
    let scratch = Scratch::new();
    let path = scratch.join("layout");
    let digest = write_image(&path, "v1", &layers(), &json!({})).unwrap();
    let blob = |hex: &str| path.join("blobs/sha256").join(hex);
    let manifest = Manifest::parse(&std::fs::read(blob(&digest.hex())).unwrap()).unwrap();
    // A layer with another content, well compressed.
    let layer = blob(&manifest.layers()[0].digest.hex());
    let good = std::fs::read(&layer).unwrap();
    std::fs::write(&layer, crate::testkit::gzip(&layers()[1])).unwrap();
    let error = format!(
        "{:#}",
        ImageFile::open(&path, None).unwrap().rootfs().unwrap_err()
    );
    assert!(error.contains("diff-ID"), "{error}");
    std::fs::write(&layer, good).unwrap();
    for hex in [manifest.config().hex(), digest.hex()] {
        let good = std::fs::read(blob(&hex)).unwrap();
        std::fs::write(blob(&hex), [good.as_slice(), b" "].concat()).unwrap();
        let error = format!("{:#}", ImageFile::open(&path, None).unwrap_err());
        assert!(error.contains("another digest"), "{error}");
        std::fs::write(blob(&hex), good).unwrap();
    }
    assert!(ImageFile::open(&path, None).unwrap().rootfs().is_ok());
}

#[test]
fn refuse_what_is_no_image() {
    let scratch = Scratch::new();
    assert!(ImageFile::open(&scratch, None).is_err());
    assert!(ImageFile::open(&scratch.join("absent"), None).is_err());
    let tar = scratch.write("x.tar", archive(&[("a", Some(b"a"))]));
    let error = format!("{:#}", ImageFile::open(&tar, None).unwrap_err());
    assert!(
        error.contains("neither an OCI image layout nor a docker archive"),
        "{error}"
    );
    assert!(write_image(&scratch.join("l"), "x", &layers(), &json!([])).is_err());
}
