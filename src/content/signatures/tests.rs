//! A store that is filled, found again, imported from and spoiled.

use super::*;
use crate::testkit::Scratch;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use verify::{policy::StoredSignature, signature::SimpleSignature};

struct Image {
    manifest: Vec<u8>,
    config: Vec<u8>,
}

impl Image {
    fn new(label: &str) -> Self {
        let diff_id = verify::digest::DiffId::of(label.as_bytes());
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": oci::MANIFEST,
            "config": Descriptor::new(oci::CONFIG, &config),
            "layers": [Descriptor::new(oci::LAYER_GZIP, label.as_bytes())],
        });
        Self {
            manifest: serde_json::to_vec(&manifest).unwrap(),
            config,
        }
    }
    fn digest(&self) -> ImageDigest {
        ImageDigest::of(&self.manifest)
    }
    fn index(&self) -> Vec<u8> {
        let manifest = Descriptor::new(oci::MANIFEST, &self.manifest);
        serde_json::to_vec(
            &json!({"schemaVersion": 2, "mediaType": oci::INDEX, "manifests": [manifest]}),
        )
        .unwrap()
    }
}

fn payload(image: &ImageDigest) -> Vec<u8> {
    let critical = json!({
        "identity": {"docker-reference": "localhost/demo"},
        "image": {"docker-manifest-digest": image},
        "type": "cosign container image signature",
    });
    serde_json::to_vec(&json!({"critical": critical, "optional": null})).unwrap()
}

fn filled(path: &Path) -> (Store, Image, Image) {
    let store = Store::create(path).unwrap();
    let (one, two) = (Image::new("one"), Image::new("two"));
    for image in [&one, &two] {
        assert_eq!(store.put_manifest(&image.manifest).unwrap(), image.digest());
        store.put_config(&image.config).unwrap();
    }
    (store, one, two)
}

#[test]
fn accept_images_found_again() {
    let scratch = Scratch::new();
    let (store, one, two) = filled(&scratch.join("store"));
    store.put_index(&one.index()).unwrap();
    let config = ConfigDigest::of(&one.config);
    let manifest = (one.digest(), one.manifest.clone());
    assert_eq!(store.manifest_by_config(&config).unwrap(), [manifest]);
    assert_eq!(store.config(&config).unwrap(), Some(one.config.clone()));
    let index = (ImageDigest::of(&one.index()), one.index());
    assert_eq!(store.indexes_containing(&one.digest()).unwrap(), [index]);
    assert_eq!(store.indexes_containing(&two.digest()).unwrap(), []);
    // A second look by another process.
    let again = Store::open(&scratch.join("store")).unwrap();
    assert_eq!(
        again
            .manifest_by_config(&ConfigDigest::of(b"none"))
            .unwrap(),
        []
    );
    assert_eq!(
        again
            .manifest_by_config(&ConfigDigest::of(&two.config))
            .unwrap()
            .len(),
        1
    );
}

fn simple(image: &ImageDigest, signature: &str) -> StoredSignature {
    StoredSignature::Simple(SimpleSignature {
        payload: payload(image),
        signature_b64: signature.into(),
        annotations: [("dev.sigstore.cosign/chain".to_owned(), "pem".to_owned())].into(),
    })
}

fn bundle(image: &ImageDigest, predicate: &str) -> StoredSignature {
    let statement = String::from_utf8(verify::signature::sign_statement(image)).unwrap();
    let statement = statement.replace(SIGN_PREDICATE, predicate);
    StoredSignature::Bundle(verify::signature::key_bundle(
        statement.as_bytes(),
        b"signature",
        b"key",
    ))
}

const SCAN: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";

fn import(store: &Store, path: &Path) -> Imported {
    store.import(path, &|_, _| ()).unwrap()
}

#[test]
fn accept_signatures_beside_each_other() {
    let scratch = Scratch::new();
    let (store, one, two) = filled(&scratch.join("store"));
    for signature in ["first", "second", "second"] {
        let about = store.put(&simple(&one.digest(), signature)).unwrap();
        assert_eq!(about, [one.digest()]);
    }
    store.put(&simple(&two.digest(), "other")).unwrap();
    assert_eq!(
        store.signatures(&one.digest()).unwrap(),
        [
            simple(&one.digest(), "first"),
            simple(&one.digest(), "second")
        ]
    );
    assert_eq!(store.signatures(&two.digest()).unwrap().len(), 1);
    assert_eq!(store.signatures(&ImageDigest::of(b"")).unwrap(), []);
    // One set per image, as cosign keeps them.
    assert_eq!(store.directory.index().unwrap().manifests.len(), 4);
    let nothing = StoredSignature::Bundle(b"{}".to_vec());
    assert!(store.put(&nothing).is_err());
}

#[test]
fn accept_bundles_as_referrers_and_attestations_apart() {
    let scratch = Scratch::new();
    let (store, one, _) = filled(&scratch.join("store"));
    let (signature, scan) = (
        bundle(&one.digest(), SIGN_PREDICATE),
        bundle(&one.digest(), SCAN),
    );
    for _ in 0..2 {
        store.put(&signature).unwrap();
        store.put(&scan).unwrap();
    }
    assert_eq!(store.signatures(&one.digest()).unwrap(), [signature]);
    assert_eq!(store.attestations(&one.digest()).unwrap(), [scan]);
    let index = store.directory.index().unwrap();
    assert_eq!(index.manifests.len(), 4);
    // As image-spec 1.1 has it: artifact type, empty configuration, subject with its size.
    let manifest = store.directory.manifest(&index.manifests[2]).unwrap();
    assert_eq!(manifest.artifact_type.as_deref(), Some(BUNDLE));
    assert_eq!(manifest.config.media_type, oci::EMPTY);
    let subject = manifest.subject.unwrap();
    assert_eq!(subject.image(), one.digest());
    assert_eq!(subject.size, one.manifest.len() as u64);
}

/// A bundle that came before its image is told once, and later with the subject's size.
#[test]
fn accept_bundle_before_its_image() {
    let scratch = Scratch::new();
    let store = Store::create(&scratch.join("store")).unwrap();
    let image = Image::new("late");
    let signature = bundle(&image.digest(), SIGN_PREDICATE);
    store.put(&signature).unwrap();
    store.put_manifest(&image.manifest).unwrap();
    store.put(&signature).unwrap();
    assert_eq!(store.signatures(&image.digest()).unwrap(), [signature]);
}

#[test]
fn accept_single_bundles_and_engines_blobs() {
    let scratch = Scratch::new();
    let image = Image::new("pulled");
    let StoredSignature::Bundle(content) = bundle(&image.digest(), SIGN_PREDICATE) else {
        unreachable!()
    };
    let file = scratch.write("demo.sigstore.json", &content);
    let store = Store::create(&scratch.join("store")).unwrap();
    assert_eq!(import(&store, &file).signatures, 1);
    assert_eq!(store.signatures(&image.digest()).unwrap().len(), 1);

    // containerd keeps blobs without an index: what is signed is found, and no other image.
    let content = Directory::create(&scratch.join("content")).unwrap();
    let signed = Directory::open(&scratch.join("store")).unwrap();
    for digest in signed.documents().unwrap() {
        let blob = signed.blob(digest, oci::MAX_DOCUMENT).unwrap().unwrap();
        content.put(&blob).unwrap();
    }
    let other = Image::new("unsigned");
    for blob in [
        &image.manifest,
        &image.config,
        &image.index(),
        &other.manifest,
        &other.config,
    ] {
        content.put(blob).unwrap();
    }
    for name in ["oci-layout", "index.json"] {
        std::fs::remove_file(scratch.join("content").join(name)).unwrap();
    }
    let engine = Store::create(&scratch.join("engine")).unwrap();
    let imported = import(&engine, &scratch.join("content"));
    assert_eq!(imported.images, [image.digest()]);
    assert_eq!(imported.signatures, 1);
    assert_eq!(engine.signatures(&image.digest()).unwrap().len(), 1);
    let config = ConfigDigest::of(&image.config);
    assert_eq!(engine.manifest_by_config(&config).unwrap().len(), 1);
}

#[test]
fn accept_containers_storage() {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    let scratch = Scratch::new();
    let image = Image::new("podman");
    let id = ConfigDigest::of(&image.config).hex();
    let signature = |text: &str| {
        let json = json!({
            "mimeType": SIMPLE_SIGNING,
            "payload": BASE64.encode(payload(&image.digest())),
            "annotations": {SIGNATURE: text},
        });
        format!("\0sigstore-json\n{json}")
    };
    let signatures = format!("signature-{}", image.digest().hex());
    let manifest = format!("manifest-{}", image.digest());
    let names = ["manifest", &manifest, &signatures, &format!("sha256:{id}")];
    scratch.write(
        "overlay-images/images.json",
        json!([{ "id": id, "big-data-names": names }]).to_string(),
    );
    let put = |key: &str, content: &[u8]| {
        let name = match key {
            "manifest" => key.to_owned(),
            _ => format!("={}", BASE64.encode(key)),
        };
        scratch.write(&format!("overlay-images/{id}/{name}"), content);
    };
    put("manifest", &image.manifest);
    put(&manifest, &image.manifest);
    put(&format!("sha256:{id}"), &image.config);
    let both = [signature("first"), signature("second")].concat();
    put(&signatures, both.as_bytes());
    let store = Store::create(&scratch.join("store")).unwrap();
    let imported = import(&store, &scratch);
    assert_eq!(imported.images, [image.digest()]);
    assert_eq!((imported.signatures, imported.ignored.len()), (2, 0));
    assert_eq!(store.signatures(&image.digest()).unwrap().len(), 2);

    // GPG's are left out, and said.
    put(&signatures, b"\x89gpg");
    assert_eq!(import(&store, &scratch).ignored.len(), 1);
}

#[test]
fn accept_lists_of_their_subjects() {
    let scratch = Scratch::new();
    let (store, one, two) = filled(&scratch.join("store"));
    store
        .put_list(&[one.digest(), two.digest()], b"statement", b"cms")
        .unwrap();
    store.put_list(&[one.digest()], b"newer", b"cms2").unwrap();
    store.put_list(&[one.digest()], b"newer", b"cms2").unwrap();
    let list = |statement: &[u8], cms: &[u8]| StoredList {
        statement: statement.to_vec().into(),
        signature: cms.into(),
    };
    let lists = store.lists(&one.digest()).unwrap();
    assert_eq!(lists, [list(b"statement", b"cms"), list(b"newer", b"cms2")]);
    assert_eq!(
        store.lists(&two.digest()).unwrap(),
        [list(b"statement", b"cms")]
    );
    assert!(store.put_list(&[], b"s", b"c").is_err());
    let unknown = store
        .put_list(&[ImageDigest::of(b"unknown")], b"s", b"c")
        .unwrap_err();
    assert!(
        unknown
            .to_string()
            .contains("import the image's manifest first"),
        "{unknown}"
    );
}

/// As `cosign save` writes: marks, but none of our annotations.
fn cosign_layout(path: &Path, image: &Image) {
    let directory = Directory::create(path).unwrap();
    let payload = payload(&image.digest());
    let layer = Descriptor::new(SIMPLE_SIGNING, &payload).annotated(SIGNATURE, "c2lnbmF0dXJl");
    let config = b"{}".to_vec();
    let signatures = json!({
        "schemaVersion": 2, "mediaType": oci::MANIFEST,
        "config": Descriptor::new(oci::CONFIG, &config), "layers": [layer],
    });
    let signatures = serde_json::to_vec(&signatures).unwrap();
    for blob in [
        &image.manifest,
        &image.config,
        &payload,
        &config,
        &signatures,
    ] {
        directory.put(blob).unwrap();
    }
    let mut index = directory.index().unwrap();
    index.manifests = vec![
        Descriptor::new(oci::MANIFEST, &image.manifest).annotated(KIND, KIND_IMAGE),
        Descriptor::new(oci::MANIFEST, &signatures).annotated(KIND, KIND_SIGNATURES),
    ];
    directory.write_index(&index).unwrap();
}

#[test]
fn accept_cosign_layouts() {
    let scratch = Scratch::new();
    let image = Image::new("saved");
    cosign_layout(&scratch.join("saved"), &image);
    // Used as it is …
    let saved = Store::open(&scratch.join("saved")).unwrap();
    assert_eq!(saved.signatures(&image.digest()).unwrap().len(), 1);
    assert_eq!(
        saved
            .manifest_by_config(&ConfigDigest::of(&image.config))
            .unwrap()
            .len(),
        1
    );
    // … and taken over.
    let store = Store::create(&scratch.join("store")).unwrap();
    for _ in 0..2 {
        let imported = import(&store, &scratch.join("saved"));
        let expected = Imported {
            images: vec![image.digest()],
            signatures: 1,
            lists: 0,
            ignored: vec![],
        };
        assert_eq!(imported, expected);
    }
    assert_eq!(
        store.signatures(&image.digest()).unwrap(),
        saved.signatures(&image.digest()).unwrap()
    );
    // And from one of our own stores to the next, lists included.
    store
        .put_list(&[image.digest()], b"statement", b"cms")
        .unwrap();
    let next = Store::create(&scratch.join("next")).unwrap();
    assert_eq!(import(&next, &scratch.join("store")).lists, 1);
    assert_eq!(
        next.lists(&image.digest()).unwrap(),
        store.lists(&image.digest()).unwrap()
    );
}

#[test]
fn refuse_changed_blobs() {
    let scratch = Scratch::new();
    let (store, one, _) = filled(&scratch.join("store"));
    store.put(&simple(&one.digest(), "s")).unwrap();
    let blob = scratch.join(format!(
        "store/blobs/sha256/{}",
        BlobDigest::of(&payload(&one.digest())).hex()
    ));
    let content = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, b"other").unwrap();
    let error = format!("{:#}", store.signatures(&one.digest()).unwrap_err());
    assert!(error.contains("has the digest"), "{error}");
    std::fs::remove_file(&blob).unwrap();
    assert!(store.signatures(&one.digest()).is_err());
    // The right content through a link.
    std::os::unix::fs::symlink(scratch.write("elsewhere", content), &blob).unwrap();
    assert!(store.signatures(&one.digest()).is_err());
}

#[test]
fn refuse_stores_that_are_none() {
    let scratch = Scratch::new();
    assert!(Store::open(&scratch.join("absent")).is_err());
    assert!(Store::open(&scratch).is_err());
    let (_, _, _) = filled(&scratch.join("store"));
    std::fs::write(scratch.join("store/index.json"), b"{").unwrap();
    let store = Store::open(&scratch.join("store")).unwrap();
    assert!(
        format!("{:#}", store.lists(&ImageDigest::of(b"")).unwrap_err()).contains("index.json")
    );
    std::fs::set_permissions(
        scratch.join("store/blobs"),
        std::fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    let error = Store::open(&scratch.join("store")).unwrap_err().to_string();
    assert!(error.contains("can be written by others"), "{error}");
}

#[test]
fn accept_writers_at_once() {
    let scratch = Scratch::new();
    let path = scratch.join("store");
    Store::create(&path).unwrap();
    let images: Vec<_> = (0..16)
        .map(|number| Image::new(&number.to_string()))
        .collect();
    std::thread::scope(|scope| {
        for image in &images {
            scope.spawn(|| {
                let store = Store::open(&path).unwrap();
                store.put_manifest(&image.manifest).unwrap();
                store.put(&simple(&image.digest(), "s")).unwrap();
            });
        }
    });
    let store = Store::open(&path).unwrap();
    for image in &images {
        assert_eq!(store.signatures(&image.digest()).unwrap().len(), 1);
    }
    let left: Vec<_> = std::fs::read_dir(path.join("blobs/sha256"))
        .unwrap()
        .flatten()
        .collect();
    assert!(
        left.iter()
            .all(|file| !file.file_name().to_string_lossy().starts_with('.'))
    );
}

#[test]
fn accept_a_store_whose_writer_was_killed() {
    let scratch = Scratch::new();
    let path = scratch.join("store");
    drop(filled(&path));
    let left = [
        ".index.json.77.3".to_owned(),
        format!("blobs/sha256/.{}.77.0", "a".repeat(64)),
    ];
    let others = [".note", ".77.3", "blobs/sha256/.x.77"];
    for name in left.iter().map(String::as_str).chain(others) {
        std::fs::write(path.join(name), "half").unwrap();
    }
    // Whoever reads changes nothing.
    Store::open(&path).unwrap();
    assert!(left.iter().all(|name| path.join(name).exists()));
    let store = Store::create(&path).unwrap();
    assert!(left.iter().all(|name| !path.join(name).exists()));
    assert!(others.iter().all(|name| path.join(name).exists()));
    assert_eq!(store.directory.index().unwrap().manifests.len(), 2);
}
