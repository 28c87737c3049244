//! Images by their names in each store.

use super::*;

fn found(host: &Host, name: &str, api: Option<&Api>) -> Vec<Named> {
    let connect = |_: &ContainerdRoot, _: &str| -> anyhow::Result<Box<dyn Containerd>> {
        let api = api.cloned();
        Ok(Box::new(api.ok_or_else(|| anyhow::anyhow!("connect"))?))
    };
    named(name, &host.roots(), &host.signatures, &connect)
}

#[track_caller]
fn check(host: &Host, found: Vec<Named>, store: &str, name: &str) {
    let [one] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert!(one.store.contains(store), "{}", one.store);
    assert_eq!(one.name, name);
    let claims = one.claims.as_ref().unwrap();
    assert_eq!(claims[0].name, name);
    assert_eq!(claims[0].manifest_bytes, host.manifest);
    verify::image::Image::of(&claims[0]).unwrap();
}

#[test]
fn accept_names_and_ids_of_each_store() {
    let id = |host: &Host| ConfigDigest::of(&host.config).hex();

    let host = Host::new();
    host.graph();
    for name in [
        "localhost/other:v1",
        "other:v1",
        &id(&host),
        &id(&host)[..12],
    ] {
        let found = found(&host, name, None);
        check(&host, found, "containers-storage", "localhost/other:v1");
    }
    assert!(found(&host, "localhost/other", None).is_empty());

    let host = Host::new();
    host.docker();
    let names = json!({"Repositories": {"demo": {"demo:v1": ConfigDigest::of(&host.config)}}});
    let file = "docker/image/overlay2/repositories.json";
    host.scratch.write(file, names.to_string());
    let [unknown] = &found(&host, "demo:v1", None)[..] else {
        panic!("not one");
    };
    assert!(matches!(
        unknown.claims,
        Err(LocateError::NoManifest { .. })
    ));
    host.signatures.put_manifest(&host.manifest).unwrap();
    for name in ["demo:v1", "docker.io/library/demo:v1", &id(&host)] {
        check(&host, found(&host, name, None), "Docker", "demo:v1");
    }
    host.scratch.write(file, "[]");
    assert!(found(&host, "demo:v1", None)[0].claims.is_err());

    let host = Host::new();
    let (_, _, mut api) = host.containerd();
    let record = ConfigDigest::of(&host.config).to_string();
    let target = ImageDigest::of(&host.manifest);
    api.images.insert(record.clone(), target);
    for (typed, name) in [("demo:v1", "localhost/demo:v1"), (&record, &record)] {
        let found = found(&host, typed, Some(&api));
        check(&host, found, "containerd", name);
    }
    // a containerd that does not answer is told, and nothing is made of it
    let silent = found(&host, "demo:v1", None);
    assert!(matches!(silent[0].claims, Err(LocateError::Failed(_))));
}
