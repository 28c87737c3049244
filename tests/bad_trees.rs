//! Root file systems that want to be read forever, or cannot be read: a clear error or a refusal, in good
//! time, and nothing left; put right, the container runs.

use crate::{
    Module, Test,
    admission::{demo_bundle, layer_with, ours, restoring, runs},
    cmd,
    deaths::new_processes,
    host::{POLICY, policy},
    runtime::{Bundle, Runtime},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

pub const MODULE: Module = Module {
    name: "bad_trees",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once("a_mount_loop", a_mount_loop),
        Test::Once(
            "ten_thousand_directories_deep",
            ten_thousand_directories_deep,
        ),
        Test::Once("many_files", many_files),
        Test::Once("a_file_that_never_rests", a_file_that_never_rests),
        Test::Once(
            "what_is_no_file_is_never_opened",
            what_is_no_file_is_never_opened,
        ),
        Test::Once("a_link_in_place_of_a_layer", a_link_in_place_of_a_layer),
        Test::Once("no_space_for_the_cache", no_space_for_the_cache),
    ],
};

const CACHE: &str = "/run/attestrun/cache/layers";
const SETTLED: Duration = Duration::from_millis(100);

/// A directory without an image, which a `[[bundle]]` entry admits whatever it holds.
pub struct Directory<'w> {
    world: &'w World,
    pub rt: Runtime,
    pub root: PathBuf,
    pub bundle: Bundle,
}

pub fn with_directory(
    world: &World,
    body: impl FnOnce(&Directory<'_>) -> Result<()>,
) -> Result<()> {
    let root = world.work.join("bad-tree/rootfs");
    fs::create_dir_all(&root)?;
    cmd!("cp", "-a", world.rootfs(0)?.path.join("."), &root).ok()?;
    let mut bundle = demo_bundle(world, &["/bin/true"])?;
    bundle.set("/root/path", json!(root))?;
    let entry = format!(
        "{}\n[[bundle]]\nname = \"bad-trees\"\nrootfs = \"{}\"\ncontent = \"any\"\nprograms = \"any\"\n\
         enter = \"any\"\nmin_tier = \"none\"\n",
        policy("enforce"),
        root.display()
    );
    let directory = Directory {
        world,
        rt: ours(world)?,
        root: root.clone(),
        bundle,
    };
    let done = restoring(POLICY, || {
        fs::write(POLICY, entry)?;
        runs(&directory.rt, &directory.bundle)?;
        body(&directory)?;
        runs(&directory.rt, &directory.bundle).context("put right again")
    });
    cmd!("rm", "-rf", &root).ok()?;
    done
}

impl Directory<'_> {
    /// `create` fails, with these words, and leaves nothing.
    fn fails(&self, words: &str) -> Result<()> {
        let before = self.world.snapshot()?;
        let output = self.rt.create(&self.bundle).output()?;
        let left = self.world.left_since(&before)?;
        clear(&output, words)?;
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    }
}

fn clear(output: &Output, words: &str) -> Result<()> {
    ensure!(output.code() == 1, "expected exit status 1: {output}");
    output.says(words)?.says_not("panicked")?;
    Ok(())
}

fn a_mount_loop(world: &World) -> Result<()> {
    with_directory(world, |directory| {
        let inner = directory.root.join("etc/loop");
        fs::create_dir(&inner)?;
        cmd!("mount", "--bind", &directory.root, &inner).ok()?;
        let done = directory.fails("/etc/loop is a mount point");
        cmd!("umount", &inner).ok()?;
        fs::remove_dir(&inner)?;
        done
    })
}

fn ten_thousand_directories_deep(world: &World) -> Result<()> {
    with_directory(world, |directory| {
        let deep = directory.root.join("etc/deep");
        let script = "mkdir \"$1\"; cd \"$1\"; n=0; while [ $n -lt 10000 ]; do mkdir d; cd d; n=$((n + 1)); done";
        // the shell's own idea of where it is would grow as well
        cmd!(
            "env",
            "--unset=PWD",
            "busybox",
            "sh",
            "-ec",
            script,
            "sh",
            &deep
        )
        .output()?;
        let levels = cmd!("sh", "-c", "find \"$1\" -type d | wc -l", "sh", &deep).output()?;
        ensure!(
            levels.stdout.trim().parse::<u32>().unwrap_or(0) > 1000,
            "{levels}"
        );
        let done = directory.fails("directories deep");
        cmd!("rm", "-rf", &deep).ok()?;
        done
    })
}

/// Time and the guard's memory are linear in the number of files; a million take `tests/bench B17`.
fn many_files(world: &World) -> Result<()> {
    const FEW: usize = 10_000;
    const MANY: usize = 60_000;
    with_directory(world, |directory| {
        let place = directory.root.join("etc/many");
        let mut costs = Vec::new();
        for files in [FEW, MANY] {
            fill(&place, files)?;
            costs.push(create_costs(&directory.rt, &directory.bundle)?);
        }
        fs::remove_dir_all(&place)?;
        let [(few, few_kib), (many, many_kib)] = costs[..] else {
            unreachable!("two counts")
        };
        println!("{FEW} files: {few:?}, {few_kib} KiB; {MANY} files: {many:?}, {many_kib} KiB");
        // a file's path, attributes and digest, several times over while they are compared
        let per_file = (many_kib.saturating_sub(few_kib) << 10) / (MANY - FEW);
        ensure!(per_file < 1500, "{per_file} bytes of memory per file");
        let most = few.mul_f64(3.0 * MANY as f64 / FEW as f64);
        ensure!(many < most, "{MANY} files took {many:?}, {FEW} {few:?}");
        Ok(())
    })
}

/// Empty files, a thousand in each directory; those that are there stay.
pub fn fill(place: &Path, files: usize) -> Result<()> {
    for number in 0..files / 1000 {
        let directory = place.join(number.to_string());
        if directory.exists() {
            continue;
        }
        fs::create_dir_all(&directory)?;
        for name in 0..1000 {
            fs::File::create(directory.join(name.to_string()))?;
        }
    }
    Ok(())
}

/// How long `create` takes, and the most memory that the guard had (KiB).
pub fn create_costs(rt: &Runtime, bundle: &Bundle) -> Result<(Duration, usize)> {
    let mut took = Duration::ZERO;
    let guards = new_processes("guard", || {
        took = rt.create(bundle).timed()?;
        Ok(())
    })?;
    let peak = guards.first().context("no guard").and_then(|guard| {
        let status = fs::read_to_string(format!("/proc/{guard}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    });
    rt.on("delete", bundle).arg("--force").ok()?;
    Ok((took, peak?))
}

fn a_file_that_never_rests(world: &World) -> Result<()> {
    with_directory(world, |directory| {
        let path = directory.root.join("etc/restless");
        fs::write(&path, vec![0; 64 << 20])?;
        let over = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let append = || -> Result<()> {
                let mut file = fs::File::options().append(true).open(&path)?;
                while !over.load(Ordering::Relaxed) {
                    file.write_all(b"more")?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            };
            let writer = scope.spawn(append);
            let done = directory.fails("/etc/restless changed while it was read");
            over.store(true, Ordering::Relaxed);
            writer.join().unwrap_or(Ok(()))?;
            done
        });
        fs::remove_file(&path)?;
        done
    })
}

/// Reading a FIFO that nobody writes to would wait for ever.
fn what_is_no_file_is_never_opened(world: &World) -> Result<()> {
    with_directory(world, |directory| {
        let at = |name: &str| directory.root.join("etc").join(name);
        let mode = Mode::from_bits_truncate(0o600);
        mknod(&at("fifo"), SFlag::S_IFIFO, mode, 0)?;
        mknod(&at("zero"), SFlag::S_IFCHR, mode, makedev(1, 5))?;
        mknod(&at("disk"), SFlag::S_IFBLK, mode, makedev(253, 9))?;
        let _socket = std::os::unix::net::UnixListener::bind(at("socket"))?;
        runs(&directory.rt, &directory.bundle)?;
        let program = directory.root.join("bin/true");
        let kept = directory.root.join("bin/true.kept");
        fs::rename(&program, &kept)?;
        mknod(&program, SFlag::S_IFIFO, Mode::from_bits_truncate(0o755), 0)?;
        let done = directory.fails("/bin/true");
        fs::remove_file(&program)?;
        fs::rename(&kept, &program)?;
        for name in ["fifo", "zero", "disk", "socket"] {
            fs::remove_file(at(name))?;
        }
        done
    })
}

fn in_boot_mode(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let how = "min_tier = \"none\"\nrootfs = \"boot\"";
    restoring(POLICY, || {
        fs::write(
            POLICY,
            policy("enforce").replace("min_tier = \"none\"", how),
        )?;
        std::thread::sleep(SETTLED);
        body()
    })
}

/// It leads to what would be another layer: its content is not the one with the signed diff-ID.
fn a_link_in_place_of_a_layer(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let file = layer_with(&world.rootfs(0)?, "etc/layer2")?;
    let layer = file.parent().and_then(Path::parent).context("layer")?;
    let (away, other) = (layer.with_extension("away"), world.work.join("other-layer"));
    in_boot_mode(|| {
        runs(&rt, &bundle)?;
        cmd!("cp", "-a", layer, &other).ok()?;
        fs::write(other.join("etc/layer2"), "evil\n")?;
        fs::rename(layer, &away)?;
        std::os::unix::fs::symlink(&other, layer)?;
        for entry in fs::read_dir(CACHE)? {
            fs::remove_file(entry?.path())?;
        }
        std::thread::sleep(SETTLED);
        let before = world.snapshot()?;
        let output = rt.create(&bundle).output();
        let left = world.left_since(&before);
        fs::remove_file(layer)?;
        fs::rename(&away, layer)?;
        fs::remove_dir_all(&other)?;
        std::thread::sleep(SETTLED);
        let (output, left) = (output?, left?);
        clear(&output, "layer")?;
        ensure!(left.is_empty(), "left behind: {left:#?}");
        runs(&rt, &bundle).context("put right again")
    })
}

fn no_space_for_the_cache(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    in_boot_mode(|| {
        runs(&rt, &bundle)?;
        cmd!(
            "mount",
            "-t",
            "tmpfs",
            "-o",
            "size=4k,mode=0700",
            "none",
            CACHE
        )
        .ok()?;
        let done = runs(&rt, &bundle).and_then(|()| runs(&rt, &bundle));
        let left = fs::read_dir(CACHE).map(Iterator::count);
        cmd!("umount", CACHE).ok()?;
        done?;
        ensure!(left? <= 1, "parts of entries were left in the full cache");
        runs(&rt, &bundle)
    })
}
