//! `--init`: the engine mounts its own init and has the container begin with it. Policy and challenger
//! must name it by digest; what it is told to execute is judged as the entry point that it is.

use super::{docker, hooks::allowing, podman, refused_by_us, same};
use crate::{
    Module, Test,
    attestation::{WAIVERS, accepted, accepted_by},
    image::{UNLISTED, digest},
    runtime::{Bundle, Runtime},
    spawn::{Cmd, Output},
    world::{Rootfs, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "init",
    prepare: super::warm,
    tests: &[
        Test::Each("docker_run_init", docker_run_init),
        Test::Each("podman_run_init", podman_run_init),
        Test::Ours("what_was_judged_is_what_runs", what_was_judged_is_what_runs),
        Test::Ours("no_other_program_is_an_init", no_other_program_is_an_init),
        Test::Ours("a_hidden_init_does_not_run", a_hidden_init_does_not_run),
    ],
};

fn docker_run_init(world: &World, rt: &Runtime) -> Result<()> {
    let run = || Ok(docker::run(world, rt)?.arg("--init"));
    let name = super::name(world, "docker-init", rt);
    let remove = |name: &str| world.docker()?.args(["rm", "-f", name]).ok().map(drop);
    with_init(world, rt, "/usr/bin/docker-init", &name, &run, &remove)
}

fn podman_run_init(world: &World, rt: &Runtime) -> Result<()> {
    let run = || Ok(world.podman_run(rt, "run")?.arg("--init"));
    let name = super::name(world, "podman-init", rt);
    let remove = |name: &str| {
        let rm = podman::on(world, rt, "rm")?.args(["-f", "-t", "0", name]);
        rm.ok().map(drop)
    };
    with_init(world, rt, "/usr/bin/catatonit", &name, &run, &remove)
}

fn name_of(program: &Path) -> Result<String> {
    Ok(format!("program:{}", digest(&fs::read(program)?)))
}

fn with_init(
    world: &World,
    rt: &Runtime,
    init: &str,
    name: &str,
    run: &dyn Fn() -> Result<Cmd>,
    remove: &dyn Fn(&str) -> Result<()>,
) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let named = name_of(Path::new(init))?;
    let first = "cat /proc/1/comm; exit 3";
    let speak = || Ok::<_, anyhow::Error>(run()?.args(["--rm", demo, "/bin/sh", "-c", first]));
    if rt.backend.is_some() {
        let unnamed = speak()?.output()?;
        refused_by_us(rt, &unnamed, &named)?;
        let relaxed = allowing(&["mount:*".to_owned()], || {
            refused_by_us(rt, &speak()?.output()?, &named)
        });
        relaxed.context("mounts are named, programs are not")?;
    }
    let mut comm = Path::new(init)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    comm.push('\n');
    // Docker calls its init by the name of the mount, podman by its own
    let comms = [
        comm,
        "docker-init\n".into(),
        "podman-init\n".into(),
        "init\n".into(),
    ];
    allowing(std::slice::from_ref(&named), || {
        let output = speak()?.output()?;
        ensure!(
            output.code() == 3 && comms.contains(&output.stdout),
            "an init runs the program, whose status counts: {output}"
        );
        let unlisted = run()?.args(["--rm", demo, UNLISTED, "x"]).output()?;
        if rt.backend.is_some() {
            refused_by_us(rt, &unlisted, UNLISTED)?;
        } else {
            same(&unlisted, 0, "x\n")?;
        }
        let id = run()?
            .args(["-d", "--name", name, demo, "sleep", "1000"])
            .ok()?
            .stdout;
        let id = id.trim();
        world.note(id);
        if rt.backend.is_some() {
            challenged(world, id, &named)?;
        }
        remove(name)
    })
}

/// Accepted by whoever names the init, and by nobody else; the log says what is behind it.
fn challenged(world: &World, id: &str, named: &str) -> Result<()> {
    let unnamed = accepted(world, id).map(drop).err();
    let unnamed = format!("{:#}", unnamed.context("the challenger names no init")?);
    for check in ["C-MOUNT", "P-UNLISTED"] {
        ensure!(unnamed.contains(check), "{check}: {unnamed}");
    }
    let expectations = world.expectations(&WAIVERS)?;
    let text = fs::read_to_string(&expectations)?;
    fs::write(
        &expectations,
        text.replacen("allow = [", &format!("allow = [\"{named}\", "), 1),
    )?;
    accepted_by(world, id, &expectations).context("the challenger names the init")?;
    let log = world
        .ctl()?
        .args(["--json", "log", "show"])
        .arg(world.work.join("evidence.json"))
        .ok()?;
    ensure!(
        log.stdout.contains("\"behind\"") && log.stdout.contains("/bin/busybox"),
        "the program behind the init: {log}"
    );
    Ok(())
}

/// A copy of tini with some bytes behind it, which tell it from others.
fn tini(world: &World, name: &str) -> Result<PathBuf> {
    let place = world.work.join(format!("init-{name}"));
    let bytes = fs::read("/usr/bin/tini-static")?;
    fs::write(&place, [&bytes, name.as_bytes()].concat())?;
    crate::cmd!("chmod", "755", &place).ok()?;
    Ok(place)
}

/// A bundle as engines make it: an init mounted over nothing.
fn bundle(world: &World, init: &Path, options: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    let mut bundle = Bundle::make(
        &world.work,
        &rootfs,
        &["/dev/init", "--", "/bin/sleep", "1000"],
    )?;
    mount(&mut bundle, init, "/dev/init", options)?;
    Ok(bundle)
}

fn mount(bundle: &mut Bundle, source: &Path, to: &str, options: &[&str]) -> Result<()> {
    let mounts = bundle.config["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({
        "destination": to, "type": "bind", "source": source, "options": options,
    }));
    bundle.write()
}

const READ_ONLY: [&str; 2] = ["bind", "ro"];

/// Whatever becomes of the engine's file, before or after `create`.
fn what_was_judged_is_what_runs(world: &World, rt: &Runtime) -> Result<()> {
    let (init, other) = (tini(world, "first")?, tini(world, "second, and longer")?);
    let size = fs::metadata(&init)?.len();
    let named = name_of(&init)?;
    let bundle = bundle(world, &init, &READ_ONLY)?;
    allowing(std::slice::from_ref(&named), || {
        rt.create(&bundle).ok()?;
        fs::copy(&other, &init)?; // the same inode
        rt.on("start", &bundle).ok()?;
        let stat = ["/bin/stat", "-L", "-c", "%s", "/proc/1/exe"];
        let seen = rt.cmd("exec").arg(&bundle.id).args(stat).ok()?;
        ensure!(seen.stdout.trim() == size.to_string(), "{seen}");
        rt.down(&bundle)?;
        rt.create(&bundle)
            .fails()?
            .says("refused: ")?
            .says(&name_of(&other)?)?;
        // back, and the copy is what somebody changed
        fs::write(
            &init,
            [&fs::read("/usr/bin/tini-static")?, &b"first"[..]].concat(),
        )?;
        let hex = named.trim_start_matches("program:sha256:");
        let copy = Path::new("/var/lib/attestrun/programs").join(hex);
        fs::copy(&other, &copy)?;
        rt.create(&bundle).fails()?.says("was changed")?;
        Ok(fs::remove_file(&copy)?)
    })
}

fn no_other_program_is_an_init(world: &World, rt: &Runtime) -> Result<()> {
    let (init, other) = (tini(world, "first")?, tini(world, "other")?);
    let named = name_of(&init)?;
    let refused = |bundle: &Bundle, why: &str| -> Result<Output> {
        let output = rt.create(bundle).output()?;
        ensure!(output.code() != 0, "{why}: {output}");
        output.says("refused: ").context(why.to_owned())?;
        Ok(output)
    };
    allowing(&[named], || {
        // another program at the place: alone, and over the one that is named
        let second = bundle(world, &other, &READ_ONLY)?;
        refused(&second, "another program")?.says(&name_of(&other)?)?;
        let mut over = bundle(world, &init, &READ_ONLY)?;
        mount(&mut over, &other, "/dev/./init", &READ_ONLY)?;
        refused(&over, "over the named one")?.says(&name_of(&other)?)?;

        let writable = bundle(world, &init, &["bind"])?;
        refused(&writable, "writable")?.says("a writable mount of the program")?;

        // what the init is told
        let mut told = bundle(world, &init, &READ_ONLY)?;
        for (args, why) in [
            (&["/dev/init"][..], "it is told no program"),
            (&["/dev/init", "-s", "--", "/bin/sleep"], "not `--`"),
            (&["/dev/init", "--", UNLISTED], UNLISTED),
        ] {
            told.args(args)?;
            refused(&told, why)?.says(why)?;
        }
        // and it is no program for `exec`
        let good = bundle(world, &init, &READ_ONLY)?;
        rt.up(&good)?;
        let exec = rt
            .cmd("exec")
            .args([&good.id, "/dev/init", "--", "/bin/true"]);
        exec.fails()?.says("refused: /dev/init")?;
        rt.down(&good)
    })?;
    Ok(())
}

/// A directory mounted over the place, which is only seen once it is there.
fn a_hidden_init_does_not_run(world: &World, rt: &Runtime) -> Result<()> {
    let (init, other) = (tini(world, "first")?, tini(world, "other")?);
    let hiding = world.work.join("hiding");
    fs::create_dir_all(&hiding)?;
    fs::copy(&other, hiding.join("init"))?;
    // places of mounts stay in a rootfs
    let hidden = |rootfs: &Rootfs| {
        let args = ["/opt/init", "--", "/bin/sleep", "1000"];
        let mut bundle = Bundle::make(&world.work, rootfs, &args)?;
        mount(&mut bundle, &init, "/opt/init", &READ_ONLY)?;
        mount(&mut bundle, &hiding, "/opt", &READ_ONLY)?;
        rt.create(&bundle).ok()?;
        let start = rt.on("start", &bundle).fails()?;
        start.says("refused: /opt/init in the container is not")?;
        rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
        Ok(())
    };
    let mut names = vec![name_of(&init)?, "hook-mount:/opt/init".to_owned()];
    names.push(format!("mount:{}", hiding.display()));
    allowing(&names, || world.with_rootfs(&world.images()?.demo, hidden))
}
