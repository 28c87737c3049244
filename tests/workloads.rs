//! Ordinary workloads under a list that was made from their image: Debian's shell, tools and interpreters,
//! linked dynamically, and a compiler in memory (grep -P), run unharmed, and what they do not bring is refused
//! to them as well: what a package manager installs is denied by its name.

use crate::{
    Module, Test,
    admission::restoring,
    cmd,
    image::{File, Image, Plan},
    launch::allowing,
    publisher::STORE,
    runtime::{Bundle, Runtime},
    stock_tools::{log_of, shown},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

pub const MODULE: Module = Module {
    name: "workloads",
    prepare: |world| world.open_for_business().map(|_| ()),
    tests: &[
        Test::Ours(
            "debians_tools_and_interpreters",
            debians_tools_and_interpreters,
        ),
        Test::Ours("what_is_installed_is_denied", what_is_installed_is_denied),
    ],
};

const PROGRAMS: [&str; 14] = [
    "/bin/bash",
    "/bin/grep",
    "/bin/rm",
    "/bin/tar",
    "/usr/bin/dpkg",
    "/usr/bin/dpkg-deb",
    "/usr/bin/dpkg-split",
    "/usr/bin/env",
    "/usr/bin/ls",
    "/usr/bin/perl",
    "/usr/bin/python3",
    "/usr/bin/sort",
    "/usr/bin/tail",
    "/usr/bin/timeout",
];
const SCRIPT: &[u8] = b"#!/usr/bin/perl\nprint scalar(reverse(<STDIN>)), \"\\n\";\n";

/// This machine's programs with the libraries and the loader that ldd(1) names.
fn files() -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for program in PROGRAMS {
        files.insert(program.to_owned(), fs::read(program).context(program)?);
        let needs = cmd!("ldd", program).ok()?.stdout;
        let paths = needs
            .split_ascii_whitespace()
            .filter(|w| w.starts_with('/'));
        for path in paths {
            files.insert(path.to_owned(), fs::read(path).context(path.to_owned())?);
        }
    }
    Ok(files)
}

fn image(world: &World) -> Result<Image> {
    let files = files()?;
    let mut all: Vec<File<'_>> = files
        .iter()
        .map(|(path, bytes)| (path.trim_start_matches('/'), 0o755, bytes.as_slice()))
        .collect();
    all.push(("usr/bin/backwards", 0o755, SCRIPT));
    all.push(("usr/lib/python3/.keep", 0o644, b""));
    let package = package(&world.work.join("package"))?;
    all.push(("opt/strange.deb", 0o644, &package));
    all.extend(DATABASE.map(|path| (path, 0o644, &b""[..])));
    let plan = Plan {
        name: "localhost/e2e/demo:debian",
        text: "Debian's tools\n",
    };
    Image::with_files(&world.work.join("images"), &plan, &all)
}

/// dpkg's, of a system without packages.
const DATABASE: [&str; 3] = [
    "var/lib/dpkg/status",
    "var/lib/dpkg/info/.keep",
    "var/lib/dpkg/updates/.keep",
];

/// With a program, and a script that dpkg executes.
fn package(dir: &Path) -> Result<Vec<u8>> {
    fs::create_dir_all(dir.join("DEBIAN"))?;
    fs::create_dir_all(dir.join("usr/bin"))?;
    let control = "Package: strange\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example>\n\
                   Description: strange\n";
    fs::write(dir.join("DEBIAN/control"), control)?;
    let mut program = fs::read("/bin/busybox")?;
    program.extend_from_slice(b"strange");
    for (path, content) in [
        ("usr/bin/strange", program.as_slice()),
        ("DEBIAN/postinst", b"#!/bin/bash\necho configured\n"),
    ] {
        fs::write(dir.join(path), content)?;
        fs::set_permissions(dir.join(path), Permissions::from_mode(0o755))?;
    }
    let package = dir.with_extension("deb");
    cmd!("dpkg-deb", "--root-owner-group", "--build", dir, &package).ok()?;
    Ok(fs::read(package)?)
}

/// What is run, and what it says.
const RUNS: [(&str, &str); 7] = [
    ("for i in c a b; do echo $i; done | sort | tail -n 1", "c\n"),
    (
        "set -- $(ls /usr/bin/perl); echo $#; ( exec env -i /usr/bin/ls -d /usr )",
        "1\n/usr\n",
    ),
    ("printf 'olleh' | backwards", "hello\n"),
    (
        "perl -e 'for (1..20) { system(\"true\") and die } print qx(ls -d /etc)'",
        "/etc\n",
    ),
    (
        "python3 -c 'import subprocess as s; [s.check_call([\"/usr/bin/env\", \"true\"]) for _ in range(20)]; \
         print(s.check_output([\"bash\", \"-c\", \"echo $((6*7))\"]).decode().strip())'",
        "42\n",
    ),
    ("printf 'a1\\nb2\\n' | grep -P '(?<=b)\\d'", "b2\n"),
    (
        "timeout 5 bash -c 'for i in {1..50}; do ( true ) & done; wait; echo waited'",
        "waited\n",
    ),
];

/// dpkg installs a program, and may not execute the package's script, nor anybody the program.
fn what_is_installed_is_denied(world: &World, rt: &Runtime) -> Result<()> {
    restoring(STORE, || {
        let image = image(world)?;
        world.open_for_business()?.owner.publish(&image, 1)?;
        let done = world.with_rootfs(&image, |rootfs| {
            let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sleep", "1000"])?;
            bundle.set("/process/env", json!(["PATH=/usr/bin:/bin"]))?;
            bundle.set("/root/readonly", json!(false))?;
            rt.up(&bundle)?;
            let run = |script: &str| {
                let exec = rt.cmd("exec").arg(&bundle.id);
                exec.args(["/bin/bash", "-c", script]).output()
            };
            let script = "/var/lib/dpkg/info/strange.postinst";
            let install = run("dpkg --force-bad-path --install /opt/strange.deb")?;
            ensure!(install.code() == 1, "{install}");
            install.says("Operation not permitted")?.says(script)?;
            let installed = run("exec /usr/bin/strange echo ran")?;
            ensure!(installed.code() == 126, "{installed}");
            let log = shown(world, &log_of(&bundle.id)?)?;
            rt.down(&bundle)?;
            let faults: Vec<_> = log.iter().filter(|event| event["pcr"] == 8).collect();
            let about = |path: &str| faults.iter().any(|fault| fault.to_string().contains(path));
            ensure!(
                faults.len() == 2 && about(script) && about("/usr/bin/strange"),
                "{faults:?}"
            );
            Ok(())
        });
        world.podman()?.args(["rmi", "-f", &image.name]).ok()?;
        done
    })
}

fn debians_tools_and_interpreters(world: &World, rt: &Runtime) -> Result<()> {
    restoring(STORE, || {
        let image = image(world)?;
        world.open_for_business()?.owner.publish(&image, 1)?;
        let done = allowing(&["mount:*"], || {
            world.with_rootfs(&image, |rootfs| {
                let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sleep", "1000"])?;
                bundle.set("/process/env", json!(["PATH=/usr/bin:/bin"]))?;
                let real = fs::canonicalize("/usr/bin/python3")?;
                let library = Path::new("/usr/lib").join(real.file_name().context("python3")?);
                let mut mounts = bundle.config["mounts"].clone();
                let modules = json!({ "destination": library, "type": "bind", "source": library,
                "options": ["rbind", "ro"] });
                mounts.as_array_mut().context("mounts")?.push(modules);
                bundle.set("/mounts", mounts)?;
                rt.up(&bundle)?;
                let done = RUNS.iter().try_for_each(|(script, says)| {
                    let exec = rt.cmd("exec").arg(&bundle.id);
                    let output = exec.args(["/bin/bash", "-c", script]).output()?;
                    ensure!(
                        output.code() == 0 && output.stdout == *says,
                        "{script}: {output}"
                    );
                    Ok(())
                });
                let log = shown(world, &log_of(&bundle.id)?)?;
                rt.down(&bundle)?;
                done?;
                let faults = log.iter().filter(|event| event["pcr"] == 8);
                ensure!(faults.count() == 0, "{log:?}");
                let loader = |event: &&serde_json::Value| {
                    event["pcr"] == 10 && event.to_string().contains("/ld-linux")
                };
                ensure!(
                    log.iter().filter(loader).count() == 1,
                    "the dynamic loader: {log:?}"
                );
                Ok(())
            })
        });
        world.podman()?.args(["rmi", "-f", &image.name]).ok()?;
        done
    })
}
