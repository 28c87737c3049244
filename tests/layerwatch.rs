//! The watch of layers: no change is ever missed, whoever makes it and when; with it a start needs not
//! look at an image's files, without it one does.

mod attacks; // a store of its own, changed at random moments

use crate::{
    Module, Test,
    admission::{layer_with, ours, refusal, restoring},
    cmd,
    host::{POLICY, policy},
    image::Image,
    rootfs::check_of,
    runtime::{Bundle, Runtime},
    spawn::Running,
    world::{Rootfs, World},
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub const MODULE: Module = Module {
    name: "layerwatch",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once("each_attack_is_seen", attacks::each_is_seen),
        Test::Once("attacks_at_random_moments", attacks::at_random_moments),
        Test::Once("a_queue_that_runs_over", attacks::a_queue_that_runs_over),
        Test::Once("an_unmounted_store", attacks::an_unmounted_store),
        Test::Once("a_start_without_a_look", a_start_without_a_look),
    ],
};

const CONFIG: &str = "/etc/attestrun/config.toml";
const SOCKET: &str = "/run/attestrun-layerwatch/layers.sock";

/// A file system of its own in a file: what is watched is watched wholly.
pub struct Disk {
    image: PathBuf,
    pub place: PathBuf,
}

impl Disk {
    pub fn make(world: &World, name: &str, mebibytes: u64) -> Result<Self> {
        let image = world.work.join(name).with_extension("ext4");
        fs::File::create(&image)?.set_len(mebibytes << 20)?;
        cmd!("mkfs.ext4", "-q", "-F", "-i", "4096", &image).ok()?;
        let place = world.work.join(name);
        fs::create_dir_all(&place)?;
        let disk = Self { image, place };
        disk.mount()?;
        Ok(disk)
    }
    pub fn mount(&self) -> Result<()> {
        cmd!("mount", "-o", "loop", &self.image, &self.place)
            .ok()
            .map(drop)
    }
    pub fn unmount(&self) -> Result<()> {
        cmd!("umount", &self.place).ok().map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = cmd!("umount", "-l", &self.place).output();
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.place);
    }
}

/// A store of podman's on a disk of its own, which attestrun's configuration names, with `image` alone.
pub fn with_store(
    world: &World,
    image: &Image,
    mebibytes: u64,
    body: impl FnOnce(&Rootfs) -> Result<()>,
) -> Result<()> {
    with_images(world, &[image], mebibytes, |mounted| body(&mounted[0]))
}

/// The same with these images alone, each mounted.
pub fn with_images(
    world: &World,
    images: &[&Image],
    mebibytes: u64,
    body: impl FnOnce(&[Rootfs]) -> Result<()>,
) -> Result<()> {
    let disk = Disk::make(world, "watched", mebibytes)?;
    let root = disk.place.join("storage");
    let run = world.work.join("watched-run");
    let podman = |words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned());
        cmd!("podman", "--root", &root, "--runroot", &run).args(words)
    };
    restoring(CONFIG, || {
        let config = fs::read_to_string(CONFIG)?;
        let usual = "containers_storage = [\"/var/lib/containers/storage\"]";
        let both = format!(
            "containers_storage = [\"/var/lib/containers/storage\", \"{}\"]",
            root.display()
        );
        ensure!(config.contains(usual), "{config}");
        fs::write(CONFIG, config.replace(usual, &both))?;
        let mut mounted = Vec::new();
        for image in images {
            podman(&["load", "--quiet", "--input"])
                .arg(&image.archive)
                .ok()?;
            let created = podman(&["create", "--network=none", &image.name, "/bin/true"]).ok()?;
            let id = created.stdout.trim().to_owned();
            world.note(&id);
            let path = podman(&["mount", &id]).ok()?.stdout.trim().into();
            mounted.push(Rootfs { id, path });
        }
        let done = body(&mounted);
        for Rootfs { id, .. } in &mounted {
            podman(&["rm", "-f", "-t", "0", id]).ok()?;
        }
        let _ = cmd!("umount", root.join("overlay")).output();
        fs::remove_dir_all(&run)?;
        done
    })
}

/// With the capabilities that its unit leaves it.
pub fn start_watch(world: &World) -> Result<Running> {
    let unit =
        Path::new(crate::namespace::SOURCES).join("packaging/systemd/attestrun-layerwatch.service");
    let unit = fs::read_to_string(unit)?;
    let left = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("CapabilityBoundingSet")?;
    let left = left.to_lowercase().replace("cap_", "+").replace(' ', ",");
    let watch = cmd!("setpriv", "--no-new-privs", "--bounding-set")
        .args([format!("-all,{left}")])
        .arg(world.program("attestrun")?)
        .arg("layerwatch")
        .start()?;
    let since = Instant::now();
    while !Path::new(SOCKET).exists() {
        ensure!(
            since.elapsed() < Duration::from_secs(10),
            "layerwatch does not listen: {}",
            watch.written()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(watch)
}

/// Creates until the layers are watched, which they are after the first ones.
pub fn until_watched(watch: &Running, rt: &Runtime, bundle: &Bundle) -> Result<()> {
    let since = Instant::now();
    loop {
        let check = check_of(rt, bundle)?;
        if check == "watched" {
            return Ok(());
        }
        ensure!(
            since.elapsed() < Duration::from_secs(8),
            "still checked `{check}`: {}",
            watch.written()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// With a policy that lets the watch vouch.
pub fn with_watched(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let how = "min_tier = \"none\"\nrootfs = \"watched\"";
    restoring(POLICY, || {
        fs::write(
            POLICY,
            policy("enforce").replace("min_tier = \"none\"", how),
        )?;
        body()
    })
}

fn a_start_without_a_look(world: &World) -> Result<()> {
    let rt = ours(world)?;
    with_store(world, &world.images()?.demo, 96, |rootfs| {
        let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
        let done = with_watched(|| {
            std::thread::sleep(Duration::from_millis(100));
            let watch = start_watch(world)?;
            let first = check_of(&rt, &bundle)?;
            ensure!(first == "full", "the first create checked `{first}`");
            until_watched(&watch, &rt, &bundle)?;
            rt.run(&bundle)?
                .status
                .success()
                .then_some(())
                .context("it should run")?;
            a_change_is_refused(&watch, &rt, &bundle, rootfs)?;
            until_watched(&watch, &rt, &bundle)?;
            // nobody vouches any more
            watch.signal(Signal::SIGKILL)?;
            watch.stop(Duration::from_secs(5))?;
            let check = check_of(&rt, &bundle)?;
            ensure!(check == "boot", "without a watch: `{check}`");
            // a new one begins anew
            let again = start_watch(world)?;
            let check = check_of(&rt, &bundle)?;
            ensure!(check == "boot", "a watch that has just begun: `{check}`");
            until_watched(&again, &rt, &bundle)?;
            again.stop(Duration::from_secs(5))
        });
        fs::remove_dir_all("/run/attestrun-layerwatch")?;
        done?;
        let check = check_of(&rt, &bundle)?;
        ensure!(check == "full", "a rule that wants `full` got `{check}`");
        Ok(())
    })
}

/// At `create`, and between it and `start`; put back, it is read again.
fn a_change_is_refused(
    watch: &Running,
    rt: &Runtime,
    bundle: &Bundle,
    rootfs: &Rootfs,
) -> Result<()> {
    let file = layer_with(rootfs, "etc/layer2")?;
    let kept = fs::read(&file)?;
    let mut other = kept.clone();
    other[0] ^= 1;
    fs::write(&file, &other)?;
    let output = rt.run(bundle);
    fs::write(&file, &kept)?;
    refusal(&output?, "etc/layer2").context("changed while it was watched")?;
    std::thread::sleep(Duration::from_millis(100));
    until_watched(watch, rt, bundle)?;
    rt.create(bundle).ok()?;
    fs::write(&file, &other)?;
    let started = rt.on("start", bundle).output();
    fs::write(&file, &kept)?;
    std::thread::sleep(Duration::from_millis(100));
    rt.on("delete", bundle).arg("--force").ok()?;
    refusal(&started?, "etc/layer2").context("changed between create and start")
}
