//! Wrong calls on every runtime: command lines, ids, places and streams that cannot be; the exit status is
//! runc's, the text says what is wrong, nothing is left.

use crate::{
    Module, Test, cmd,
    runtime::{ROOTS, Runtime},
    spawn::Cmd,
    world::World,
    wrong_input::{demo, none, sound},
};
use anyhow::{Result, ensure};
use std::{fs, path::Path};

pub const MODULE: Module = Module {
    name: "wrong_calls",
    prepare: |world| world.rootfs(0).map(|_| ()),
    tests: &[
        Test::Each("wrong_words", wrong_words),
        Test::Each("wrong_places", wrong_places),
        Test::Each("a_full_disk", a_full_disk),
        Test::Each("closed_streams", closed_streams),
    ],
};

fn wrong_words(world: &World, rt: &Runtime) -> Result<()> {
    let mut wrong = Vec::new();
    let bundle = demo(world, &["/bin/true"])?;
    let long = "x".repeat(300);
    let cases: &[(i32, &[&str], &str)] = &[
        (1, &["create", ""], "container id|container ID|id"),
        (1, &["create", "."], "invalid container ID format"),
        (1, &["create", ".."], "invalid container ID format"),
        (1, &["create", "a/b"], "invalid container ID format"),
        (1, &["create", "a b"], "invalid container ID format"),
        (1, &["create", "\u{e4}"], "invalid container ID format"),
        (1, &["create", &long], "too long|longer"),
        (1, &["create"], "requires exactly 1 argument(s)"),
        (1, &["create", "a", "b"], "requires exactly 1 argument(s)"),
        (
            1,
            &["create", "--nonsense", "a"],
            "flag provided but not defined: -nonsense",
        ),
        (1, &["create", "-b"], "flag needs an argument: -b"),
        (1, &["create", "--preserve-fds", "x", "a"], "preserve-fds"),
        (
            1,
            &["create", "--preserve-fds", "9", &bundle.id],
            "preserved-fd",
        ),
        (1, &["create", "--bundle", "/no/such", "a"], "/no/such"),
        (
            1,
            &["create", "--bundle", "/etc/passwd", "a"],
            "/etc/passwd",
        ),
        (
            1,
            &["create", "--console-socket", "/x", &bundle.id],
            "cannot use console socket",
        ),
        (
            255,
            &["exec", "nothere", "true"],
            "container does not exist",
        ),
        (
            255,
            &["exec", "nothere"],
            "container does not exist|process args cannot be empty",
        ),
        (
            255,
            &["exec", "--user", "x", "nothere", "true"],
            "does not exist|user",
        ),
        (1, &["exec"], "requires a minimum of 1 argument(s)"),
        (1, &["state"], "requires exactly 1 argument(s)"),
        (1, &["state", "nothere"], "container does not exist"),
        (1, &["state", "a/b"], "invalid container ID format"),
        (1, &["start", "nothere"], "container does not exist"),
        (1, &["kill"], "requires a minimum of 1"),
        (1, &["kill", "a", "b", "c"], "maximum of 2"),
        (1, &["kill", "nothere"], "container does not exist"),
        (
            1,
            &["kill", "nothere", "NONSENSE"],
            "does not exist|unknown signal",
        ),
        (1, &["delete", "nothere"], "container does not exist"),
        (0, &["delete", "--force", "nothere"], ""),
        (
            1,
            &["delete", "--force", "a/b"],
            "invalid container ID format",
        ),
        (1, &["pause", "nothere"], "container does not exist"),
        (1, &["resume", "nothere"], "container does not exist"),
        (1, &["ps", "nothere"], "container does not exist"),
        (1, &["ps"], "requires a minimum of 1 argument(s)"),
        (1, &["list", "x"], "requires exactly 0 argument(s)"),
        (1, &["list", "-f", "x"], "format"),
        (1, &["events", "nothere"], "container does not exist"),
        (
            1,
            &["events", "--interval", "5", "nothere"],
            "invalid value \"5\" for flag -interval",
        ),
        (
            1,
            &["events", "--interval", "0s", "nothere"],
            "does not exist|interval",
        ),
        (1, &["update", "nothere"], "container does not exist"),
        (
            1,
            &["update", "--memory", "x", "nothere"],
            "does not exist|memory",
        ),
        (
            1,
            &["update", "--resources", "/no/such", "nothere"],
            "does not exist|/no/such",
        ),
        (1, &["checkpoint", "nothere"], "does not exist|refused"),
        (1, &["spec", "--bundle", "/no/such"], "/no/such"),
        (1, &["features", "x"], "requires exactly 0 argument(s)"),
        (3, &["nonsense"], "No help topic for 'nonsense'"),
        (3, &["help", "nonsense"], "No help topic for 'nonsense'"),
        (1, &["--log-format", "xml", "list"], "log-format"),
        (1, &["--log", "/no/such/log", "list"], "/no/such/log"),
        (
            1,
            &["--nonsense", "list"],
            "flag provided but not defined: -nonsense",
        ),
        (1, &["--root"], "flag needs an argument: -root"),
        (0, &["--debug", "list"], "ID"),
        (0, &["help", "list"], "list"),
        (0, &["-h"], "NAME:"),
        (0, &[], "NAME:"),
    ];
    for (code, args, words) in cases {
        let command = Cmd::new(&rt.path)
            .arg("--root")
            .arg(Path::new(ROOTS).join(rt.name));
        // `--root` last has no value: then ours must not stand before it
        let command = if *args == ["--root"] {
            Cmd::new(&rt.path)
        } else {
            command
        };
        let output = command.args(*args).cwd(&bundle.dir).output()?;
        wrong.push(sound(&output, *code, words).err());
    }
    none(wrong)
}

fn wrong_places(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo(world, &["/bin/sleep", "100"])?;
    let with_pid_file = |verb: &[&str]| {
        rt.cmd(verb[0])
            .args(&verb[1..])
            .args(["--pid-file", "/no/such/pid", "--bundle"])
            .arg(&bundle.dir)
            .arg(&bundle.id)
            .output()
    };
    for verb in [&["create"][..], &["run", "--detach"], &["run"]] {
        sound(&with_pid_file(verb)?, 1, "/no/such")?;
        rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    }
    // an id that is taken stays whose it is
    rt.up(&bundle)?;
    for verb in [&["create"][..], &["run"], &["run", "-d"]] {
        let output = rt
            .cmd(verb[0])
            .args(&verb[1..])
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg(&bundle.id)
            .output()?;
        sound(&output, 1, "container with given ID already exists")?;
    }
    let exec = rt
        .cmd("exec")
        .args([
            "--detach",
            "--pid-file",
            "/no/such/pid",
            &bundle.id,
            "/bin/sleep",
            "50",
        ])
        .output()?;
    sound(&exec, 255, "/no/such")?;
    ensure!(rt.status(&bundle)? == "running", "the container goes on");
    rt.down(&bundle)
}

/// Its state root, its bundle or its log on a file system without room.
fn a_full_disk(world: &World, rt: &Runtime) -> Result<()> {
    let full = world.work.join("full");
    fs::create_dir_all(&full)?;
    crate::namespace::tmpfs(&full, "size=64k")?;
    let done = on_a_full_disk(world, rt, &full);
    cmd!("umount", &full).ok()?;
    fs::remove_dir(&full)?;
    done
}

fn on_a_full_disk(world: &World, rt: &Runtime, full: &Path) -> Result<()> {
    let bundle = demo(world, &["/bin/true"])?;
    fs::copy(bundle.dir.join("config.json"), full.join("config.json"))?;
    cmd!("dd", "if=/dev/zero", "bs=4096")
        .arg(format!("of={}", full.join("filler").display()))
        .fails()?;
    let pid_file = full.join("pid");
    let output = rt
        .cmd("create")
        .arg("--pid-file")
        .arg(&pid_file)
        .arg("--bundle")
        .arg(full)
        .arg(&bundle.id)
        .output()?;
    sound(&output, 1, "no space left|No space left")?;
    ensure!(!pid_file.exists(), "half a pid file");
    rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    rt.cmd("spec").arg("--bundle").arg(full).exits(1)?;
    let output = rt.cmd("state").arg("nothere").stdin("/dev/null").output()?;
    sound(&output, 1, "does not exist")
}

/// Each standard stream closed, and all of them: nothing that is opened may take their place.
fn closed_streams(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo(world, &["/bin/true"])?;
    for closed in ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"] {
        for verb in ["create", "run"] {
            let script = format!("exec \"$@\" {closed}");
            let output = cmd!("/bin/sh", "-c", script, "sh", &rt.path, "--root")
                .arg(Path::new(ROOTS).join(rt.name))
                .args([verb, "--bundle"])
                .arg(&bundle.dir)
                .arg(&bundle.id)
                .output()?;
            ensure!(output.status.success(), "{verb} {closed}: {output}");
            rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
        }
        let script = format!("exec \"$@\" {closed}");
        let output = cmd!("/bin/sh", "-c", script, "sh", &rt.path, "state", "nothere").output()?;
        ensure!(output.code() == 1, "state {closed}: {output}");
    }
    Ok(())
}
