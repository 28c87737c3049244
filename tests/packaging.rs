//! The package: installed, used, upgraded and purged with dpkg on an overlay over this machine's own
//! root file system, so that the real package database decides and nothing of it stays.

use crate::{
    Module, Test, cmd,
    machine::machine,
    namespace,
    spawn::{Cmd, Output},
    world::{Skip, World},
};
use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

pub const MODULE: Module = Module {
    name: "packaging",
    prepare: |world| world.program("attestrun").map(|_| ()),
    tests: &[
        Test::Once(
            "deb_installs_runs_upgrades_and_purges",
            deb_installs_runs_upgrades_and_purges,
        ),
        Test::Once("engines_read_their_snippets", engines_read_their_snippets),
    ],
};

fn packaging(name: &str) -> PathBuf {
    Path::new(namespace::SOURCES).join("packaging").join(name)
}

/// This machine's root with a layer of its own above it.
struct Machine {
    base: PathBuf,
    root: PathBuf,
}

impl Machine {
    fn make(base: PathBuf) -> Result<Self> {
        fs::create_dir_all(&base)?;
        // A file system of its own: an upper directory may not lie inside its lower one.
        namespace::tmpfs(&base, "mode=0755")?;
        for dir in ["upper", "work", "root"] {
            fs::create_dir(base.join(dir))?;
        }
        let root = base.join("root");
        let options = format!(
            "lowerdir=/,upperdir={0}/upper,workdir={0}/work",
            base.display()
        );
        mount(
            Some("overlay"),
            &root,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("cannot lay an overlay over /")?;
        let machine = Self { base, root };
        mount(
            Some("proc"),
            &machine.root.join("proc"),
            Some("proc"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        namespace::bind(Path::new("/dev"), &machine.root.join("dev"))?;
        // No /run/systemd/system here: the package must not talk to this machine's service manager.
        namespace::tmpfs(machine.root.join("run"), "mode=0755")?;
        namespace::tmpfs(machine.root.join("tmp"), "mode=1777")?;
        Ok(machine)
    }
    fn run(&self, args: &[&str]) -> Cmd {
        cmd!("chroot", &self.root)
            .args(args)
            .limit(Duration::from_secs(120))
    }
    /// Files that were written since, but for what dpkg and passwd keep about themselves.
    fn written(&self) -> Result<Vec<String>> {
        const OWN: [&str; 8] = [
            "var/lib/dpkg/",
            "var/log/",
            "var/cache/",
            "etc/passwd",
            "etc/group",
            "etc/shadow",
            "etc/gshadow",
            "etc/sub",
        ];
        let mut found = Vec::new();
        walk(&self.base.join("upper"), Path::new(""), &mut found)?;
        found.retain(|p| !OWN.iter().any(|own| p.starts_with(own)) && p != "etc/.pwd.lock");
        Ok(found)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for place in ["root/tmp", "root/run", "root/dev", "root/proc", "root", ""] {
            let _ = umount2(&self.base.join(place), MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir(&self.base);
    }
}

/// Files and new directories; a whiteout (character device 0:0) is a deletion.
fn walk(top: &Path, below: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(top.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let meta = entry.metadata()?;
        if meta.file_type().is_char_device() && meta.rdev() == 0 {
            continue;
        }
        if meta.is_dir() {
            walk(top, &path, found)?;
            if !Path::new("/").join(&path).exists() {
                found.push(format!("{}/", path.display()));
            }
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(())
}

pub fn build(world: &World) -> Result<PathBuf> {
    if crate::spawn::which("dpkg").is_none() {
        return Err(Skip("this is no Debian system: there is no dpkg".to_owned()).into());
    }
    let binaries = world.program("attestrun")?;
    let binaries = binaries.parent().context("directory")?;
    let build = cmd!(packaging("build-deb"), "--binaries", binaries);
    let quick = (machine().slow > 1).then_some("--uncompressed");
    let built = build.args(quick).arg(world.work.join("deb")).ok()?;
    Ok(PathBuf::from(built.stdout.trim()))
}

fn deb_installs_runs_upgrades_and_purges(world: &World) -> Result<()> {
    let deb = build(world)?;
    let fields = cmd!("dpkg-deb", "--field", &deb).ok()?;
    for library in ["libc6", "libseccomp2", "libtss2-esys", "swtpm"] {
        fields.says(library).context("dependencies")?;
    }
    let machine = Machine::make(world.work.join("machine"))?;
    fs::copy(&deb, machine.root.join("tmp/attestrun.deb"))?;
    let dpkg = |args: &[&str]| -> Result<Output> { machine.run(&["dpkg"]).args(args).output() };
    let good = |output: Output| -> Result<Output> {
        ensure!(output.status.success(), "{output}");
        Ok(output)
    };
    good(dpkg(&["--install", "/tmp/attestrun.deb"])?)?;
    good(dpkg(&["--verify", "attestrun"])?)?;
    for program in ["attestrun", "attestrun-agent", "attestctl"] {
        machine
            .run(&[program, "--version"])
            .ok()?
            .says(env!("CARGO_PKG_VERSION"))?;
    }
    // As shipped: hardware root, and this machine's overlay has no TPM that it could use.
    let denied = machine.run(&["attestrun", "setup"]).fails()?;
    denied.says("/dev/tpmrm0")?.says_not("panicked")?;
    machine
        .run(&["getent", "passwd", "attestrun"])
        .ok()?
        .says("nologin")?;
    if crate::spawn::which("systemd-analyze").is_some() {
        let units = ["host", "agent", "layerwatch"].map(|of| format!("attestrun-{of}.service"));
        machine
            .run(&["systemd-analyze", "verify"])
            .args(units)
            .ok()?
            .says_not("attestrun-")?;
    }

    // A container more than the kernel lets root watch could not be made.
    let file = "/usr/lib/sysctl.d/60-attestrun.conf";
    let limits = machine.run(&["sysctl", "--dry-run", "--load", file]).ok()?;
    limits.says("fs.fanotify.max_user_groups = 4096")?;

    // An administrator's change survives an upgrade.
    let policy = machine.root.join("etc/attestrun/policy.toml");
    let changed = format!("{}# mine\n", fs::read_to_string(&policy)?);
    fs::write(&policy, &changed)?;
    good(dpkg(&["--install", "/tmp/attestrun.deb"])?)?;
    ensure!(
        fs::read_to_string(&policy)? == changed,
        "an upgrade overwrote the policy"
    );

    // Running containers hold the package.
    let run = machine.root.join("run/attestrun/containers/0123");
    fs::create_dir_all(&run)?;
    let held = dpkg(&["--remove", "attestrun"])?;
    ensure!(
        !held.status.success() && held.all().contains("still run"),
        "{held}"
    );
    ensure!(
        machine.root.join("usr/bin/attestrun").exists(),
        "the refused removal removed something"
    );
    fs::remove_dir(&run)?;

    good(dpkg(&["--remove", "attestrun"])?)?;
    ensure!(policy.exists(), "remove keeps what an administrator wrote");
    good(dpkg(&["--purge", "attestrun"])?)?;
    let left = machine.written()?;
    ensure!(left.is_empty(), "after purge: {left:?}");
    machine.run(&["getent", "passwd", "attestrun"]).fails()?;
    machine.run(&["getent", "group", "attestrun"]).fails()?;
    Ok(())
}

fn engines_read_their_snippets(world: &World) -> Result<()> {
    let engines = packaging("engines");
    let dump = cmd!(
        "containerd",
        "--config",
        engines.join("containerd.toml"),
        "config",
        "dump"
    )
    .ok()?;
    dump.says("/usr/bin/attestrun")?;
    serde_json::from_slice::<serde_json::Value>(&fs::read(engines.join("docker-daemon.json"))?)?;
    let place = Path::new("/etc/containers/containers.conf.d");
    let fresh = !place.exists();
    fs::create_dir_all(place)?;
    let installed = place.join("attestrun.conf");
    let ours = world.program("attestrun")?.display().to_string();
    // The program is not installed here: the snippet names the one under test instead.
    fs::write(
        &installed,
        fs::read_to_string(engines.join("containers.conf"))?.replace("/usr/bin/attestrun", &ours),
    )?;
    let info = world
        .podman()?
        .args(["--runtime", "attestrun", "info"])
        .output()?;
    fs::remove_file(&installed)?;
    if fresh {
        fs::remove_dir(place)?;
    }
    info.says(&ours)?;
    Ok(())
}
