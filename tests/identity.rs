//! Which image it is: by the mount and the engines' own stores, whatever names, annotations and files in
//! reach of others say. Each attack stands beside the same thing done honestly, which runs.

mod kept; // signatures that engines keep; images without layers
mod measured; // the engine's image and the host's log
mod stores; // roots that did not come the usual way

use crate::{
    Module, Test,
    admission::{refusal, restoring},
    cmd,
    host::{POLICY, TRUST, policy},
    image::{Image, Plan},
    publisher::{LIST, STORE, rule},
    runtime::{Backend, Runtime},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "identity",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        crate::engines::warm(world)?;
        crate::registry::start(world)
    },
    tests: &[
        Test::Once("annotations_change_nothing", annotations_change_nothing),
        Test::Once("a_moved_name_is_noticed", a_moved_name_is_noticed),
        Test::Once("equal_layers_are_told_apart", equal_layers_are_told_apart),
        Test::Once("a_committed_image_is_another", a_committed_image_is_another),
        Test::Once(
            "what_was_copied_in_is_refused",
            what_was_copied_in_is_refused,
        ),
        Test::Once(
            "each_engines_layers_are_compared",
            each_engines_layers_are_compared,
        ),
        Test::Once("ninety_layers_and_one", ninety_layers_and_one),
        Test::Once("what_engines_keep_counts", kept::what_engines_keep_counts),
        Test::Once("images_without_layers", kept::images_without_layers),
        Test::Once(
            "relative_layers_of_another_directory",
            stores::relative_layers_of_another_directory,
        ),
        Test::Once(
            "a_link_in_place_of_a_store_file",
            stores::a_link_in_place_of_a_store_file,
        ),
        Test::Once("a_part_of_an_overlay", stores::a_part_of_an_overlay),
        Test::Once("a_step_of_a_build", stores::a_step_of_a_build),
        Test::Once("umocis_bundle", stores::umocis_bundle),
        Test::Once("dockers_init_layer", stores::dockers_init_layer),
        Test::Once("a_hung_containerd", stores::a_hung_containerd),
        Test::Once(
            "what_an_engine_has_is_what_is_measured",
            measured::what_an_engine_has_is_what_is_measured,
        ),
    ],
};

fn ours(world: &World) -> Result<Runtime> {
    Ok(Runtime::attestrun(
        &world.program("attestrun")?,
        Backend::Libcontainer,
    ))
}

const DEMO: &str = "localhost/e2e/demo:v1";
const TWIN: Plan = Plan {
    name: "localhost/e2e/demo:twin",
    text: "layer two\n",
};

// --- each engine, asked to run an image ---

fn podman(world: &World, name: &str, more: &[&str]) -> Result<Output> {
    let run = world.podman_run(&ours(world)?, "run")?;
    run.arg("--rm")
        .args(more)
        .args([name, "/bin/true"])
        .output()
}

fn ctr(world: &World, name: &str, more: &[&str]) -> Result<Output> {
    let id = "e2e-identity";
    world.note(id);
    let run = world
        .ctr()?
        .args(["run", "--rm", "--runc-binary"])
        .arg(&ours(world)?.path);
    run.args(more).args([name, id, "/bin/true"]).output()
}

fn docker(world: &World, name: &str) -> Result<Output> {
    let runtime = format!("--runtime=e2e-{}", ours(world)?.name);
    let run = ["run", "--rm", "--network=none", &runtime, name, "/bin/true"];
    world.docker()?.args(run).output()
}

fn good(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "this should have run: {output}");
    Ok(())
}

/// Loads an image into all three stores.
fn load(world: &World, image: &Image) -> Result<()> {
    let podman = world.podman()?.args(["load", "--quiet", "--input"]);
    podman.arg(&image.archive).ok()?;
    let ctr = world.ctr()?.args(["image", "import"]);
    ctr.arg(&image.archive).ok()?;
    let docker = world.docker()?.args(["load", "--input"]);
    docker.arg(&image.archive).ok()?;
    Ok(())
}

fn forget(world: &World, name: &str) -> Result<()> {
    world.podman()?.args(["rmi", "-f", name]).ok()?;
    world.ctr()?.args(["image", "rm", "--sync", name]).ok()?;
    world.docker()?.args(["rmi", "-f", name]).ok()?;
    Ok(())
}

// --- names and annotations ---

fn annotations_change_nothing(world: &World) -> Result<()> {
    let images = world.images()?;
    let (demo, unsigned) = (&images.demo, &images.unsigned);
    let claims = |image: &Image| -> Vec<String> {
        let digest = image.manifest.as_str();
        [
            ("io.kubernetes.cri.image-name", image.name.as_str()),
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("io.kubernetes.cri-o.ImageName", image.name.as_str()),
            ("io.kubernetes.cri-o.ImageRef", digest),
            ("org.opencontainers.image.ref.name", image.name.as_str()),
            ("org.opencontainers.image.base.digest", digest),
        ]
        .iter()
        .map(|(key, value)| format!("--annotation={key}={value}"))
        .collect()
    };
    let spoofed = claims(demo);
    let spoofed: Vec<_> = spoofed.iter().map(String::as_str).collect();
    for output in [
        podman(world, &unsigned.name, &spoofed)?,
        ctr(world, &unsigned.name, &spoofed)?,
    ] {
        refusal(&output, &unsigned.name)?;
        output.says_not(&demo.manifest)?;
    }
    let slander = claims(unsigned);
    let slander: Vec<_> = slander.iter().map(String::as_str).collect();
    good(&podman(world, &demo.name, &slander)?)?;
    good(&ctr(world, &demo.name, &slander)?)
}

fn a_moved_name_is_noticed(world: &World) -> Result<()> {
    let unsigned = &world.images()?.unsigned.name;
    // Under a name that the rule is for lies another image.
    let name = "localhost/e2e/demo:moved";
    world.podman()?.args(["tag", unsigned, name]).ok()?;
    world.ctr()?.args(["image", "tag", unsigned, name]).ok()?;
    world.docker()?.args(["tag", unsigned, name]).ok()?;
    for output in [
        podman(world, name, &[])?,
        ctr(world, name, &[])?,
        docker(world, name)?,
    ] {
        refusal(&output, name)?;
    }
    forget(world, name)?;

    // The owner's image under a name with a rule of its own: the signature is for another name.
    let lax = "localhost/e2e/lax:v1";
    restoring(POLICY, || {
        let more = rule("lax", "localhost/e2e/lax", Path::new(TRUST));
        fs::write(POLICY, format!("{}{more}", policy("enforce")))?;
        world.podman()?.args(["tag", DEMO, lax]).ok()?;
        world.ctr()?.args(["image", "tag", DEMO, lax]).ok()?;
        world.docker()?.args(["tag", DEMO, lax]).ok()?;
        for output in [
            podman(world, lax, &[])?,
            ctr(world, lax, &[])?,
            docker(world, lax)?,
        ] {
            refusal(&output, "localhost/e2e/demo")?;
        }
        forget(world, lax)
    })?;

    // containerd's record has a name alone: it is moved after the container was made.
    let rt = ours(world)?;
    let moving = "localhost/e2e/demo:moving";
    let tag = |from: &str| {
        let tag = world.ctr()?.args(["image", "tag", "--force", from, moving]);
        tag.ok().map(drop)
    };
    tag(DEMO)?;
    let id = "e2e-moving";
    world.note(id);
    let run = world.ctr()?.args(["run", "--detach", "--runc-binary"]);
    run.arg(&rt.path).args([moving, id, "/bin/true"]).ok()?;
    let forget_task = || world.ctr()?.args(["task", "rm", "--force", id]).output();
    forget_task()?;
    // the task is made anew, so `create` is called again
    let start = || world.ctr()?.args(["task", "start", id]).output();
    tag(unsigned)?;
    refusal(&start()?, "was its name moved")?;
    tag(DEMO)?;
    good(&start()?)?;
    forget_task()?;
    world.ctr()?.args(["container", "rm", id]).ok()?;
    world.ctr()?.args(["image", "rm", "--sync", moving]).ok()?;
    Ok(())
}

fn equal_layers_are_told_apart(world: &World) -> Result<()> {
    let twin = Image::twin(&world.work.join("images"), &TWIN, "somebody else")?;
    ensure!(
        twin.manifest != world.images()?.demo.manifest,
        "a twin, not the same"
    );
    load(world, &twin)?;
    for name in [twin.name.as_str(), DEMO, twin.name.as_str()] {
        for (engine, output) in [
            ("podman", podman(world, name, &[])?),
            ("ctr", ctr(world, name, &[])?),
            ("docker", docker(world, name)?),
        ] {
            match name == DEMO {
                true => good(&output),
                false => refusal(&output, name),
            }
            .with_context(|| format!("{engine} {name}"))?;
        }
    }
    // Its name moved to the signed one is the signed one, whose files these are; and back again.
    let tag = |from: &str, to: &str| -> Result<()> {
        world.podman()?.args(["tag", from, to]).ok()?;
        world.docker()?.args(["tag", from, to]).ok()?;
        let ctr = world.ctr()?.args(["image", "tag", "--force", from, to]);
        ctr.ok().map(drop)
    };
    tag(DEMO, "localhost/e2e/demo:kept")?;
    tag(&twin.name, DEMO)?;
    for output in [
        podman(world, DEMO, &[])?,
        ctr(world, DEMO, &[])?,
        docker(world, DEMO)?,
    ] {
        refusal(&output, DEMO)?;
    }
    tag("localhost/e2e/demo:kept", DEMO)?;
    for output in [
        podman(world, DEMO, &[])?,
        ctr(world, DEMO, &[])?,
        docker(world, DEMO)?,
    ] {
        good(&output)?;
    }
    forget(world, "localhost/e2e/demo:kept")?;
    forget(world, &twin.name)
}

fn a_committed_image_is_another(world: &World) -> Result<()> {
    let name = "localhost/e2e/demo:committed";
    let made =
        |cmd: crate::spawn::Cmd| -> Result<String> { Ok(cmd.ok()?.stdout.trim().to_owned()) };
    let id = made(
        world
            .docker()?
            .args(["create", "--network=none", DEMO, "/bin/true"]),
    )?;
    world.docker()?.args(["commit", &id, name]).ok()?;
    let output = docker(world, name)?;
    world.docker()?.args(["rm", "-f", &id]).ok()?;
    world.docker()?.args(["rmi", "-f", name]).ok()?;
    refusal(&output, name).context("docker commit")?;

    let id = made(
        world
            .podman()?
            .args(["create", "--network=none", DEMO, "/bin/true"]),
    )?;
    world
        .podman()?
        .args(["commit", "--quiet", &id, name])
        .ok()?;
    let output = podman(world, name, &[])?;
    world.podman()?.args(["rm", "-f", "-t", "0", &id]).ok()?;
    world.podman()?.args(["rmi", "-f", name]).ok()?;
    refusal(&output, name).context("podman commit")
}

// --- files ---

fn what_was_copied_in_is_refused(world: &World) -> Result<()> {
    let evil = world.work.join("evil");
    fs::write(&evil, "evil\n")?;
    let runtime = format!("--runtime=e2e-{}", ours(world)?.name);
    let docker = |args: &[&str]| Ok::<_, anyhow::Error>(world.docker()?.args(args));
    let create = ["create", "--network=none", &runtime, DEMO, "/bin/true"];
    for (target, shown) in [("/etc/layer2", "etc/layer2"), ("/bin/extra", "bin/extra")] {
        let id = docker(&create)?.ok()?.stdout.trim().to_owned();
        docker(&["start", "--attach", &id])?.ok()?;
        let place = format!("{id}:{target}");
        docker(&["cp", &evil.display().to_string(), &place])?.ok()?;
        let output = docker(&["start", "--attach", &id])?.output()?;
        docker(&["rm", "-f", &id])?.ok()?;
        refusal(&output, shown).context("docker cp")?;

        let create = world.podman_run(&ours(world)?, "create")?;
        let id = create
            .args([DEMO, "/bin/true"])
            .ok()?
            .stdout
            .trim()
            .to_owned();
        world.note(&id);
        let podman = || -> Result<crate::spawn::Cmd> {
            Ok(world.podman()?.arg("--runtime").arg(&ours(world)?.path))
        };
        podman()?.args(["start", "--attach", &id]).ok()?;
        let place = format!("{id}:{target}");
        podman()?.arg("cp").arg(&evil).arg(&place).ok()?;
        let output = podman()?.args(["start", "--attach", &id]).output()?;
        podman()?.args(["rm", "-f", "-t", "0", &id]).ok()?;
        refusal(&output, shown).context("podman cp")?;
    }
    Ok(())
}

/// One byte, a setuid bit, a file more, in the layer where the engine keeps it.
fn spoiled(what: &str, file: &Path, run: impl Fn() -> Result<Output>) -> Result<()> {
    let refused = |words: &str| refusal(&run()?, words).with_context(|| format!("{what}: {words}"));
    good(&run()?)?;
    let original = fs::read(file)?;
    let mut changed = original.clone();
    changed[0] ^= 1;
    fs::write(file, &changed)?;
    let done = refused("etc/layer2");
    fs::write(file, &original)?;
    done?;
    let mode = fs::metadata(file)?.permissions();
    fs::set_permissions(file, fs::Permissions::from_mode(0o4644))?;
    let done = refused("etc/layer2");
    fs::set_permissions(file, mode)?;
    done?;
    let extra = file.with_file_name("extra");
    fs::write(&extra, "")?;
    let done = refused("etc/extra");
    fs::remove_file(&extra)?;
    done?;
    good(&run()?)
}

fn each_engines_layers_are_compared(world: &World) -> Result<()> {
    // Both keep the file in one directory; podman's is in `every_file_is_compared_with_the_layers`.
    let of = |store: &str| -> Result<PathBuf> {
        let found = cmd!("find", store, "-path", "*/etc/layer2", "-size", "-2").ok()?;
        let mut files = found.stdout.lines().map(PathBuf::from);
        let demo = files.find(|file| fs::read(file).is_ok_and(|text| text == b"layer two\n"));
        demo.with_context(|| format!("etc/layer2 is not in {store}"))
    };
    world.docker()?;
    spoiled("docker", &of("/var/lib/docker/overlay2")?, || {
        docker(world, DEMO)
    })?;
    let snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
    spoiled("containerd", &of(snapshots)?, || ctr(world, DEMO, &[]))
}

fn ninety_layers_and_one(world: &World) -> Result<()> {
    restoring(STORE, || layers(world, "ninety", 90))?;
    restoring(STORE, || layers(world, "one", 1))
}

fn layers(world: &World, tag: &str, count: usize) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let name = format!("localhost/e2e/demo:{tag}");
    let image = Image::of_many_layers(&world.work.join("images"), &name, count)?;
    load(world, &image)?;
    for output in [
        podman(world, &name, &[])?,
        ctr(world, &name, &[])?,
        docker(world, &name)?,
    ] {
        refusal(&output, &name)?; // known, and not signed
    }
    owner.sign(&image)?;
    let list = world.work.join(format!("{tag}.json"));
    let create = owner.ctl(&["list", "create", "--name", LIST]);
    let create = create.args(["--serial", "1", "--days", "30", "--output"]);
    create.arg(&list).arg(&image.layout).ok()?;
    owner.import(&list, &owner.sign_list(&list)?)?;
    good(&podman(world, &name, &[])?).context("podman")?;
    good(&ctr(world, &name, &[])?).context("ctr")?;
    // of one layer alone: a bind mount, no overlay
    good(&ctr(world, &name, &["--read-only"])?).context("ctr --read-only")?;
    good(&docker(world, &name)?).context("docker")?;
    forget(world, &name)
}
