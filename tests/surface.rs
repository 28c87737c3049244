//! The security surface: a process in a container sees and may do under attestrun what it sees and may
//! do under plain runc, as the container's first process and by `exec`, with the configurations that
//! engines pass. Each difference is in `listed`, with its reason; one that is not there is a failure,
//! and so is one that is there and no longer exists.

mod bundles;
mod listed;

use crate::{
    Module, Test,
    admission::restoring,
    cmd,
    host::{POLICY, TRUST, policy},
    image::{Image, Plan},
    namespace::tmpfs,
    publisher,
    runtime::Runtime,
    spawn::Running,
    world::{Rootfs, World},
};
use anyhow::{Context, Result, ensure};
use bundles::Case;
use std::{collections::BTreeSet, fs, path::Path};

pub const MODULE: Module = Module {
    name: "surface",
    prepare: |world| {
        equal_limits()?;
        let image = image(world)?;
        world.open_for_business()?.owner.publish(&image, 1)
    },
    tests: &[
        Test::Ours("as_docker_starts_it", |w, rt| compare(w, rt, "docker")),
        Test::Ours("as_podman_starts_it", |w, rt| compare(w, rt, "podman")),
        Test::Ours("as_containerd_starts_it", |w, rt| compare(w, rt, "ctr")),
        Test::Ours("as_cri_starts_it", |w, rt| compare(w, rt, "cri")),
        Test::Ours("as_buildah_starts_it", |w, rt| compare(w, rt, "buildah")),
        Test::Ours("privileged", |w, rt| compare(w, rt, "privileged")),
        Test::Ours("read_only", |w, rt| compare(w, rt, "readonly")),
        Test::Ours("in_a_user_namespace", |w, rt| compare(w, rt, "userns")),
        Test::Ours("in_other_respects", |w, rt| compare(w, rt, "other")),
    ],
};

const IMAGE: &str = "localhost/e2e/surface";

/// Which of a container's processes looks around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Init,
    Exec,
}

/// Without limits in the configuration a container has its caller's; Go's runtime raises the soft limit
/// of open files to the hard one, and runc hands that on.
fn equal_limits() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: hard,
        maximum: hard,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// The probe, compiled from `surface/probe.c`.
fn probe(world: &World) -> Result<Vec<u8>> {
    let (source, program) = (world.work.join("probe.c"), world.work.join("probe"));
    if !program.exists() {
        fs::write(&source, include_str!("surface/probe.c"))?;
        cmd!(
            "gcc", "-static", "-O1", "-Wall", "-Werror", "-o", &program, &source
        )
        .ok()?;
    }
    Ok(fs::read(&program)?)
}

/// The image whose programs are busybox and the probe, with the places where engines mount files.
fn image(world: &World) -> Result<Image> {
    let program = probe(world)?;
    let files: [(&str, u32, &[u8]); 5] = [
        ("bin/probe", 0o755, &program),
        ("etc/hosts", 0o644, b""),
        ("etc/hostname", 0o644, b""),
        ("etc/resolv.conf", 0o644, b""),
        ("run/.containerenv", 0o644, b""),
    ];
    let plan = Plan {
        name: &format!("{IMAGE}:v1"),
        text: "an image that looks around\n",
    };
    Image::with_files(&world.work.join("images"), &plan, &files)
}

/// Every case of the family `name`, under plain runc and under `rt`.
fn compare(world: &World, rt: &Runtime, name: &str) -> Result<()> {
    let image = image(world)?;
    let rule = publisher::rule("surface", IMAGE, Path::new(TRUST));
    let allow = publisher::strings(&bundles::relaxations());
    let rule = rule.replace(&publisher::relaxations(), &allow);
    restoring(POLICY, || {
        fs::write(POLICY, format!("{}{rule}", policy("enforce")))?;
        world.with_rootfs(&image, |rootfs| {
            let shared = world.work.join(bundles::SHARED);
            fs::create_dir_all(&shared)?;
            tmpfs(&shared, "mode=0755")?;
            cmd!("mount", "--make-shared", &shared).ok()?;
            let peers = Peers::start()?;
            let mut unlisted = Vec::new();
            for case in bundles::family(name) {
                match judge(world, rt, rootfs, &peers, case) {
                    Ok(lines) => unlisted.extend(lines),
                    Err(error) => unlisted.push(format!("{}: {error:#}", case.name)),
                }
            }
            peers.stop()?;
            cmd!("umount", &shared).ok()?;
            ensure!(
                unlisted.is_empty(),
                "unlike runc (- only there, + only here):\n      {}",
                unlisted.join("\n      ")
            );
            Ok(())
        })
    })
}

/// A process with namespaces of its own, for containers that join others'.
struct Peers(Running);

impl Peers {
    fn start() -> Result<Self> {
        cmd!("unshare", "--net", "--ipc", "--uts", "sleep", "1000")
            .start()
            .map(Self)
    }
    fn stop(self) -> Result<()> {
        self.0.stop(std::time::Duration::from_secs(5))
    }
}

fn judge(
    world: &World,
    rt: &Runtime,
    rootfs: &Rootfs,
    peers: &Peers,
    case: &Case,
) -> Result<Vec<String>> {
    let bundle = case.bundle(world, rootfs, peers.0.pid())?;
    let host = Host::look(world, peers)?;
    let mut unlisted = Vec::new();
    for entry in [Entry::Init, Entry::Exec] {
        let look = |rt: &Runtime| -> Result<BTreeSet<String>> {
            let text = match entry {
                Entry::Init => rt.run(&bundle)?,
                Entry::Exec => {
                    let mut waiting = bundle.again();
                    waiting.args(&["/bin/probe", "wait"])?;
                    rt.up(&waiting)?;
                    let file = waiting.dir.join("process.json");
                    fs::write(&file, case.process(&bundle)?.to_string())?;
                    let args = rt.cmd("exec").arg("--process").arg(&file);
                    let output = args.arg(&waiting.id).output();
                    rt.down(&waiting)?;
                    bundle.write()?;
                    output?
                }
            };
            ensure!(text.status.success(), "{}: {text}", rt.name);
            Ok(text.stdout.lines().map(|l| host.normalise(l)).collect())
        };
        let doing = || format!("{}, {entry:?}", case.name);
        let theirs = look(&Runtime::runc()).with_context(doing)?;
        let ours = look(rt).with_context(doing)?;
        ensure!(theirs.len() > 200, "the probe said little: {theirs:#?}");
        let lost = theirs.difference(&ours).map(|l| format!("-{l}"));
        let new = ours.difference(&theirs).map(|l| format!("+{l}"));
        let found: Vec<String> = lost.chain(new).collect();
        unlisted.extend(
            listed::check(rt, case.name, entry, &found)
                .into_iter()
                .map(|line| format!("{}, {entry:?}: {line}", case.name)),
        );
    }
    Ok(unlisted)
}

/// What the same probe sees outside, to tell the host's things from the container's.
struct Host {
    namespaces: Vec<(String, &'static str)>,
    keyring: String,
}

impl Host {
    fn look(world: &World, peers: &Peers) -> Result<Self> {
        let seen = cmd!(world.work.join("probe")).ok()?.stdout;
        let word = |line: &str, n: usize| line.split(' ').nth(n).unwrap_or_default().to_owned();
        let of = |key: &str| {
            let lines = seen.lines().filter(|l| l.starts_with(key));
            lines.map(|l| word(l, 2)).collect::<Vec<_>>()
        };
        let mut namespaces: Vec<_> = of("namespace ")
            .into_iter()
            .map(|n| (n, "the host's"))
            .collect();
        for name in ["net", "ipc", "uts"] {
            let link = fs::read_link(format!("/proc/{}/ns/{name}", peers.0.pid()))?;
            namespaces.push((link.display().to_string(), "the peer's"));
        }
        let keyring = of("keyring serial").concat();
        ensure!(namespaces.len() > 8 && !keyring.is_empty(), "{seen}");
        Ok(Self {
            namespaces,
            keyring,
        })
    }

    /// Numbers that differ from run to run become words.
    fn normalise(&self, line: &str) -> String {
        if let Some(serial) = line.strip_prefix("keyring serial ") {
            let whose = if serial == self.keyring {
                "the caller's"
            } else {
                "a new one"
            };
            return format!("keyring serial {whose}");
        }
        // 32 and 33 are the C library's own: runc hands on what its caller did with them
        if let Some(mask) = line.strip_prefix("status SigIgn:\t") {
            let mask = u64::from_str_radix(mask, 16).unwrap_or(u64::MAX) & !(3 << 31);
            return format!("status SigIgn:\t{mask:016x}");
        }
        if line.starts_with("namespace ") {
            let mut words: Vec<&str> = line.split(' ').collect();
            if let Some(inode) = words.get_mut(2) {
                let known = self.namespaces.iter().find(|(n, _)| n == inode);
                *inode = known.map_or("a new one", |(_, whose)| whose);
            }
            return words.join(" ");
        }
        line.to_owned()
    }
}
