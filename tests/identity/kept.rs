//! Signatures that an engine keeps with an image, beside the host's store, which has none of it; and images
//! of nothing.

use super::{ctr, docker, forget, good, load, podman};
use crate::{
    admission::{refusal, restoring},
    host::{POLICY, TRUST, policy},
    image::{Image, Plan},
    publisher::{LIST, Publisher, STORE, rule},
    registry::ADDRESS,
    signatures::{fresh, publish},
    world::World,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

const REGISTRIES: &str = "/etc/containers/registries.d/e2e.yaml";

pub fn what_engines_keep_counts(world: &World) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let plan = Plan {
        name: "localhost/e2e/kept:v1",
        text: "kept\n",
    };
    let image = Image::make(&world.work.join("images"), &plan)?;
    let repository = format!("{ADDRESS}/kept/app");
    let store = fresh(world, "kept")?.join("owner");
    let sign = owner.ctl(&["image", "sign", "--reference", &repository, "--store"]);
    let sign = sign.arg(&store).arg("--key").arg(owner.at("image.key"));
    sign.arg(&image.layout).ok()?;
    publish(&store, &image.layout, "kept/app")?;
    restoring(STORE, || {
        listed(world, owner, &image)?;
        restoring(POLICY, || {
            let rule = rule("kept", &repository, Path::new(TRUST));
            fs::write(POLICY, format!("{}\n{rule}", policy("enforce")))?;
            let name = format!("{repository}:v1");
            kept_by_podman(world, &name)?;
            kept_by_containerd(world, &name, &image)
        })
    })
}

/// The host's store has the image's manifest and its owner's list, no signature.
fn listed(world: &World, owner: &Publisher, image: &Image) -> Result<()> {
    let list = world.work.join("kept.json");
    let create = owner.ctl(&["list", "create", "--name", LIST]);
    let create = create.args(["--serial", "1", "--days", "30", "--output"]);
    create.arg(&list).arg(&image.layout).ok()?;
    let import = owner.ctl(&["import", "--store", STORE]);
    import.arg(&image.layout).ok()?;
    owner.import(&list, &owner.sign_list(&list)?)
}

/// containers-storage's big data, taken along where registries.d says so.
fn kept_by_podman(world: &World, name: &str) -> Result<()> {
    let pull = || {
        let pull = world
            .podman()?
            .args(["pull", "--quiet", "--tls-verify=false"]);
        pull.arg(name).ok()
    };
    let forget = || world.podman()?.args(["rmi", "-f", name]).ok();
    pull()?;
    refusal(&podman(world, name, &[])?, "it is not signed")?;
    forget()?;

    fs::create_dir_all("/etc/containers/registries.d")?;
    let attached = format!("docker:\n  {ADDRESS}:\n    use-sigstore-attachments: true\n");
    fs::write(REGISTRIES, attached)?;
    let pulled = pull();
    fs::remove_file(REGISTRIES)?;
    let id = pulled?.stdout.trim().to_owned();
    good(&podman(world, name, &[])?).context("with podman's signature")?;

    // The image's, and once more its manifest's.
    let kept = big_data(&id)?;
    for (file, original) in &kept {
        fs::write(file, of_another_content(original)?)?;
    }
    let spoiled = podman(world, name, &[])?;
    for (file, original) in &kept {
        fs::write(file, original)?;
    }
    refusal(&spoiled, "was not made by key").context("spoiled")?;
    good(&podman(world, name, &[])?).context("as it was")?;
    forget()?;
    Ok(())
}

/// The files in which containers-storage keeps an image's signatures.
fn big_data(id: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let dir = Path::new("/var/lib/containers/storage/overlay-images").join(id);
    let mut kept = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let file = entry?.path();
        let content = fs::read(&file)?;
        if content.starts_with(b"\0sigstore-json\n") {
            kept.push((file, content));
        }
    }
    ensure!(!kept.is_empty(), "podman keeps none in {}", dir.display());
    Ok(kept)
}

/// The same with one character of the signature changed, in the middle: of base64 still.
fn of_another_content(kept: &[u8]) -> Result<Vec<u8>> {
    let mark = br#""dev.cosignproject.cosign/signature":""#;
    let begins = kept.windows(mark.len()).position(|part| part == mark);
    let at = begins.context("no signature")? + mark.len() + 40;
    let mut changed = kept.to_owned();
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    Ok(changed)
}

/// Images of cosign's tags, as somebody has pulled them.
fn kept_by_containerd(world: &World, name: &str, image: &Image) -> Result<()> {
    let signature = name.replace(":v1", &format!(":{}.sig", image.manifest.replace(':', "-")));
    let pull = world.ctr()?.args(["image", "pull", "--plain-http"]);
    pull.arg(name).ok()?;
    refusal(&ctr(world, name, &[])?, "it is not signed")?;
    let fetch = world.ctr()?.args(["content", "fetch", "--plain-http"]);
    fetch.arg(&signature).ok()?;
    good(&ctr(world, name, &[])?).context("with containerd's signature")?;
    let remove = |name: &str| world.ctr()?.args(["image", "rm", "--sync", name]).ok();
    remove(&signature)?;
    refusal(&ctr(world, name, &[])?, "it is not signed")?;
    remove(name)?;
    Ok(())
}

/// Their roots are empty and alike; which is which, the engines' records say.
pub fn images_without_layers(world: &World) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let make = |tag: &str| {
        let name = format!("localhost/e2e/demo:{tag}");
        Image::of_nothing(&world.work.join("images"), &name, tag)
    };
    let (signed, other) = (make("nothing")?, make("void")?);
    load(world, &signed)?;
    load(world, &other)?;
    let each_says = |image: &Image, words: &str| -> Result<()> {
        let name = image.name.as_str();
        for output in [
            podman(world, name, &[])?,
            ctr(world, name, &[])?,
            docker(world, name)?,
        ] {
            refusal(&output, words)?;
            output.says(name)?;
        }
        Ok(())
    };
    // docker keeps no manifests: what is not signed has none there
    let unsigned = "it is not signed|has no manifest";
    restoring(STORE, || {
        each_says(&signed, unsigned)?;
        owner.sign(&signed)?;
        // Nothing is in it that a list could name: this is as far as it comes.
        each_says(&signed, &format!("no list `{LIST}`"))?;
        each_says(&other, unsigned)
    })?;
    forget(world, &signed.name)?;
    forget(world, &other.name)
}
