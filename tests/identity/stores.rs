//! Roots that did not come the usual way: mounts of somebody's own making, bundles, builds, an engine
//! that does not answer.

use super::{DEMO, ctr, good, ours, podman};
use crate::{
    admission::{refusal, restoring, runs},
    cmd,
    host::{CONFIG, POLICY, TRUST, policy},
    publisher::rule,
    runtime::Bundle,
    world::{Rootfs, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

/// The overlay's options of the mount at `path`.
fn overlay_options(path: &Path) -> Result<Value> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let place = path.display().to_string();
    let line = mounts.lines().find(|l| l.split(' ').nth(4) == Some(&place));
    let options = line
        .context("no mount")?
        .rsplit(' ')
        .next()
        .unwrap_or_default();
    let pairs = options.split(',').filter_map(|o| o.split_once('='));
    Ok(pairs
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect())
}

pub fn relative_layers_of_another_directory(world: &World) -> Result<()> {
    let rt = ours(world)?;
    world.with_rootfs(&world.images()?.demo, |rootfs| {
        let options = overlay_options(&rootfs.path)?;
        let option = |key: &str| options[key].as_str().unwrap_or_default().to_owned();
        // The same names lead to other files, seen from a directory of our own.
        let ours = world.work.join("confusion");
        let mut names = Vec::new();
        for lower in option("lowerdir").split(':') {
            let link = Path::new(lower).file_name().context("link")?;
            let copy = ours.join("l").join(link);
            fs::create_dir_all(&copy)?;
            let from = Path::new(lower).canonicalize()?.join(".");
            cmd!("cp", "-a", from, &copy).ok()?;
            if copy.join("etc/layer2").exists() {
                fs::write(copy.join("etc/layer2"), "evil\n")?;
            }
            names.push(format!("l/{}", link.to_string_lossy()));
        }
        cmd!("umount", &rootfs.path).ok()?;
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            names.join(":"),
            option("upperdir"),
            option("workdir")
        );
        let mount = cmd!(
            "mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            &data,
            &rootfs.path
        );
        mount.cwd(&ours).ok()?;
        let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
        let output = rt.run(&bundle)?;
        cmd!("umount", &rootfs.path).ok()?;
        // From the store's own directory the very same words are the image.
        let store = Path::new("/var/lib/containers/storage/overlay");
        let mount = cmd!(
            "mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            &data,
            &rootfs.path
        );
        mount.cwd(store).ok()?;
        refusal(&output, "etc/layer2")?;
        runs(&rt, &bundle)
    })
}

pub fn a_link_in_place_of_a_store_file(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = Bundle::make(&world.work, &world.rootfs(0)?, &["/bin/true"])?;
    runs(&rt, &bundle)?;
    let store = Path::new("/var/lib/containers/storage");
    for name in [
        "overlay-images/images.json",
        "overlay-containers/containers.json",
        "overlay-layers/layers.json",
    ] {
        let (file, away) = (store.join(name), world.work.join("away.json"));
        fs::copy(&file, &away)?;
        let kept = file.with_extension("kept");
        fs::rename(&file, &kept)?;
        symlink(&away, &file)?;
        let output = rt.run(&bundle);
        fs::remove_file(&file)?;
        fs::rename(&kept, &file)?;
        refusal(&output?, "symbolic link").with_context(|| name.to_owned())?;
    }
    runs(&rt, &bundle)
}

pub fn a_part_of_an_overlay(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let part = Rootfs {
        id: "e2e-identity-part".into(),
        path: world.work.join("part"),
    };
    fs::create_dir_all(&part.path)?;
    let from = world.rootfs(0)?.path;
    cmd!("mount", "--bind", from.join("usr"), &part.path).ok()?;
    let bundle = Bundle::make(&world.work, &part, &["/local/bin/echo"])?;
    world.note(&bundle.id);
    let output = rt.run(&bundle);
    cmd!("umount", &part.path).ok()?;
    refusal(&output?, "only /usr of an overlay")?;
    // the whole of it, bound elsewhere, is the image
    cmd!("mount", "--bind", &from, &part.path).ok()?;
    let bundle = Bundle::make(&world.work, &part, &["/bin/true"])?;
    let done = runs(&rt, &bundle);
    cmd!("umount", &part.path).ok()?;
    done
}

/// A bundle as `umoci unpack` leaves it, with the layout beside.
pub fn umocis_bundle(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let demo = &world.images()?.demo;
    let place = world.work.join("umoci");
    let rootfs = place.join("bundle/rootfs");
    fs::create_dir_all(&rootfs)?;
    cmd!("cp", "-a", &demo.layout, place.join("layout")).ok()?;
    cmd!("cp", "-a", world.rootfs(0)?.path.join("."), &rootfs).ok()?;
    fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o755))?;
    let walk = json!([{ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": demo.manifest, "size": 1 }]);
    let meta = json!({ "umoci_version": "2", "from_descriptor_path": { "descriptor_walk": walk } });
    let root = Rootfs {
        id: "e2e-identity-umoci".into(),
        path: rootfs.clone(),
    };
    // as umoci's own, the bundle holds its root
    let made = Bundle::make(&world.work, &root, &["/bin/true"])?;
    let bundle = Bundle {
        dir: place.join("bundle"),
        ..made
    };
    bundle.write()?;
    world.note(&bundle.id);
    refusal(&rt.run(&bundle)?, "belongs to no image")?;
    fs::write(place.join("bundle/umoci.json"), meta.to_string())?;
    // it has no name, so only a rule for everything is for it
    refusal(&rt.run(&bundle)?, "no rule")?;
    restoring(POLICY, || {
        let any = rule("any", "*", Path::new(TRUST));
        fs::write(POLICY, format!("{}{any}", policy("enforce")))?;
        runs(&rt, &bundle)?;
        fs::write(rootfs.join("etc/layer2"), "evil\n")?;
        refusal(&rt.run(&bundle)?, "etc/layer2")?;
        fs::write(rootfs.join("etc/layer2"), "layer two\n")?;
        fs::write(rootfs.join("bin/extra"), "")?;
        refusal(&rt.run(&bundle)?, "bin/extra")
    })?;
    fs::remove_dir_all(&place)?;
    Ok(())
}

/// A step of `podman build` is known by buildah's own record, and has entries of its own.
pub fn a_step_of_a_build(world: &World) -> Result<()> {
    let context = world.work.join("build");
    fs::create_dir_all(&context)?;
    let file = context.join("Containerfile");
    fs::write(&file, format!("FROM {DEMO}\nRUN [\"/bin/true\"]\n"))?;
    let build = || {
        let build = world.podman()?.arg("--runtime").arg(&ours(world)?.path);
        let build = build.args(["build", "--network=none", "--isolation=oci", "--force-rm"]);
        let build = build.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        build
            .args(["--tag", "localhost/e2e/built:v1", "--file"])
            .arg(&file)
            .arg(&context)
            .output()
    };
    let refused = build()?;
    // the signature of what it is built upon says nothing of what is built
    refusal(&refused, "build")?;
    restoring(POLICY, || {
        let entry = "[[build]]\nname = \"ci\"\nbase = \"any\"\nprograms = \"any\"\nenter = \"any\"\n\
                     min_tier = \"none\"\n";
        fs::write(POLICY, format!("{}{entry}", policy("enforce")))?;
        good(&build()?)
    })?;
    // what came of it is nobody's
    refusal(
        &podman(world, "localhost/e2e/built:v1", &[])?,
        "localhost/e2e/built",
    )?;
    world
        .podman()?
        .args(["rmi", "-f", "localhost/e2e/built:v1"])
        .ok()?;
    Ok(())
}

// --- engines ---

/// A socket that takes connections and never says a word: `create` ends, and says what it waited for.
pub fn a_hung_containerd(world: &World) -> Result<()> {
    let socket = world.work.join("hung.sock");
    let _listener = UnixListener::bind(&socket)?;
    let shown = socket.display().to_string();
    let output = restoring(CONFIG, || {
        let config = fs::read_to_string(CONFIG)?;
        let hung = config.replace("/run/containerd/containerd.sock", &shown);
        ensure!(config != hung, "no containerd in {config}");
        fs::write(CONFIG, hung)?;
        let output = ctr(world, DEMO, &[])?;
        ensure!(!output.status.success(), "{output}");
        output.says(&shown)?.says("was not answered within")?;
        output.says("restart containerd")?.says_not("refused")?;
        // the step, by its name in containerd's API
        output.says("Containers.Get was not")?;
        // others do not wait for it
        good(&podman(world, DEMO, &[])?)
    });
    fs::remove_file(&socket)?;
    output?;
    good(&ctr(world, DEMO, &[])?)
}

/// Docker's own layer between image and container has empty stubs for what it mounts; with anything more in
/// it, or in them, the container does not start.
pub fn dockers_init_layer(world: &World) -> Result<()> {
    let runtime = format!("--runtime=e2e-{}", ours(world)?.name);
    for (file, shown) in [("bin/extra", "bin/extra"), ("etc/hosts", "etc/hosts")] {
        let create = ["create", "--network=none", &runtime, DEMO, "/bin/true"];
        let id = world.docker()?.args(create).ok()?.stdout.trim().to_owned();
        let record = format!("/var/lib/docker/image/overlay2/layerdb/mounts/{id}/init-id");
        let layer = Path::new("/var/lib/docker/overlay2").join(fs::read_to_string(record)?);
        let place = layer.join("diff").join(file);
        ensure!(
            layer.join("diff/etc/hosts").exists(),
            "no stubs in {layer:?}"
        );
        fs::create_dir_all(place.parent().context("parent")?)?;
        fs::write(&place, "1.2.3.4 bank.example\n")?;
        let output = world.docker()?.args(["start", "--attach", &id]).output()?;
        world.docker()?.args(["rm", "-f", &id]).ok()?;
        refusal(&output, shown).with_context(|| format!("{file} in Docker's init layer"))?;
    }
    Ok(())
}
