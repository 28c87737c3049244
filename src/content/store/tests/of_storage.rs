//! containers-storage: podman, buildah, CRI-O.

use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD};

fn records(host: &Host, name: &str) -> Value {
    let file = host.scratch.join(format!("graph/{name}"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn write(host: &Host, name: &str, content: &[u8]) {
    host.scratch.write(&format!("graph/{name}"), content);
}

#[test]
fn accept_containers_storage() {
    let host = Host::new();
    let (lower, upper) = host.graph();
    let found = host.locate(&lower, &upper, None).unwrap();
    let found = host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
    assert_eq!(found.purpose, Purpose::Run);
    // Many layers: everything relative to the store.
    let lower = ["l/L1".to_owned(), "l/L0".to_owned()];
    let found = host.locate(&lower, "own/diff", None).unwrap();
    host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
}

#[test]
fn accept_sandboxes_and_builds_as_such() {
    let host = Host::new();
    let (lower, upper) = host.graph();
    let file = "overlay-containers/containers.json";
    let containers = records(&host, file);
    let metadata = json!({"image-name": "localhost/demo:v1", "pod": true}).to_string();
    let sandbox = changed(&containers, |all| all[0]["metadata"] = json!(metadata));
    write(&host, file, &sandbox);
    let found = host.locate(&lower, &upper, None).unwrap();
    let found = host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
    assert_eq!(found.purpose, Purpose::Sandbox);
    // buildah's own record tells, whatever the metadata says
    let state = format!("overlay-containers/{STORAGE_ID}/userdata/buildah.json");
    write(&host, &state, b"{}");
    let found = host.locate(&lower, &upper, None).unwrap();
    let found = host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
    assert_eq!(found.purpose, Purpose::Build);
    // under its own id it is podman's, which was committed once
    let mine = changed(&containers, |all| all[0]["id"] = json!(ID));
    write(&host, file, &mine);
    let state = format!("overlay-containers/{ID}/userdata/buildah.json");
    write(&host, &state, b"{}");
    let found = host.locate(&lower, &upper, None).unwrap();
    let found = host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
    assert_eq!(found.purpose, Purpose::Run);
    // from scratch
    let scratch = changed(&containers, |all| all[0]["image"] = json!(""));
    write(&host, file, &scratch);
    let none = host.locate(&lower, &upper, None).unwrap();
    let Located::NoImage(none) = none else {
        panic!("{none:?}")
    };
    assert_eq!(none.purpose, Purpose::Build);
}

#[test]
fn accept_signatures_beside_the_image() {
    let host = Host::new();
    let (lower, upper) = host.graph();
    let image = ConfigDigest::of(&host.config).hex();
    let manifest = ImageDigest::of(&host.manifest);
    let (good, bad) = (sigstore_json(b"payload"), b"\x99GPG".to_vec());
    let metadata =
        json!({"signatures-sizes": {manifest.to_string(): [bad.len(), good.len(), 1000]}});
    let file = "overlay-images/images.json";
    let with = changed(&records(&host, file), |all| {
        all[0]["metadata"] = json!(metadata.to_string())
    });
    write(&host, file, &with);
    let key = format!("signature-{}", manifest.hex());
    let blob = format!("overlay-images/{image}/={}", STANDARD.encode(key));
    write(&host, &blob, &[bad, good].concat());
    let found = host.locate(&lower, &upper, None).unwrap();
    let found = host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
    let [
        Attached::Unusable(gpg),
        Attached::Signature(signature),
        Attached::Unusable(cut),
    ] = &found.attached[..]
    else {
        panic!("{:?}", found.attached)
    };
    assert!(
        gpg.contains("not Sigstore's") && cut.contains("cut off"),
        "{gpg} {cut}"
    );
    let merged = found.signatures(&manifest, &host.signatures).unwrap();
    assert_eq!(&merged, std::slice::from_ref(signature));
    // one that cannot be read is a candidate less, no more
    std::fs::remove_file(host.scratch.join(format!("graph/{blob}"))).unwrap();
    std::os::unix::fs::symlink("/dev/zero", host.scratch.join(format!("graph/{blob}"))).unwrap();
    let found = host.locate(&lower, &upper, None).unwrap();
    let found = host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
    assert!(
        matches!(&found.attached[..], [Attached::Unusable(why)] if why.contains("symbolic link"))
    );
}

#[test]
fn refuse_containers_storage_that_contradicts() {
    let host = Host::new();
    let (lower, upper) = host.graph();
    refused(
        host.locate(&lower[..1], &upper, None),
        "the mount shows the layers",
    );
    let own = host
        .scratch
        .join("graph/overlay/two/diff")
        .display()
        .to_string();
    refused(host.locate(&lower, &own, None), "knows no container");
    let id = ConfigDigest::of(&host.config).hex();
    let config =
        std::fs::read_dir(host.scratch.join(format!("graph/overlay-images/{id}"))).unwrap();
    let config = config
        .flatten()
        .find(|file| file.file_name().to_string_lossy().starts_with('='))
        .unwrap();
    std::fs::write(config.path(), b"{}").unwrap();
    refused(host.locate(&lower, &upper, None), "has the configuration");
}

#[test]
fn refuse_links_in_place_of_store_files() {
    let host = Host::new();
    let (lower, upper) = host.graph();
    for name in ["overlay-images/images.json", "overlay-containers"] {
        let place = host.scratch.join(format!("graph/{name}"));
        let away = host.scratch.join("away");
        std::fs::rename(&place, &away).unwrap();
        std::os::unix::fs::symlink(&away, &place).unwrap();
        refused(host.locate(&lower, &upper, None), "a symbolic link stands");
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(&away, &place).unwrap();
    }
    // a layer's link that leads to another directory of the same store, or out of it
    let link = host.scratch.join("graph/overlay/l/L0");
    for (target, why) in [
        ("../own/diff", "the mount shows"),
        ("../../../etc", "no layer of"),
        ("/etc/diff", "no layer of"),
        ("../one/diff/..", "no layer of"),
    ] {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(target, &link).unwrap();
        refused(host.locate(&lower, &upper, None), why);
    }
}

#[test]
fn refuse_relative_layers_of_two_stores() {
    let host = Host::new();
    host.graph();
    host.docker();
    for name in ["docker/overlay2/l", "docker/overlay2/own"] {
        std::fs::create_dir_all(host.scratch.join(name)).unwrap();
    }
    for link in ["L0", "L1"] {
        let place = host.scratch.join(format!("docker/overlay2/l/{link}"));
        std::os::unix::fs::symlink("../cache0/diff", place).unwrap();
    }
    let lower = ["l/L1".to_owned(), "l/L0".to_owned()];
    refused(
        host.locate(&lower, "own/diff", None),
        "one configured store",
    );
}
