//! Image signatures of every kind and from every source: real cosign, a real registry, engines' stores,
//! and a table of what counts and what does not.

use crate::{
    Module, Test,
    admission::restoring,
    image::Image,
    matrix::{Format, Signer, each_engine},
    namespace::{SOURCES, TOOLS},
    publisher::{Publisher, STORE},
    registry::{self, ADDRESS, REFERRING, Registry},
    spawn::{Cmd, Output},
    world::{Skip, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "signatures",
    prepare: |world| {
        world.open_for_business()?;
        world.ctr()?;
        world.rootfs(0)?;
        crate::engines::warm(world)?;
        registry::start(world)
    },
    tests: &[
        Test::Once("cosign_2_and_we_agree", |world| cosign(world, "trixie")),
        Test::Once("cosign_3_and_we_agree", |world| cosign(world, "sid")),
        Test::Once(
            "what_a_registry_has_is_fetched",
            what_a_registry_has_is_fetched,
        ),
        Test::Once(
            "what_a_registry_lists_as_referrers_is_fetched",
            what_a_registry_lists_as_referrers_is_fetched,
        ),
        // before podman keeps a good signature with the image, which counts too
        Test::Once("simple_by_key_on_each_engine", |world| {
            each_engine(world, Format::Simple, Signer::Key)
        }),
        Test::Once("simple_keyless_on_each_engine", |world| {
            each_engine(world, Format::Simple, Signer::Keyless)
        }),
        Test::Once("bundle_by_key_on_each_engine", |world| {
            each_engine(world, Format::Bundle, Signer::Key)
        }),
        Test::Once("bundle_keyless_on_each_engine", |world| {
            each_engine(world, Format::Bundle, Signer::Keyless)
        }),
        Test::Once(
            "what_inspect_says_of_an_image",
            what_inspect_says_of_an_image,
        ),
        Test::Once("the_matrix", crate::matrix::the_matrix),
        Test::Once(
            "what_engines_keep_is_imported",
            what_engines_keep_is_imported,
        ),
        Test::Once(
            "the_verifier_of_containerd_imports_and_allows",
            the_verifier_of_containerd_imports_and_allows,
        ),
    ],
};

/// A directory of this test's own, empty.
pub fn fresh(world: &World, name: &str) -> Result<PathBuf> {
    let dir = world.work.join("signatures").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

pub fn owner(world: &World) -> Result<&Publisher> {
    Ok(&world.open_for_business()?.owner)
}

/// `attestctl image verify` of a digest in a store.
pub fn verify(world: &World, store: &Path, image: &str, demand: &[&str]) -> Result<Output> {
    let ctl = world.ctl()?.args(["image", "verify", "--digest", image]);
    ctl.arg("--store").arg(store).args(demand).output()
}

pub fn accepted(output: &Output) -> Result<()> {
    ensure!(output.code() == 0, "this should be accepted: {output}");
    Ok(())
}

fn refused(output: &Output, words: &str) -> Result<()> {
    ensure!(output.code() == 1, "this should be refused: {output}");
    output.says(words)?;
    Ok(())
}

// --- real cosign ---

/// cosign of that suite of Debian, where tests/peers has put it.
pub fn real_cosign(suite: &str) -> Result<PathBuf> {
    let program = Path::new(TOOLS).join(format!("cosign-{suite}"));
    if !program.exists() {
        return Err(Skip(format!(
            "there is no cosign of {suite} (tests/peers fetches it)"
        ))
        .into());
    }
    Ok(program)
}

/// Each signs, the other verifies: simple signatures with both, bundles with cosign 3.
fn cosign(world: &World, suite: &str) -> Result<()> {
    let cosign = real_cosign(suite)?;
    let bundles = suite == "sid";
    let dir = fresh(world, &format!("cosign-{suite}"))?;
    let run = |args: &[&str]| {
        let env = Cmd::new("env").arg("COSIGN_PASSWORD=").arg(&cosign);
        env.args(args).cwd(&dir)
    };
    run(&["generate-key-pair"]).ok()?;

    // cosign signs what lies in a registry.
    let demo = &world.images()?.demo;
    let repository = format!("cosign-{suite}");
    registry::PLAIN.push_blobs(&demo.layout, &repository)?;
    let manifest = fs::read(demo.blob(&demo.manifest))?;
    registry::PLAIN.push_manifest(&repository, "v1", &manifest)?;
    let image = format!("{ADDRESS}/{repository}@{}", demo.manifest);
    let sign = ["sign", "--key", "cosign.key", "-y", "--allow-http-registry"];
    let unlogged = ["--tlog-upload=false"];
    let simple: &[&str] = match bundles {
        true => &["--new-bundle-format=false", "--use-signing-config=false"],
        false => &[],
    };
    run(&sign).args(unlogged).args(simple).arg(&image).ok()?;
    if bundles {
        run(&["signing-config", "create", "--out", "none.json"]).ok()?;
        let none = ["--signing-config", "none.json"];
        run(&sign).args(none).arg(&image).ok()?;
    }

    let store = dir.join("store");
    let fetch = world
        .ctl()?
        .args(["--json", "fetch", "--store"])
        .arg(&store);
    let fetched: Value = serde_json::from_str(&fetch.arg(&image).ok()?.stdout)?;
    let expected = if bundles { 2 } else { 1 };
    ensure!(fetched["signatures"] == json!(expected), "{fetched}");
    let key = dir.join("cosign.pub").display().to_string();
    let judged = verify(world, &store, &demo.manifest, &["--key", &key])?;
    accepted(&judged)?;
    ensure!(
        judged.stdout.matches("signed by").count() == expected,
        "{judged}"
    );
    let other = owner(world)?.at("image.pub").display().to_string();
    let judged = verify(world, &store, &demo.manifest, &["--key", &other])?;
    refused(&judged, "was not made by")?;

    // `cosign save` leaves the same in a directory.
    let saved = dir.join("saved").display().to_string();
    let save = ["save", "--allow-http-registry", "--dir", &saved];
    run(&save).arg(&image).ok()?;
    let store = dir.join("imported");
    let import = world.ctl()?.args(["import", "--store"]).arg(&store);
    import.arg(&saved).ok()?;
    accepted(&verify(world, &store, &demo.manifest, &["--key", &key])?)?;

    // And cosign verifies ours, from our own store.
    let formats: &[(&str, &[&str])] = match bundles {
        true => &[
            ("ours", &["--reference", "localhost/e2e/demo"]),
            ("ours-bundle", &["--new-bundle-format"]),
        ],
        false => &[("ours", &["--reference", "localhost/e2e/demo"])],
    };
    for (name, form) in formats {
        let store = dir.join(name);
        let sign = world.ctl()?.args(["image", "sign", "--store"]).arg(&store);
        let sign = sign.arg("--key").arg(owner(world)?.at("image.key"));
        sign.args(*form).arg(&demo.layout).ok()?;
        let repository = format!("{repository}-{name}");
        publish(&store, &demo.layout, &repository)?;
        let image = format!("{ADDRESS}/{repository}@{}", demo.manifest);
        let verify = |key: &str| {
            let offline = ["--insecure-ignore-tlog=true", "--private-infrastructure"];
            let verify = run(&["verify", "--allow-http-registry", "--key", key]);
            verify.args(offline).arg(&image)
        };
        verify(&other)
            .ok()?
            .says("verified against the specified")?;
        verify(&key).fails()?;
    }
    Ok(())
}

/// Puts the image of `layout`, and what `store` has about it, into a registry, as cosign finds it there.
pub fn publish(store: &Path, layout: &Path, repository: &str) -> Result<()> {
    publish_to(registry::PLAIN, store, layout, repository)
}

pub fn publish_to(to: Registry, store: &Path, layout: &Path, repository: &str) -> Result<()> {
    to.push_blobs(layout, repository)?;
    to.push_blobs(store, repository)?;
    let index: Value = serde_json::from_slice(&fs::read(store.join("index.json"))?)?;
    let mut referrers = Vec::new();
    for entry in index["manifests"].as_array().context("no manifests")? {
        let name = entry["digest"].as_str().context("no digest")?;
        let content = fs::read(store.join("blobs").join(name.replace(':', "/")))?;
        let subject = entry["annotations"]["dev.attestrun.subject"].as_str();
        match (subject, entry["annotations"]["kind"].as_str()) {
            (None, _) => to.push_manifest(repository, "v1", &content)?,
            (Some(subject), Some(_)) => {
                let tag = format!("{}.sig", subject.replace(':', "-"));
                to.push_manifest(repository, &tag, &content)?;
            }
            (Some(subject), None) => {
                to.push_manifest(repository, name, &content)?;
                referrers.push((subject, entry.clone()));
            }
        }
    }
    for (subject, _) in &referrers {
        if to.lists_referrers() {
            continue;
        }
        let of_it = referrers.iter().filter(|(s, _)| s == subject);
        let entries: Vec<_> = of_it.map(|(_, entry)| entry.clone()).collect();
        to.push_referrers(repository, subject, &entries)?;
    }
    Ok(())
}

// --- sources ---

/// Both formats about one image, signed by the owner.
pub fn signed_twice(world: &World, store: &Path, image: &Image) -> Result<()> {
    for form in [
        &["--reference", image.repository()][..],
        &["--new-bundle-format"],
    ] {
        let sign = world.ctl()?.args(["image", "sign", "--store"]).arg(store);
        let sign = sign.arg("--key").arg(owner(world)?.at("image.key"));
        sign.args(form).arg(&image.layout).ok()?;
    }
    Ok(())
}

fn what_a_registry_has_is_fetched(world: &World) -> Result<()> {
    let dir = fresh(world, "fetch")?;
    let demo = &world.images()?.demo;
    signed_twice(world, &dir.join("owner"), demo)?;
    publish(&dir.join("owner"), &demo.layout, "fetch/demo")?;
    let store = dir.join("store");
    let fetch = |name: &str| -> Result<Cmd> {
        let fetch = world.ctl()?.args(["--json", "fetch", "--store"]);
        Ok(fetch.arg(&store).arg(name))
    };
    let name = format!("{ADDRESS}/fetch/demo:v1");
    // Twice is as once.
    for _ in 0..2 {
        let fetched: Value = serde_json::from_str(&fetch(&name)?.ok()?.stdout)?;
        ensure!(
            fetched["signatures"] == json!(2) && fetched["images"] == json!([demo.manifest]),
            "{fetched}"
        );
    }
    let key = owner(world)?.at("image.pub").display().to_string();
    let judged = verify(world, &store, &demo.manifest, &["--key", &key])?;
    accepted(&judged)?;
    ensure!(judged.stdout.matches("signed by").count() == 2, "{judged}");
    // Layers stay where they are.
    let largest = fs::read_dir(store.join("blobs/sha256"))?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .collect::<Result<Vec<_>>>()?;
    ensure!(largest.iter().all(|size| *size < 10_000), "{largest:?}");

    let absent = fetch(&format!("{ADDRESS}/fetch/absent:v1"))?.exits(2)?;
    absent.says("no such image")?;
    let nobody = fetch("127.0.0.1:5999/demo:v1")?.exits(2)?;
    nobody.says("127.0.0.1:5999/demo:v1")?;
    fetch("no name")?.exits(64)?;
    let left: Vec<_> = fs::read_dir(&dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    ensure!(left.len() == 2, "a fetch leaves nothing beside: {left:?}");
    Ok(())
}

/// Of a registry that lists referrers itself: our bundle, and cosign 3's where that is here; no tag stands in
/// for the list.
fn what_a_registry_lists_as_referrers_is_fetched(world: &World) -> Result<()> {
    registry::start_referring(world)?;
    let done = fetched_by_referrers(world);
    world.stop("registry of referrers")?;
    done
}

fn fetched_by_referrers(world: &World) -> Result<()> {
    let dir = fresh(world, "referrers")?;
    let demo = &world.images()?.demo;
    let key = owner(world)?.at("image.pub").display().to_string();
    signed_twice(world, &dir.join("owner"), demo)?;
    publish_to(REFERRING, &dir.join("owner"), &demo.layout, "demo")?;
    let stand_in = demo.manifest.replace(':', "-");
    ensure!(REFERRING.has("demo", "referrers", &demo.manifest)?);
    ensure!(!REFERRING.has("demo", "manifests", &stand_in)?);
    let image = format!("{}/demo@{}", REFERRING.0, demo.manifest);
    let fetch = |store: &Path, expected: usize| -> Result<()> {
        let fetch = world.ctl()?.args(["--json", "fetch", "--store"]);
        let fetched: Value = serde_json::from_str(&fetch.arg(store).arg(&image).ok()?.stdout)?;
        ensure!(fetched["signatures"] == json!(expected), "{fetched}");
        Ok(())
    };
    let store = dir.join("ours");
    fetch(&store, 2)?;
    let judged = verify(world, &store, &demo.manifest, &["--key", &key])?;
    accepted(&judged)?;
    ensure!(judged.stdout.matches("signed by").count() == 2, "{judged}");

    let Ok(cosign) = real_cosign("sid") else {
        return Ok(());
    };
    let run = |args: &[&str]| {
        let env = Cmd::new("env").arg("COSIGN_PASSWORD=").arg(&cosign);
        env.args(args).cwd(&dir)
    };
    run(&["generate-key-pair"]).ok()?;
    run(&["signing-config", "create", "--out", "none.json"]).ok()?;
    run(&["sign", "--key", "cosign.key", "-y", "--allow-http-registry"])
        .args(["--signing-config", "none.json", &image])
        .ok()?;
    ensure!(!REFERRING.has("demo", "manifests", &stand_in)?);
    let store = dir.join("theirs");
    fetch(&store, 3)?;
    let key = dir.join("cosign.pub").display().to_string();
    accepted(&verify(world, &store, &demo.manifest, &["--key", &key])?)
}

/// Digests and layers as the files themselves have them, and what is said about the image, unproved.
fn what_inspect_says_of_an_image(world: &World) -> Result<()> {
    let dir = fresh(world, "inspect")?;
    let demo = &world.images()?.demo;
    signed_twice(world, &dir.join("owner"), demo)?;
    let manifest: Value = serde_json::from_slice(&fs::read(demo.blob(&demo.manifest))?)?;
    let config = manifest["config"]["digest"].as_str().context("config")?;
    let diff_ids: Value = serde_json::from_slice(&fs::read(demo.blob(config))?)?;
    for image in [&demo.layout, &demo.archive] {
        let inspect = world.ctl()?.args(["--json", "image", "inspect", "--store"]);
        let inspect = inspect.arg(dir.join("owner")).arg(image);
        let said: Value = serde_json::from_str(&inspect.ok()?.stdout)?;
        ensure!(said["manifest"] == json!(demo.manifest), "{said:#}");
        ensure!(said["config"] == json!(config), "{said:#}");
        let layers = said["layers"].as_array().context("layers")?;
        let of = |key: &str| layers.iter().map(|l| l[key].clone()).collect::<Vec<_>>();
        let blobs = manifest["layers"].as_array().context("layers")?.iter();
        let blobs: Vec<_> = blobs.map(|layer| layer["digest"].clone()).collect();
        ensure!(of("digest") == blobs, "{said:#}");
        ensure!(
            json!(of("diff_id")) == diff_ids["rootfs"]["diff_ids"],
            "{said:#}"
        );
        let unproved = said["unproved"].as_array().context("unproved")?;
        let any = |key: &str, value: &str| unproved.iter().any(|one| one[key] == value);
        ensure!(unproved.len() == 2, "{said:#}");
        ensure!(any("reference", demo.repository()), "{said:#}");
        ensure!(
            any("predicate_type", "https://sigstore.dev/cosign/sign/v1"),
            "{said:#}"
        );
    }
    let bare = world
        .ctl()?
        .args(["image", "inspect"])
        .arg(&demo.layout)
        .ok()?;
    bare.says(&demo.manifest)?.says_not("unproved")?;
    Ok(())
}

/// containerd's content store, and containers-storage, as the engines themselves have filled them.
fn what_engines_keep_is_imported(world: &World) -> Result<()> {
    let dir = fresh(world, "engines")?;
    let demo = &world.images()?.demo;
    let key = owner(world)?.at("image.pub").display().to_string();
    signed_twice(world, &dir.join("owner"), demo)?;
    publish(&dir.join("owner"), &demo.layout, "engines/demo")?;

    let hex = demo.manifest.replace(':', "-");
    for tag in [format!("{hex}.sig"), hex] {
        let fetch = world.ctr()?.args(["content", "fetch", "--plain-http"]);
        fetch.arg(format!("{ADDRESS}/engines/demo:{tag}")).ok()?;
    }
    let store = dir.join("containerd");
    let content = "/var/lib/containerd/io.containerd.content.v1.content";
    let import = world.ctl()?.args(["import", "--store"]).arg(&store);
    import.arg(content).ok()?.says("2 signatures")?;
    let judged = verify(world, &store, &demo.manifest, &["--key", &key])?;
    accepted(&judged)?;
    ensure!(judged.stdout.matches("signed by").count() == 2, "{judged}");

    // podman takes simple signatures along where registries.d says so.
    let registries = "/etc/containers/registries.d/e2e.yaml";
    fs::create_dir_all("/etc/containers/registries.d")?;
    fs::write(
        registries,
        format!("docker:\n  {ADDRESS}:\n    use-sigstore-attachments: true\n"),
    )?;
    let name = format!("{ADDRESS}/engines/demo:v1");
    let pull = world
        .podman()?
        .args(["pull", "--quiet", "--tls-verify=false"]);
    let pulled = pull.arg(&name).ok();
    fs::remove_file(registries)?;
    pulled?;
    let store = dir.join("podman");
    let import = world.ctl()?.args(["import", "--store"]).arg(&store);
    let imported = import.arg("/var/lib/containers/storage").ok();
    world.podman()?.args(["untag", &name, &name]).ok()?;
    imported?;
    accepted(&verify(world, &store, &demo.manifest, &["--key", &key])?)
}

/// Called as containerd 2.x calls it (docs/image-verification.md); that one is not in Debian 12.
fn the_verifier_of_containerd_imports_and_allows(world: &World) -> Result<()> {
    restoring(STORE, || called_as_containerd_does(world))
}

fn called_as_containerd_does(world: &World) -> Result<()> {
    let dir = fresh(world, "verifier")?;
    let demo = &world.images()?.demo;
    signed_twice(world, &dir.join("owner"), demo)?;
    publish(&dir.join("owner"), &demo.layout, "verifier/demo")?;
    let plugin = Path::new(SOURCES).join("packaging/engines/attestrun-image-verifier");
    let descriptor = dir.join("descriptor.json");
    let text = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": demo.manifest,
        "size": 1,
    });
    fs::write(&descriptor, text.to_string())?;
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(world.program("attestctl")?, bin.join("attestctl"))?;
    let call = |name: &str, digest: &str| {
        Cmd::new("env")
            .arg(format!("PATH={}:/usr/bin:/bin", bin.display()))
            .arg(&plugin)
            .args(["-name", name, "-digest", digest])
            .args([
                "-stdin-media-type",
                "application/vnd.oci.descriptor.v1+json",
            ])
            .stdin(&descriptor)
    };
    let name = format!("{ADDRESS}/verifier/demo:v1");
    let allowed = call(&name, &demo.manifest).ok()?;
    ensure!(!allowed.stdout.trim().is_empty(), "a reason is printed");
    let key = owner(world)?.at("image.pub").display().to_string();
    let store = Path::new(STORE);
    let judged = verify(world, store, &demo.manifest, &["--key", &key])?;
    ensure!(judged.stdout.contains("signed by"), "{judged}");
    // Another digest than the name has by now: what containerd pulls is what is looked at.
    let other = format!("sha256:{}", "0".repeat(64));
    let unknown = call(&name, &other).fails()?;
    unknown.says(&other)?;
    call("", &demo.manifest).fails()?;
    Ok(())
}
