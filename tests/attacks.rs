//! Ways around the list, each tried from inside by a listed program (`tests/attacks/attack.c`). README has
//! the table of what becomes of them; this holds it to its word.

use crate::{
    Module, Test,
    admission::restoring,
    cmd,
    image::{Image, Plan, UNLISTED},
    launch::allowing,
    machine::patient,
    namespace::SOURCES,
    publisher::STORE,
    runtime::{Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

pub const MODULE: Module = Module {
    name: "attacks",
    prepare: |world| world.open_for_business().map(|_| ()),
    tests: &[Test::Once("ways_around_the_list", ways_around_the_list)],
};

/// How long the race goes on; with `--slow 30` a minute.
const RACE: Duration = Duration::from_secs(2);

/// What becomes of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Denied,
    Open,
}

/// README's table: `| `way` | what it is | denied |`.
fn table() -> Result<BTreeMap<String, Fate>> {
    let readme = fs::read_to_string(Path::new(SOURCES).join("README.md"))?;
    let rows = readme.lines().skip_while(|l| !l.starts_with("| way |"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [way, _, fate] = cells[..] else {
            bail!("{row}")
        };
        let fate = match fate {
            "denied" => Fate::Denied,
            "open" => Fate::Open,
            "denied, since Linux 6.6" if executes_memory()? => Fate::Open,
            "denied, since Linux 6.6" => Fate::Denied,
            _ => bail!("{row}"),
        };
        Ok((way.trim_matches('`').to_owned(), fate))
    })
    .collect()
}

/// Whether the kernel cannot be told to execute no memory files without refusing others too.
fn executes_memory() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (
        numbers.next().context("release")?,
        numbers.next().unwrap_or(0),
    );
    Ok(version < (6, 6))
}

fn attacker(world: &World) -> Result<Image> {
    let dir = world.work.join("ways-around");
    fs::create_dir_all(&dir)?;
    let source = Path::new(SOURCES).join("tests/attacks/attack.c");
    let (attack, strange) = (dir.join("attack"), dir.join("strange-loader"));
    cmd!(
        "cc", "-static", "-O1", "-w", "-pthread", "-o", &attack, &source
    )
    .ok()?;
    let loader = "-Wl,--dynamic-linker=/dev/loader";
    cmd!("cc", "-O1", "-w", loader, "-o", &strange, &source).ok()?;
    let (attack, strange) = (fs::read(attack)?, fs::read(strange)?);
    let [library, dynamic] = ["library", "dynamic"].map(|name| dir.join(name));
    let source = |name: &str| Path::new(SOURCES).join("tests/attacks").join(name);
    cmd!(
        "cc",
        "-shared",
        "-nostdlib",
        "-fPIC",
        "-O1",
        "-w",
        "-o",
        &library,
        source("library.c")
    )
    .ok()?;
    cmd!("cc", "-O1", "-o", &dynamic, source("dynamic.c")).ok()?;
    let needs = cmd!("ldd", &dynamic).ok()?.stdout;
    let needs = needs
        .split_ascii_whitespace()
        .filter(|w| w.starts_with('/'));
    let needs: Vec<_> = needs
        .map(|path| Ok((path, fs::read(path)?)))
        .collect::<Result<_>>()?;
    let (library, dynamic) = (fs::read(library)?, fs::read(dynamic)?);
    let busybox = fs::read("/bin/busybox")?;
    let others = [b"written", b"mapped!"].map(|end| [busybox.as_slice(), end].concat());
    let mut files = vec![
        ("opt/attack", 0o755, attack.as_slice()),
        ("opt/written", 0o755, others[0].as_slice()),
        ("opt/mapped", 0o755, others[1].as_slice()),
        ("opt/strange-loader", 0o755, strange.as_slice()),
        ("opt/library.so", 0o755, library.as_slice()),
        ("opt/dynamic", 0o755, dynamic.as_slice()),
        ("data/.keep", 0o644, b""),
    ];
    let needs = needs.iter();
    files.extend(needs.map(|(path, bytes)| (&path[1..], 0o755, bytes.as_slice())));
    let plan = Plan {
        name: "localhost/e2e/demo:attacks",
        text: "ways around\n",
    };
    let image = Image::with_files(&world.work.join("images"), &plan, &files)?;
    world.open_for_business()?.owner.publish(&image, 1)?;
    Ok(image)
}

fn ways_around_the_list(world: &World) -> Result<()> {
    let table = table()?;
    ensure!(table.len() > 20, "README's table: {table:?}");
    let source = fs::read_to_string(Path::new(SOURCES).join("tests/attacks/attack.c"))?;
    let ways = source.split("WAY(\"").skip(1);
    for way in ways.filter_map(|rest| rest.split('"').next()) {
        ensure!(table.contains_key(way), "README does not know {way}");
    }
    restoring(STORE, || {
        let image = attacker(world)?;
        let done = allowing(&["mount:*"], || {
            let ours = world
                .runtimes()
                .into_iter()
                .filter(|rt| rt.backend.is_some());
            for rt in ours {
                world.select(Some(&rt))?;
                tried(world, &rt, &image, &table).context(rt.name)?;
            }
            Ok(())
        });
        world.podman()?.args(["rmi", "-f", &image.name]).ok()?;
        done
    })
}

fn tried(world: &World, rt: &Runtime, image: &Image, table: &BTreeMap<String, Fate>) -> Result<()> {
    let volume = world.work.join("attacks-volume");
    fs::create_dir_all(&volume)?;
    world.with_rootfs(image, |rootfs| {
        let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sleep", "1000"])?;
        bundle.set("/root/readonly", json!(false))?;
        let mut mounts = bundle.config["mounts"].clone();
        let options = ["bind", "rw"];
        let data =
            json!({ "destination": "/data", "type": "bind", "source": volume, "options": options });
        mounts.as_array_mut().context("mounts")?.push(data);
        bundle.set("/mounts", mounts)?;
        rt.up(&bundle)?;
        let mut wrong = Vec::new();
        for (way, fate) in table {
            let user = if way == "new-tmpfs" { "1000" } else { "0" };
            let exec = rt.cmd("exec").args(["--user", user]).arg(&bundle.id);
            let seconds = patient(RACE).as_secs().to_string();
            let output = exec
                .args(["/opt/attack", way, UNLISTED, &seconds])
                .output()?;
            let ran = output.stdout.lines().any(|line| line == "ran");
            let tried = way != "race" || output.code() == 0;
            if !tried || ran != (*fate == Fate::Open) {
                wrong.push(format!("{way} should be {fate:?}: {output}"));
            }
        }
        rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
        ensure!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    })
}
