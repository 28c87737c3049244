//! Other people's tools on what attestrun writes: mtree(8) finds a tree to be what its manifest says, and
//! any change of it; evmctl(1) replays an event log; the manifest of an image is the one that its host
//! measured, from whichever form of the image it is computed.

use crate::{
    Module, Test,
    admission::{demo_bundle, ours},
    cmd,
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{PermissionsExt, chown, symlink},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "stock_tools",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once(
            "mtree_finds_what_a_manifest_says",
            mtree_finds_what_a_manifest_says,
        ),
        Test::Once(
            "an_images_manifest_is_what_was_measured",
            an_images_manifest_is_what_was_measured,
        ),
        Test::Once("evmctl_replays_an_event_log", evmctl_replays_an_event_log),
    ],
};

const NAMES: [&[u8]; 9] = [
    b"plain",
    b"a b",
    b"new\nline",
    b"100%",
    b"\xff\xfe",
    b"back\\slash",
    b"#hash=*?[x]",
    b"-dash",
    b"\x07",
];

/// Everything that a manifest can hold, under names that are only bytes.
fn odd_tree(root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for (number, name) in NAMES.iter().enumerate() {
        let directory = root.join(OsStr::from_bytes(name));
        fs::create_dir(&directory)?;
        let file = directory.join(OsStr::from_bytes(NAMES[(number + 1) % NAMES.len()]));
        fs::write(&file, [number as u8; 100])?;
        chown(&file, Some(number as u32), Some(7))?;
    }
    fs::hard_link(root.join("plain/a b"), root.join("hard"))?;
    symlink("a b/../new\nline \\040", root.join("link"))?;
    let sparse = fs::File::create(root.join("sparse"))?;
    sparse.set_len(1 << 20)?;
    let _socket = UnixListener::bind(root.join("socket"))?;
    let node = |name: &str, kind, number| {
        mknod(
            &root.join(name),
            kind,
            Mode::from_bits_truncate(0o600),
            number,
        )
    };
    node("fifo", SFlag::S_IFIFO, 0)?;
    node("null", SFlag::S_IFCHR, makedev(1, 3))?;
    node("disk", SFlag::S_IFBLK, makedev(7, 9))?;
    fs::write(root.join("setuid"), "x")?;
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o6755))?;
    fs::create_dir(root.join("sticky"))?;
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777))?;
    // NAME_MAX, and a path near PATH_MAX: made step by step, since no call takes it whole
    let long = "n".repeat(255);
    let script = "cd \"$1\"; n=0; while [ $n -lt 14 ]; do mkdir $2; cd $2; n=$((n + 1)); done; echo deep > file";
    cmd!("sh", "-ec", script, "sh", root, &long).ok()?;
    Ok(())
}

/// What mtree(8) says of the tree at `root` beside the manifest `spec`.
fn mtree(spec: &Path, root: &Path) -> Result<Output> {
    cmd!("mtree", "-f", spec, "-p", root).output()
}

fn manifest_of(root: &Path) -> Result<String> {
    let fd = content::open_directory(root)?;
    Ok(content::tree::walk(fd.as_fd())?.mtree())
}

fn mtree_finds_what_a_manifest_says(world: &World) -> Result<()> {
    let root = world.work.join("odd-tree");
    odd_tree(&root)?;
    let spec = world.work.join("odd-tree.mtree");
    fs::write(&spec, manifest_of(&root)?)?;
    let same = mtree(&spec, &root)?;
    ensure!(same.status.success() && same.stdout.is_empty(), "{same}");
    let file = root.join("plain/a b");
    let kept = fs::read(&file)?;
    type Change<'a> = (
        &'a str,
        &'a dyn Fn() -> Result<()>,
        &'a dyn Fn() -> Result<()>,
    );
    let mode = |mode| {
        Ok(fs::set_permissions(
            root.join("setuid"),
            fs::Permissions::from_mode(mode),
        )?)
    };
    let changes: [Change<'_>; 5] = [
        ("sha256 (", &|| Ok(fs::write(&file, [9; 100])?), &|| {
            Ok(fs::write(&file, &kept)?)
        }),
        ("setuid", &|| mode(0o755), &|| mode(0o6755)),
        ("gid", &|| Ok(chown(&file, None, Some(8))?), &|| {
            Ok(chown(&file, None, Some(7))?)
        }),
        (
            "extra: added",
            &|| Ok(fs::write(root.join("added"), "")?),
            &|| Ok(fs::remove_file(root.join("added"))?),
        ),
        (
            "missing",
            &|| Ok(fs::rename(root.join("fifo"), world.work.join("fifo"))?),
            &|| Ok(fs::rename(world.work.join("fifo"), root.join("fifo"))?),
        ),
    ];
    for (words, change, back) in changes {
        change()?;
        let found = mtree(&spec, &root);
        back()?;
        let found = found?;
        ensure!(found.stdout.contains(words), "{words}: {found}");
    }
    let same = mtree(&spec, &root)?;
    ensure!(same.status.success(), "with everything back: {same}");
    Ok(fs::remove_dir_all(&root)?)
}

fn an_images_manifest_is_what_was_measured(world: &World) -> Result<()> {
    let demo = &world.images()?.demo;
    let spec = world.work.join("demo.mtree");
    let mut digests = Vec::new();
    for form in [&demo.layout, &demo.archive] {
        let said = world
            .ctl()?
            .args(["image", "manifest", "--digest"])
            .arg(form)
            .ok()?;
        digests.push(said.stdout.trim().to_owned());
    }
    world
        .ctl()?
        .args(["image", "manifest", "--output"])
        .arg(&spec)
        .arg(&demo.layout)
        .ok()?;
    digests.push(format!(
        "sha256:{}",
        cmd!("sha256sum", &spec)
            .ok()?
            .stdout
            .split(' ')
            .next()
            .unwrap_or_default()
    ));
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
    rt.up(&bundle)?;
    let events = shown(world, &log_of(&bundle.id)?);
    rt.down(&bundle)?;
    let events = events?;
    let event = events
        .iter()
        .find(|event| event["event"] == "attestrun.rootfs");
    let measured = event.context("attestrun.rootfs")?["content"]["manifest"].clone();
    for digest in &digests {
        ensure!(
            measured == digest.as_str(),
            "measured {measured}, computed {digests:?}"
        );
    }
    // What an engine's place for the rootfs looks like is its own matter: mode of the root itself.
    let rootfs = world.rootfs(0)?.path;
    let text = fs::read_to_string(&spec)?;
    let fits: String = text
        .lines()
        .map(|line| match line.strip_prefix(". ") {
            Some(_) => ". type=dir\n".to_owned(),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(&spec, fits)?;
    let same = mtree(&spec, &rootfs)?;
    // Containers that ran on it have left their mounts' places, which are extra.
    ensure!(
        !same.stdout.contains("missing") && !same.stdout.contains("changed"),
        "{same}"
    );
    Ok(())
}

/// The event log of the only container that runs now.
pub fn log_of(id: &str) -> Result<PathBuf> {
    for run in fs::read_dir("/run/attestrun/containers")? {
        let run = run?.path();
        let state = fs::read_to_string(run.join("state.json")).unwrap_or_default();
        if state.contains(id) {
            return Ok(run.join("bounded/event.log"));
        }
    }
    anyhow::bail!("no container {id} runs")
}

pub fn shown(world: &World, log: &Path) -> Result<Vec<Value>> {
    let said = world.ctl()?.args(["--json", "log", "show"]).arg(log).ok()?;
    let json: Value = serde_json::from_str(&said.stdout)?;
    json["events"].as_array().cloned().context("events")
}

fn evmctl_replays_an_event_log(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
    rt.up(&bundle)?;
    let log = world.work.join("evmctl.log");
    let copied = fs::copy(log_of(&bundle.id)?, &log);
    rt.down(&bundle)?;
    copied?;
    let said = world
        .ctl()?
        .args(["--json", "log", "verify"])
        .arg(&log)
        .ok()?;
    let explained: Value = serde_json::from_str(&said.stdout)?;
    let entries = verify::imalog::parse(&fs::read(&log)?)?;
    let part = world.work.join("evmctl.part");
    // evmctl is content with any beginning of a list that explains the values: one PCR at a time.
    let replayed = |pcr: u8, value: &str| -> Result<Output> {
        let of_pcr = entries.iter().filter(|entry| entry.pcr().get() == pcr);
        fs::write(
            &part,
            of_pcr.flat_map(|entry| entry.encode()).collect::<Vec<_>>(),
        )?;
        // as the kernel's own file has them: 24 lines
        let mut pcrs = String::new();
        for number in 0..24 {
            let zero = "0".repeat(64);
            let value = if number == pcr { value } else { &zero };
            write!(pcrs, "PCR-{number:02}:")?;
            for at in (0..value.len()).step_by(2) {
                write!(pcrs, " {}", value[at..at + 2].to_uppercase())?;
            }
            pcrs.push('\n');
        }
        let file = world.work.join("evmctl.pcrs");
        fs::write(&file, pcrs)?;
        let banks = format!("sha256,{}", file.display());
        cmd!("evmctl", "ima_measurement", "--pcrs", banks, &part).output()
    };
    for pcr in [0, 1, 2, 4, 5, 7, 10, 11] {
        let value = explained["sha256"][pcr.to_string()].as_str();
        let right = replayed(pcr, value.context("value")?)?;
        ensure!(right.status.success(), "PCR {pcr}: {right}");
        let wrong = replayed(pcr, &"1".repeat(64))?;
        ensure!(!wrong.status.success(), "PCR {pcr} was wrong: {wrong}");
    }
    // The other form says the same, record by record.
    let text = world.ctl()?.args(["log", "render"]).arg(&log).ok()?.stdout;
    let records = text.matches('\u{1e}').count();
    ensure!(
        records as u64 == explained["entries"].as_u64().unwrap_or(0),
        "{text}"
    );
    Ok(())
}
