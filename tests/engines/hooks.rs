//! Hooks: only programs that the policy names by digest run, as they were when they were judged; what
//! they add to a container is named too.

use crate::{
    Module, Test,
    admission::restoring,
    attestation::{WAIVERS, accepted},
    cmd,
    host::POLICY,
    image::{UNLISTED, digest},
    runtime::{Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "hooks",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        Ok(())
    },
    tests: &[
        Test::Each("each_stage_runs", each_stage_runs),
        Test::Ours("an_unnamed_hook_is_refused", an_unnamed_hook_is_refused),
        Test::Ours(
            "a_replaced_program_does_not_run",
            a_replaced_program_does_not_run,
        ),
        Test::Each("what_a_hook_adds_is_named", what_a_hook_adds_is_named),
        Test::Each(
            "a_start_hook_is_a_program_of_the_container",
            a_start_hook_is_a_program_of_the_container,
        ),
        Test::Ours(
            "a_start_hook_is_listed_and_unchanged",
            a_start_hook_is_listed_and_unchanged,
        ),
    ],
};

/// The hook program, compiled; `name` is what it says of itself.
fn program(world: &World, name: &str) -> Result<PathBuf> {
    let built = world.work.join(format!("hook-{name}"));
    let source = Path::new(crate::namespace::SOURCES).join("tests/engines/hook.c");
    cmd!(
        "cc",
        "-O1",
        format!("-DNAME=\"{name}\""),
        "-o",
        &built,
        &source
    )
    .ok()?;
    Ok(built)
}

fn demo(world: &World, args: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    Bundle::make(&world.work, &rootfs, args)
}

/// `body` under a policy, and for a challenger, that allows `names` too.
pub fn allowing(names: &[String], body: impl FnOnce() -> Result<()>) -> Result<()> {
    restoring(POLICY, || {
        let more: String = names.iter().map(|n| format!("\"{n}\", ")).collect();
        let text = fs::read_to_string(POLICY)?;
        ensure!(text.contains("allow = ["), "the policy has relaxations");
        let changed = text.replacen("allow = [", &format!("allow = [{more}"), 1);
        fs::write(POLICY, changed)?;
        body()
    })
}

fn hook(program: &Path, args: &[&str]) -> Value {
    let args: Vec<_> = ["the-hook"].iter().chain(args).collect();
    json!([{ "path": program, "args": args }])
}

const STAGES: [&str; 5] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "poststart",
    "poststop",
];

fn each_stage_runs(world: &World, rt: &Runtime) -> Result<()> {
    let program = program(world, "first")?;
    let said = world.work.join("said");
    let _ = fs::remove_file(&said);
    let mut bundle = demo(world, &["/bin/sleep", "1000"])?;
    let place = said.display().to_string();
    let stages = STAGES.map(|stage| (stage.to_owned(), hook(&program, &["say", &place])));
    bundle.set("/hooks", Value::Object(stages.into_iter().collect()))?;
    let lines = || fs::read_to_string(&said).unwrap_or_default();
    allowing(&[format!("hook:{}", digest(&fs::read(&program)?))], || {
        rt.create(&bundle).ok()?;
        // runc 1.1 runs poststart hooks at create already
        let created = lines().lines().count();
        ensure!(
            [3, 4].contains(&created),
            "three stages at create: {}",
            lines()
        );
        let rootfs = world.rootfs(0)?.path.display().to_string();
        let create_container = lines().lines().nth(2).map(|l| l.ends_with(&rootfs));
        ensure!(create_container == Some(true), "in {rootfs}: {}", lines());
        rt.on("start", &bundle).ok()?;
        ensure!(lines().lines().count() == 4, "poststart: {}", lines());
        rt.down(&bundle)?;
        ensure!(lines().lines().count() == 5, "poststop: {}", lines());
        let copies = rt.backend.is_none()
            || lines()
                .lines()
                .all(|l| l.contains(" /var/lib/attestrun/hooks/"));
        ensure!(copies, "the copy runs: {}", lines());
        ensure!(
            lines().lines().all(|l| l.starts_with("first the-hook ")),
            "{}",
            lines()
        );
        Ok(())
    })
}

fn an_unnamed_hook_is_refused(world: &World, rt: &Runtime) -> Result<()> {
    let program = program(world, "first")?;
    let said = world.work.join("said");
    let _ = fs::remove_file(&said);
    let mut bundle = demo(world, &["/bin/true"])?;
    for stage in STAGES {
        bundle.set(
            "/hooks",
            json!({ stage: hook(&program, &["say", &said.display().to_string()]) }),
        )?;
        let refused = rt.create(&bundle).fails()?;
        refused
            .says("refused: ")?
            .says(&format!("{stage} hook {}", program.display()))?
            .says(&format!("hook:{}", digest(&fs::read(&program)?)))?;
    }
    ensure!(!said.exists(), "it ran");
    // the judged program would load another's code
    let mut loading = hook(&program, &["say", &said.display().to_string()]);
    loading[0]["env"] = json!(["LD_PRELOAD=/tmp/x.so"]);
    bundle.set("/hooks", json!({ "prestart": loading }))?;
    allowing(&[format!("hook:{}", digest(&fs::read(&program)?))], || {
        rt.create(&bundle)
            .fails()?
            .says("refused: ")?
            .says("variable LD_PRELOAD, by which programs load other code (never allowed)")?;
        Ok(())
    })?;
    ensure!(!said.exists(), "it ran");
    let script = world.work.join("script");
    fs::write(&script, "#!/bin/sh\n")?;
    bundle.set("/hooks", json!({ "prestart": hook(&script, &[]) }))?;
    rt.create(&bundle).fails()?.says("is no ELF program")?;
    bundle.set(
        "/hooks",
        json!({ "prestart": hook(Path::new("/nothing"), &[]) }),
    )?;
    rt.create(&bundle).fails()?.says("/nothing")?;
    Ok(())
}

fn a_replaced_program_does_not_run(world: &World, rt: &Runtime) -> Result<()> {
    let (first, second) = (program(world, "first")?, program(world, "second")?);
    let place = world.work.join("hook");
    fs::copy(&first, &place)?;
    let said = world.work.join("said");
    let _ = fs::remove_file(&said);
    let mut bundle = demo(world, &["/bin/sleep", "1000"])?;
    let say = hook(&place, &["say", &said.display().to_string()]);
    bundle.set("/hooks", json!({ "poststart": say, "poststop": say }))?;
    allowing(&[format!("hook:{}", digest(&fs::read(&first)?))], || {
        rt.create(&bundle).ok()?;
        fs::copy(&second, &place)?;
        rt.on("start", &bundle).ok()?;
        fs::remove_file(&place)?;
        rt.down(&bundle)?;
        let lines = fs::read_to_string(&said)?;
        ensure!(
            lines.lines().count() == 2 && !lines.contains("second"),
            "{lines}"
        );
        fs::copy(&second, &place)?;
        rt.create(&bundle).fails()?.says("refused: ")?;
        Ok(())
    })
}

fn start_hook(path: &str, script: &str) -> Value {
    json!({ "startContainer": [{ "path": path, "args": ["sh", "-c", script] }] })
}

/// The name of a startContainer hook with this content.
fn start_name(content: &[u8]) -> String {
    format!("start-hook:{}", digest(content))
}

fn a_start_hook_is_a_program_of_the_container(world: &World, rt: &Runtime) -> Result<()> {
    let mut bundle = demo(world, &["/bin/sleep", "1000"])?;
    let script = "cat /proc/1/comm - >/dev/shm/new; busybox mv /dev/shm/new /dev/shm/said";
    bundle.set("/hooks", start_hook("/bin/sh", script))?;
    let busybox = fs::read("/bin/busybox")?;
    let name = start_name(&busybox);
    if rt.backend.is_some() {
        for names in [vec![], vec![format!("hook:{}", digest(&busybox))]] {
            allowing(&names, || {
                rt.create(&bundle)
                    .fails()?
                    .says("refused: ")?
                    .says("startContainer hook /bin/sh")?
                    .says(&name)?;
                Ok(())
            })?;
        }
    }
    allowing(std::slice::from_ref(&name), || {
        rt.create(&bundle).ok()?;
        let before = ["ls".to_owned(), "/dev/shm".to_owned()];
        let seen = rt.cmd("exec").arg(&bundle.id).args(before).ok()?;
        ensure!(seen.stdout.is_empty(), "it ran before the start: {seen}");
        rt.on("start", &bundle).ok()?;
        // `start` waits for no hook
        let wait = "until [ -s /dev/shm/said ]; do :; done; cat /dev/shm/said";
        let seen = rt.cmd("exec").args([&bundle.id, "sh", "-c", wait]);
        let seen = seen.ok()?.stdout;
        let (_, state) = seen.split_once('\n').context("two lines")?;
        let state: Value = serde_json::from_str(state).with_context(|| seen.clone())?;
        ensure!(state["id"] == json!(bundle.id), "{seen}");
        if rt.backend.is_some() {
            challenged(world, &bundle, &name)?;
        }
        rt.down(&bundle)
    })
}

/// Who does not name the hook refuses the container, and who does accepts it.
fn challenged(world: &World, bundle: &Bundle, name: &str) -> Result<()> {
    let unnamed = accepted(world, &bundle.id).map(drop).err();
    let unnamed = unnamed.context("the challenger names nothing")?;
    ensure!(format!("{unnamed:#}").contains(name), "{unnamed:#}");
    let expectations = world.expectations(&WAIVERS)?;
    let text = fs::read_to_string(&expectations)?;
    let named = text.replacen("allow = [", &format!("allow = [\"{name}\", "), 1);
    fs::write(&expectations, named)?;
    let output = world.challenge(&bundle.id, &expectations)?;
    ensure!(output.code() == 0, "{output}");
    Ok(())
}

fn a_start_hook_is_listed_and_unchanged(world: &World, rt: &Runtime) -> Result<()> {
    let mut bundle = demo(world, &[UNLISTED, "hello"])?;
    bundle.set("/hooks", start_hook("/bin/sh", "true"))?;
    let name = start_name(&fs::read("/bin/busybox")?);
    allowing(&[name, "mount:*".to_owned()], || {
        any_program()?;
        // what init would find is the mount's file
        let mut behind = bundle.again();
        let over = json!({ "destination": "/bin/busybox", "type": "bind", "options": ["bind", "ro"],
                           "source": program(world, "first")? });
        let mounts = behind.config["mounts"].as_array_mut();
        mounts.context("mounts")?.push(over);
        behind.write()?;
        rt.create(&behind).ok()?;
        rt.on("start", &behind)
            .fails()?
            .says("refused: the startContainer hook /bin/sh is ")?
            .says("when it was judged")?;
        rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
        Ok(())
    })?;
    let content = fs::read(world.rootfs(0)?.path.join(UNLISTED.trim_start_matches('/')))?;
    bundle.set("/hooks", start_hook(UNLISTED, ""))?;
    bundle.args(&["/bin/sleep", "1000"])?;
    allowing(&[start_name(&content)], || {
        rt.create(&bundle)
            .fails()?
            .says("refused: ")?
            .says(UNLISTED)?;
        Ok(())
    })
}

/// The policy admits every program of a signed image: its rule says nothing about lists.
fn any_program() -> Result<()> {
    let about_lists = ["user_ca", "tenant", "list", "min_serial", "revocation"];
    let text = fs::read_to_string(POLICY)?;
    let kept = text.lines().filter(|line| {
        let key = line.split(" =").next();
        key.is_none_or(|key| !about_lists.contains(&key))
    });
    let kept = kept.collect::<Vec<_>>().join("\n");
    let any = kept.replacen("[rule.launch]", "programs = \"any\"\n\n[rule.launch]", 1);
    Ok(fs::write(POLICY, any)?)
}

/// A library and a device of the host, as a GPU's.
fn what_a_hook_adds_is_named(world: &World, rt: &Runtime) -> Result<()> {
    let program = program(world, "first")?;
    let library = world.work.join("library");
    fs::write(&library, "of the host\n")?;
    let rootfs = world.rootfs(0)?.path.display().to_string();
    let mut bundle = demo(world, &["/bin/sleep", "1000"])?;
    let source = library.display().to_string();
    let add = |target: &str, minor: &str| {
        hook(
            &program,
            &["add", &rootfs, &source, target, "/dev/gpu0", "1", minor],
        )
    };
    let by_digest = format!("hook:{}", digest(&fs::read(&program)?));
    let names = [
        by_digest,
        "hook-mount:/etc/layer2".to_owned(),
        "hook-device:/dev/gpu0".to_owned(),
    ];
    for stage in ["createRuntime", "createContainer"] {
        bundle.set("/hooks", json!({ stage: add("/etc/layer2", "7") }))?;
        if rt.backend.is_some() {
            for n in [1, 2] {
                let mut some = names.to_vec();
                let missing = some.remove(n);
                allowing(&some, || {
                    rt.create(&bundle).ok()?;
                    rt.on("start", &bundle)
                        .fails()?
                        .says("refused: before its start")?
                        .says(&missing)?;
                    rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
                    Ok(())
                })
                .with_context(|| format!("without {missing}"))?;
            }
        }
        allowing(&names, || {
            rt.up(&bundle)?;
            let seen = rt
                .cmd("exec")
                .args([
                    &bundle.id,
                    "/bin/sh",
                    "-c",
                    "cat /etc/layer2; stat -c %t:%T /dev/gpu0",
                ])
                .ok()?;
            ensure!(seen.stdout == "of the host\n1:7\n", "{seen}");
            if rt.backend.is_some() {
                let unnamed = accepted(world, &bundle.id)
                    .map(drop)
                    .err()
                    .context("the challenger names nothing")?;
                ensure!(
                    format!("{unnamed:#}").contains("hook-mount:/etc/layer2"),
                    "{unnamed:#}"
                );
            }
            rt.down(&bundle)
        })?;
    }
    Ok(())
}
