//! Ordinary workloads under a list that was made from their image: Debian's shell, tools and interpreters,
//! linked dynamically, run unharmed, and what they do not bring is refused to them as well.

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
use std::{collections::BTreeMap, fs, path::Path};

pub const MODULE: Module = Module {
    name: "workloads",
    prepare: |world| world.open_for_business().map(|_| ()),
    tests: &[Test::Ours(
        "debians_tools_and_interpreters",
        debians_tools_and_interpreters,
    )],
};

const PROGRAMS: [&str; 8] = [
    "/bin/bash",
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
    let plan = Plan {
        name: "localhost/e2e/demo:debian",
        text: "Debian's tools\n",
    };
    Image::with_files(&world.work.join("images"), &plan, &all)
}

/// What is run, and what it says.
const RUNS: [(&str, &str); 6] = [
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
    (
        "timeout 5 bash -c 'for i in {1..50}; do ( true ) & done; wait; echo waited'",
        "waited\n",
    ),
];

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
