//! A runtime under test, plain runc or attestrun with one of its backends, and bundles for it.

use crate::{
    cmd,
    machine::{machine, patient},
    spawn::{Cmd, Output},
    world::Rootfs,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// State directories of the runtimes under test, by name.
pub const ROOTS: &str = "/run/rt";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Libcontainer,
    Runc,
}

/// What the drop-in tests run on.
#[derive(Clone)]
pub struct Runtime {
    pub name: &'static str,
    pub path: PathBuf,
    /// `None`: the installed runc itself, which says what is right.
    pub backend: Option<Backend>,
}

impl Runtime {
    pub fn runc() -> Self {
        Self {
            name: "runc",
            path: "/usr/sbin/runc".into(),
            backend: None,
        }
    }
    pub fn attestrun(path: &Path, backend: Backend) -> Self {
        let name = match backend {
            Backend::Libcontainer => "attestrun",
            Backend::Runc => "attestrun+runc",
        };
        Self {
            name,
            path: path.to_owned(),
            backend: Some(backend),
        }
    }

    /// `<runtime> --root … <verb>`
    pub fn cmd(&self, verb: &str) -> Cmd {
        let systemd = machine().systemd.then_some("--systemd-cgroup");
        Cmd::new(&self.path)
            .arg("--root")
            .arg(Path::new(ROOTS).join(self.name))
            .args(systemd)
            .arg(verb)
    }

    pub fn create(&self, bundle: &Bundle) -> Cmd {
        self.cmd("create")
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg(&bundle.id)
    }
    /// `verb` on the bundle's container, nothing more.
    pub fn on(&self, verb: &str, bundle: &Bundle) -> Cmd {
        self.cmd(verb).arg(&bundle.id)
    }
    pub fn state(&self, bundle: &Bundle) -> Result<Value> {
        let output = self.on("state", bundle).ok()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("state is not JSON: {output}"))
    }
    pub fn status(&self, bundle: &Bundle) -> Result<String> {
        Ok(self.state(bundle)?["status"]
            .as_str()
            .unwrap_or("none")
            .to_owned())
    }
    pub fn wait_for(&self, bundle: &Bundle, status: &str) -> Result<()> {
        let since = Instant::now();
        loop {
            let is = self.status(bundle)?;
            if is == status {
                return Ok(());
            }
            ensure!(
                since.elapsed() < patient(Duration::from_secs(20)),
                "{} is {is}, not {status}",
                bundle.id
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    /// create and start.
    pub fn up(&self, bundle: &Bundle) -> Result<()> {
        self.create(bundle).ok()?;
        self.on("start", bundle).ok()?;
        Ok(())
    }
    /// Ends and deletes the container; both must work.
    pub fn down(&self, bundle: &Bundle) -> Result<()> {
        if self.status(bundle)? != "stopped" {
            self.on("kill", bundle).arg("KILL").ok()?;
            self.wait_for(bundle, "stopped")?;
        }
        self.on("delete", bundle).ok()?;
        Ok(())
    }
    pub fn run(&self, bundle: &Bundle) -> Result<Output> {
        self.cmd("run")
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg(&bundle.id)
            .output()
    }
    /// The last error line of a `--log` file in JSON: its message.
    pub fn logged(log: &Path) -> Result<String> {
        let text = fs::read_to_string(log).with_context(|| log.display().to_string())?;
        let mut last = None;
        for line in text.lines() {
            let line: Value =
                serde_json::from_str(line).with_context(|| format!("not a JSON line: {line}"))?;
            ensure!(
                line["time"].is_string() && line["msg"].is_string(),
                "a log line without time or msg: {line}"
            );
            if line["level"] == "error" {
                last = line["msg"].as_str().map(str::to_owned);
            }
        }
        last.with_context(|| format!("no error line in {text:?}"))
    }
}

/// A bundle directory; `config` is written by `write`.
pub struct Bundle {
    pub id: String,
    pub dir: PathBuf,
    pub config: Value,
}

impl Bundle {
    /// What `runc spec` writes, without a terminal, on `rootfs`, running `args`.
    pub fn make(work: &Path, rootfs: &Rootfs, args: &[&str]) -> Result<Self> {
        let dir = work.join("bundles").join(&rootfs.id[..12]);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        cmd!("runc", "spec", "--bundle", &dir).ok()?;
        let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json"))?)?;
        config["root"]["path"] = json!(rootfs.path);
        config["process"]["terminal"] = json!(false);
        config["process"]["env"] = json!(["PATH=/usr/local/bin:/bin", "DEMO=1"]);
        let mut bundle = Self {
            id: rootfs.id.clone(),
            dir,
            config,
        };
        bundle.args(args)?;
        Ok(bundle)
    }
    /// The same container, to be changed.
    pub fn again(&self) -> Self {
        Self {
            id: self.id.clone(),
            dir: self.dir.clone(),
            config: self.config.clone(),
        }
    }
    pub fn args(&mut self, args: &[&str]) -> Result<()> {
        self.config["process"]["args"] = json!(args);
        self.write()
    }
    /// Sets one value by JSON pointer (RFC 6901); the parent must be there.
    pub fn set(&mut self, pointer: &str, value: Value) -> Result<()> {
        let (parent, key) = pointer.rsplit_once('/').context("pointer")?;
        let parent = self
            .config
            .pointer_mut(parent)
            .with_context(|| format!("no {parent} in config.json"))?;
        parent[key] = value;
        self.write()
    }
    pub fn write(&self) -> Result<()> {
        Ok(fs::write(
            self.dir.join("config.json"),
            serde_json::to_vec(&self.config)?,
        )?)
    }
}
