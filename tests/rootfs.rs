//! The rootfs measured: in a boot its layers are read once, a change is never taken for none, and what
//! was measured at `create` is what starts.

use crate::{
    Module, Test,
    admission::{demo_bundle, layer_with, ours, refusal, restoring, runs},
    deaths::new_processes,
    host::{POLICY, policy},
    image::{Image, Plan},
    publisher::STORE,
    runtime::{Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

pub const MODULE: Module = Module {
    name: "rootfs",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        crate::engines::warm(world)
    },
    tests: &[
        Test::Once(
            "unchanged_layers_are_not_read_again",
            unchanged_layers_are_not_read_again,
        ),
        Test::Ours(
            "a_change_is_never_taken_for_none",
            a_change_is_never_taken_for_none,
        ),
        Test::Once(
            "a_damaged_cache_is_only_slower",
            a_damaged_cache_is_only_slower,
        ),
        Test::Once("full_reads_each_file_once", full_reads_each_file_once),
        Test::Once(
            "stat_compares_all_but_content",
            stat_compares_all_but_content,
        ),
        Test::Ours(
            "what_was_measured_at_create_is_what_starts",
            what_was_measured_at_create_is_what_starts,
        ),
    ],
};

const CACHE: &str = "/run/attestrun/cache/layers";
/// Longer than a stamp's clock stands still.
const SETTLED: Duration = Duration::from_millis(100);

/// The policy of the tests, with this mode of checking.
fn checking(mode: &str) -> String {
    let how = format!("min_tier = \"none\"\nrootfs = \"{mode}\"");
    policy("enforce").replace("min_tier = \"none\"", &how)
}

fn with_mode(mode: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    restoring(POLICY, || {
        fs::write(POLICY, checking(mode))?;
        std::thread::sleep(SETTLED);
        body()
    })
}

/// How the container's rootfs was checked, as its event log says.
pub fn check_of(rt: &Runtime, bundle: &Bundle) -> Result<String> {
    rt.create(bundle).ok()?;
    let found = said();
    rt.on("delete", bundle).arg("--force").ok()?;
    found
}

fn said() -> Result<String> {
    for run in fs::read_dir("/run/attestrun/containers")? {
        let log = run?.path().join("bounded/event.log");
        let Ok(bytes) = fs::read(&log) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        let Some(at) = text.find("\"check\":\"") else {
            continue;
        };
        let rest = &text[at + 9..];
        return Ok(rest.split('"').next().unwrap_or_default().to_owned());
    }
    anyhow::bail!("no event log says how the rootfs was checked")
}

fn unchanged_layers_are_not_read_again(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    ensure!(check_of(&rt, &bundle)? == "full", "the default is full");
    with_mode("boot", || {
        runs(&rt, &bundle)?;
        let check = check_of(&rt, &bundle)?;
        ensure!(check == "boot", "read {check}, though nothing changed");
        Ok(())
    })?;
    ensure!(check_of(&rt, &bundle)? == "full", "full reads every time");
    Ok(())
}

fn a_change_is_never_taken_for_none(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let file = layer_with(&world.rootfs(0)?, "etc/layer2")?;
    let refused = |what: &str,
                   words: &str,
                   change: &dyn Fn() -> Result<()>,
                   back: &dyn Fn() -> Result<()>| {
        runs(rt, &bundle).with_context(|| format!("before: {what}"))?;
        change()?;
        let output = rt.run(&bundle);
        back()?;
        std::thread::sleep(SETTLED);
        refusal(&output?, words).with_context(|| what.to_owned())
    };
    with_mode("boot", || {
        let original = fs::read(&file)?;
        let modified = fs::metadata(&file)?.modified()?;
        let write = |bytes: &[u8]| -> Result<()> {
            // Same size, same modification time: only the change time tells.
            fs::write(&file, bytes)?;
            Ok(fs::File::options()
                .write(true)
                .open(&file)?
                .set_modified(modified)?)
        };
        let mut changed = original.clone();
        changed[0] ^= 1;
        refused("a changed byte", "etc/layer2", &|| write(&changed), &|| {
            write(&original)
        })?;

        let mode = fs::metadata(&file)?.permissions();
        let setuid = fs::Permissions::from_mode(0o4755);
        refused(
            "a setuid bit",
            "etc/layer2",
            &|| Ok(fs::set_permissions(&file, setuid.clone())?),
            &|| Ok(fs::set_permissions(&file, mode.clone())?),
        )?;

        let extra = file.with_file_name("extra");
        refused(
            "an extra file",
            "etc/extra",
            &|| Ok(fs::write(&extra, "")?),
            &|| Ok(fs::remove_file(&extra)?),
        )?;

        let away = file.with_file_name("layer2.away");
        refused(
            "a missing file",
            "etc/layer2",
            &|| Ok(fs::rename(&file, &away)?),
            &|| Ok(fs::rename(&away, &file)?),
        )?;
        runs(rt, &bundle)
    })
}

/// The first create, which does not know the layers either, and the next one.
fn full_reads_each_file_once(world: &World) -> Result<()> {
    const SIZE: usize = 1 << 20;
    const FILES: usize = 24;
    let plan = Plan {
        name: "localhost/e2e/demo:read-once",
        text: "read once\n",
    };
    let dir = world.work.join("read-once");
    let image = Image::with_bulk(&dir, &plan, FILES, SIZE)?;
    let rt = ours(world)?;
    let done = restoring(STORE, || {
        world.open_for_business()?.owner.publish(&image, 1)?;
        world.with_rootfs(&image, |rootfs| {
            let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
            std::thread::sleep(SETTLED);
            for which in ["first", "second"] {
                let read = read_by_create(&rt, &bundle)?;
                let all = FILES * SIZE;
                ensure!(
                    read >= all && read < all * 3 / 2,
                    "the {which} create read {read} bytes, the image has {all}"
                );
            }
            Ok(())
        })
    });
    fs::remove_dir_all(dir)?;
    done
}

/// How many bytes the guard has read when `create` is done.
fn read_by_create(rt: &Runtime, bundle: &Bundle) -> Result<usize> {
    let guards = new_processes("guard", || rt.create(bundle).ok().map(drop))?;
    let read = guards.first().context("no guard").and_then(|guard| {
        let io = fs::read_to_string(format!("/proc/{guard}/io"))?;
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        Ok(line.context("rchar")?.parse()?)
    });
    rt.on("delete", bundle).arg("--force").ok()?;
    read
}

/// Where directories cannot be sealed, as with a user namespace; all else is compared.
fn stat_compares_all_but_content(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let mut bundle = demo_bundle(world, &["/bin/true"])?;
    let spec: serde_json::Value =
        serde_json::from_slice(&fs::read(bundle.dir.join("config.json"))?)?;
    let mut linux = spec["linux"].clone();
    let namespaces = linux["namespaces"].as_array_mut();
    namespaces
        .context("namespaces")?
        .push(json!({ "type": "user" }));
    for maps in ["uidMappings", "gidMappings"] {
        linux[maps] = json!([{ "containerID": 0, "hostID": 0, "size": 65_536 }]);
    }
    bundle.set("/linux", linux)?;
    let file = layer_with(&world.rootfs(0)?, "etc/layer2")?;
    let original = fs::read(&file)?;
    let mut other = original.clone();
    other[0] ^= 1;
    let done = with_mode("stat", || {
        let check = check_of(&rt, &bundle)?;
        ensure!(check == "stat", "checked `{check}`");
        fs::write(&file, &other)?;
        let check = check_of(&rt, &bundle).context("another content of the same size")?;
        ensure!(check == "stat", "checked `{check}`");
        fs::write(&file, [&other[..], b"more"].concat())?;
        refusal(&rt.run(&bundle)?, "etc/layer2").context("another size")?;
        fs::write(&file, &original)?;
        let mode = fs::metadata(&file)?.permissions();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755))?;
        let setuid = rt.run(&bundle);
        fs::set_permissions(&file, mode)?;
        refusal(&setuid?, "etc/layer2").context("a setuid bit")
    });
    fs::write(&file, &original)?;
    done?;
    with_mode("boot", || {
        let check = check_of(&rt, &bundle)?;
        ensure!(check == "full", "a rule that wants `boot` got `{check}`");
        Ok(())
    })
}

fn a_damaged_cache_is_only_slower(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    with_mode("boot", || {
        runs(&rt, &bundle)?;
        // the boot, the front's checksum, the first node that is looked at, its end
        let places: [fn(usize) -> usize; 4] = [|_| 30, |_| 200, |end| end - 30, |end| end - 1];
        for place in places {
            for entry in fs::read_dir(CACHE)? {
                let path = entry?.path();
                let mut bytes = fs::read(&path)?;
                let at = place(bytes.len());
                bytes[at] ^= 1;
                fs::write(&path, bytes)?;
            }
            let check = check_of(&rt, &bundle)?;
            ensure!(check == "full", "checked `{check}` by a damaged entry");
            let check = check_of(&rt, &bundle)?;
            ensure!(check == "boot", "the entries were not written anew");
        }
        Ok(())
    })
}

/// As `docker cp` and hooks do between the two; in every mode.
fn what_was_measured_at_create_is_what_starts(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo;
    for mode in ["full", "boot"] {
        world.with_rootfs(demo, |rootfs| {
            let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
            let between = |what: &str, words: &str, change: &dyn Fn(&Path) -> Result<()>| {
                rt.create(&bundle).ok()?;
                let changed = change(&rootfs.path);
                let started = rt.on("start", &bundle).output();
                rt.on("delete", &bundle).arg("--force").ok()?;
                changed?;
                refusal(&started?, words).with_context(|| format!("{mode}: {what}"))
            };
            with_mode(mode, || {
                runs(rt, &bundle)?;
                between("an added file", "etc/evil", &|root| {
                    Ok(fs::write(root.join("etc/evil"), "evil")?)
                })?;
                fs::remove_file(rootfs.path.join("etc/evil"))?;
                runs(rt, &bundle).with_context(|| format!("{mode}: removed again"))?;
                let lower = layer_with(rootfs, "etc/passwd")?;
                let kept = fs::read(&lower)?;
                let done = between("a layer's file", "etc/passwd", &|_| {
                    Ok(fs::write(&lower, "root::0:0::/:/bin/sh\n")?)
                });
                fs::write(&lower, kept)?;
                std::thread::sleep(SETTLED);
                done?;
                between("a deleted file", "etc/layer2", &|root| {
                    Ok(fs::remove_file(root.join("etc/layer2"))?)
                })
            })
        })?;
    }
    Ok(())
}
