//! The machine that the tests run on: the product's binaries, a software root, host service and agent,
//! engines, images. Everything is started when a test first needs it and ends with the namespace.

use crate::{
    cmd,
    host::Host,
    image::{Image, Plan},
    leftover::{self, Snapshot},
    machine::{machine, patient},
    namespace,
    runtime::{Backend, Runtime},
    spawn::{Cmd, Running},
};
use anyhow::{Context, Result, ensure};
use std::{
    cell::{OnceCell, RefCell},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A test cannot be made here; the reason must be in `tests/expected-skips`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

pub struct World {
    pub work: PathBuf,
    /// Where the three binaries lie.
    bin: PathBuf,
    /// Containers that tests named, for the leftover checker and for cleaning up after a failure.
    ids: RefCell<Vec<String>>,
    pub images: OnceCell<Images>,
    daemons: RefCell<Vec<(&'static str, Running)>>,
    podman_ready: OnceCell<()>,
    pub host: OnceCell<Host>,
    rootfs: RefCell<Vec<Rootfs>>,
}

/// The images of the tests.
pub struct Images {
    /// Signed and listed.
    pub demo: Image,
    /// Neither: the same programs, other text.
    pub unsigned: Image,
    /// Holds pods together.
    pub pause: Image,
}

/// A mounted root file system of the demo image, and the id under which podman knows it.
#[derive(Clone)]
pub struct Rootfs {
    pub id: String,
    pub path: PathBuf,
}

impl World {
    /// Inside the namespaces: lays the file systems, copies the binaries.
    pub fn make(work: &Path, binaries: &Path) -> Result<Self> {
        // Read before anything is mounted over their place.
        let mut programs = Vec::new();
        for name in [
            "attestrun",
            "attestrun-host",
            "attestrun-agent",
            "attestctl",
        ] {
            let place = binaries.join(name);
            let bytes = fs::read(&place).with_context(|| {
                format!("{} is not built: cargo build --release", place.display())
            })?;
            programs.push((name, bytes));
        }
        namespace::furnish(work)?;
        let work = PathBuf::from(namespace::WORK);
        let bin = work.join("bin");
        fs::create_dir_all(&bin)?;
        for (name, bytes) in programs {
            let place = bin.join(name);
            fs::write(&place, bytes)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self {
            work,
            bin,
            ids: RefCell::default(),
            images: OnceCell::new(),
            daemons: RefCell::default(),
            podman_ready: OnceCell::new(),
            host: OnceCell::new(),
            rootfs: RefCell::default(),
        })
    }

    /// A program of ours.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let program = self.bin.join(name);
        ensure!(program.exists(), "there is no program {name} of ours");
        Ok(program)
    }

    pub fn ctl(&self) -> Result<Cmd> {
        Ok(Cmd::new(self.program("attestctl")?))
    }

    // --- what a test leaves ---

    /// A container of this name or id is made now.
    pub fn note(&self, id: impl Into<String>) {
        self.ids.borrow_mut().push(id.into());
    }

    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&self.ids.borrow(), &self.daemon_pids())
    }

    pub fn left_since(&self, before: &Snapshot) -> Result<Vec<String>> {
        leftover::settle(before, &self.ids.borrow(), &self.daemon_pids())
    }

    /// After a failed test: what it noted is deleted, so that the next one starts clean.
    pub fn sweep(&self) {
        let ids = std::mem::take(&mut *self.ids.borrow_mut());
        for runtime in self.runtimes() {
            for id in &ids {
                let _ = runtime.cmd("delete").arg("--force").arg(id).output();
            }
        }
        if self.podman_ready.get().is_some() {
            let keep: Vec<_> = self.rootfs.borrow().iter().map(|r| r.id.clone()).collect();
            let Ok(all) = podman().args(["ps", "-aq", "--no-trunc"]).output() else {
                return;
            };
            for id in all
                .stdout
                .lines()
                .filter(|id| !keep.iter().any(|k| k == id))
            {
                let _ = podman().args(["rm", "-f", "-t", "0", id]).output();
            }
        }
    }

    /// The runtimes that the drop-in tests run on.
    pub fn runtimes(&self) -> Vec<Runtime> {
        let mut all = vec![Runtime::runc()];
        if let Ok(path) = self.program("attestrun") {
            all.push(Runtime::attestrun(&path, Backend::Libcontainer));
            all.push(Runtime::attestrun(&path, Backend::Runc));
        }
        all
    }

    /// Before a test on `runtime`: the configuration names its backend.
    pub fn select(&self, runtime: Option<&Runtime>) -> Result<()> {
        match runtime.and_then(|r| r.backend) {
            Some(backend) => {
                self.open_for_business()?;
                self.configure(backend)
            }
            None => Ok(()),
        }
    }

    // --- images ---

    pub fn images(&self) -> Result<&Images> {
        if self.images.get().is_none() {
            let dir = self.work.join("images");
            let make = |name, text| Image::make(&dir, &Plan { name, text });
            let made = Images {
                demo: make("localhost/e2e/demo:v1", "layer two\n")?,
                unsigned: make("localhost/e2e/unsigned:v1", "somebody else's layer two\n")?,
                pause: Image::pause(&dir, "localhost/e2e/pause:v1")?,
            };
            let _ = self.images.set(made);
        }
        self.images.get().context("images")
    }

    // --- engines ---

    /// podman, its storage filled.
    pub fn podman(&self) -> Result<Cmd> {
        if self.podman_ready.get().is_none() {
            let images = self.images()?;
            for image in [&images.demo, &images.unsigned, &images.pause] {
                podman()
                    .args(["load", "--quiet", "--input"])
                    .arg(&image.archive)
                    .ok()?;
            }
            let _ = self.podman_ready.set(());
        }
        Ok(podman())
    }

    /// `podman run` with what this kind of machine needs.
    pub fn podman_run(&self, runtime: &Runtime, verb: &str) -> Result<Cmd> {
        Ok(self
            .podman()?
            .arg("--runtime")
            .arg(&runtime.path)
            .arg(verb)
            // Without CAP_SYS_RESOURCE podman's own limits cannot be set.
            .args([
                "--network=none",
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1024:1024",
            ]))
    }

    /// The `n`th mounted root file system of the demo image; all tests of a run share them.
    pub fn rootfs(&self, n: usize) -> Result<Rootfs> {
        while self.rootfs.borrow().len() <= n {
            let image = &self.images()?.demo;
            let made = self
                .podman()?
                .args(["create", "--network=none", &image.name, "/bin/true"])
                .ok()?;
            let id = made.stdout.trim().to_owned();
            let path = podman().args(["mount", &id]).ok()?.stdout.trim().into();
            self.rootfs.borrow_mut().push(Rootfs { id, path });
        }
        let found = self.rootfs.borrow()[n].clone();
        Ok(found)
    }

    /// How many containers podman keeps for the tests.
    pub fn mounted(&self) -> usize {
        self.rootfs.borrow().len()
    }

    /// A mounted root file system of its own for `body`, gone afterwards.
    pub fn with_rootfs(
        &self,
        image: &Image,
        body: impl FnOnce(&Rootfs) -> Result<()>,
    ) -> Result<()> {
        self.podman()?
            .args(["load", "--quiet", "--input"])
            .arg(&image.archive)
            .ok()?;
        let id = podman()
            .args(["create", "--network=none", &image.name, "/bin/true"])
            .ok()?
            .stdout
            .trim()
            .to_owned();
        self.note(&id);
        let path = podman().args(["mount", &id]).ok()?.stdout.trim().into();
        let done = body(&Rootfs {
            id: id.clone(),
            path,
        });
        podman().args(["rm", "-f", "-t", "0", &id]).ok()?;
        done
    }

    /// containerd's client, the daemon running and the images imported.
    pub fn ctr(&self) -> Result<Cmd> {
        if !self.has_daemon("containerd") {
            self.start_containerd()?;
            let images = self.images()?;
            for image in [&images.demo, &images.unsigned, &images.pause] {
                cmd!("ctr", "image", "import", &image.archive).ok()?;
                cmd!(
                    "ctr",
                    "--namespace=k8s.io",
                    "image",
                    "import",
                    &image.archive
                )
                .ok()?;
            }
        }
        Ok(Cmd::new("ctr"))
    }

    /// Also after its end, which its shims do not notice.
    pub fn start_containerd(&self) -> Result<()> {
        let config = self.work.join("containerd.toml");
        let mut text = CONTAINERD.to_owned();
        for runtime in self.runtimes() {
            let (name, path) = (runtime.name, runtime.path.display());
            text += &format!(
                "[{CRI}.containerd.runtimes.\"e2e-{name}\"]\nruntime_type = \"io.containerd.runc.v2\"\n\
                 [{CRI}.containerd.runtimes.\"e2e-{name}\".options]\nBinaryName = \"{path}\"\nSystemdCgroup = {}\n",
                machine().systemd
            );
        }
        fs::write(&config, text)?;
        self.start(
            "containerd",
            cmd!("containerd", "--config", &config),
            || Ok(cmd!("ctr", "version").output()?.status.success()),
        )
    }

    /// docker's client, the daemon running and the images loaded.
    pub fn docker(&self) -> Result<Cmd> {
        if !self.has_daemon("dockerd") {
            self.ctr()?; // dockerd uses the containerd that is there
            self.start_dockerd()?;
            let images = self.images()?;
            for image in [&images.demo, &images.unsigned] {
                cmd!("docker", "load", "--input", &image.archive).ok()?;
            }
        }
        Ok(Cmd::new("docker"))
    }

    /// Also after its end, which its containers outlive.
    pub fn start_dockerd(&self) -> Result<()> {
        let dockerd = self.dockerd("/var/run")?.arg("--live-restore");
        self.start("dockerd", dockerd, || {
            Ok(cmd!("docker", "version").output()?.status.success())
        })
    }

    /// A dockerd that knows the runtimes and keeps its own files at `run`.
    pub fn dockerd(&self, run: &str) -> Result<Cmd> {
        let mut dockerd = Cmd::new("dockerd")
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--storage-driver=overlay2",
            ])
            .arg(format!("--pidfile={run}/docker.pid"))
            .arg(format!("--exec-root={run}/docker"))
            .arg("--exec-opt")
            .arg(format!("native.cgroupdriver={}", cgroup_driver()))
            .args(["--containerd", "/run/containerd/containerd.sock"]);
        for runtime in self.runtimes() {
            dockerd = dockerd.arg(format!(
                "--add-runtime=e2e-{}={}",
                runtime.name,
                runtime.path.display()
            ));
        }
        Ok(dockerd)
    }

    // --- daemons ---

    fn daemon_pids(&self) -> Vec<i32> {
        self.daemons
            .borrow()
            .iter()
            .map(|(_, daemon)| daemon.pid())
            .collect()
    }

    pub fn has_daemon(&self, name: &str) -> bool {
        self.daemons.borrow().iter().any(|(n, _)| *n == name)
    }

    /// Starts a daemon and waits until `ready` says so.
    pub fn start(
        &self,
        name: &'static str,
        command: Cmd,
        ready: impl Fn() -> Result<bool>,
    ) -> Result<()> {
        let mut daemon = command.start()?;
        let since = Instant::now();
        while !ready()? {
            ensure!(
                daemon.is_running()?,
                "{name} ended at once: {}",
                daemon.written()
            );
            ensure!(
                since.elapsed() < patient(Duration::from_secs(60)),
                "{name} is not ready: {}",
                daemon.written()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self.daemons.borrow_mut().push((name, daemon));
        Ok(())
    }

    /// Ends a daemon as an administrator would.
    pub fn stop(&self, name: &str) -> Result<()> {
        let found = self.daemons.borrow().iter().position(|(n, _)| *n == name);
        match found {
            Some(at) => {
                let (_, daemon) = self.daemons.borrow_mut().remove(at);
                daemon.stop(Duration::from_secs(15))
            }
            None => Ok(()),
        }
    }

    /// Ends a daemon as a crash would.
    pub fn crash(&self, name: &str) -> Result<()> {
        let at = self.daemons.borrow().iter().position(|(n, _)| *n == name);
        let (_, daemon) = self
            .daemons
            .borrow_mut()
            .remove(at.with_context(|| format!("{name} does not run"))?);
        drop(daemon);
        Ok(())
    }

    /// Ends everything, the newest first: engines before what they use.
    pub fn close(&self) -> Result<()> {
        for rootfs in self.rootfs.borrow_mut().drain(..) {
            podman().args(["rm", "-f", "-t", "0", &rootfs.id]).ok()?;
        }
        loop {
            let last = self.daemons.borrow_mut().pop();
            match last {
                Some((_, daemon)) => daemon.stop(Duration::from_secs(15))?,
                None => return Ok(()),
            }
        }
    }

    /// What the daemons wrote: printed beside a failure.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for (name, daemon) in self.daemons.borrow_mut().iter_mut() {
            let ended = daemon
                .ended()
                .map(|how| format!(", which has ended ({how})"))
                .unwrap_or_default();
            let written = daemon.written();
            let lines: Vec<_> = written
                .lines()
                .map(|l| l.chars().take(300).collect::<String>())
                .collect();
            // containerd and dockerd chat about each container.
            let last = if name.ends_with('d') { 2 } else { 8 };
            let tail = lines[lines.len().saturating_sub(last)..].join("\n      ");
            if !tail.is_empty() || !ended.is_empty() {
                all += &format!("    last of {name}{ended}:\n      {tail}\n");
            }
        }
        all
    }
}

/// podman without network, systemd or journal.
fn podman() -> Cmd {
    cmd!("podman", format!("--cgroup-manager={}", cgroup_driver()))
        .args(["--events-backend=file", "--storage-driver=overlay"])
}

/// Who makes the containers' cgroups, in the engines' words.
fn cgroup_driver() -> &'static str {
    if machine().systemd {
        "systemd"
    } else {
        "cgroupfs"
    }
}

const CRI: &str = r#"plugins."io.containerd.grpc.v1.cri""#;
const CONTAINERD: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/e2e/pause:v1"
  restrict_oom_score_adj = true # without CAP_SYS_RESOURCE
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "e2e-runc"
"#;
