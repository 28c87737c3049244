//! The attested host of the tests: configuration, policy, a software root (an swtpm on loopback, in a
//! network namespace of its own), host service and agent; and the challenger who relies on it.

use crate::{
    cmd,
    machine::machine,
    publisher::{self, LIST, Publisher, TENANT, fact, rule, strings},
    runtime::Backend,
    spawn::{Cmd, Output},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

pub const CONFIG: &str = "/etc/attestrun/config.toml";
pub const POLICY: &str = "/etc/attestrun/policy.toml";
pub const TRUST: &str = "/etc/attestrun/trust/e2e";
const CONTROL: &str = "/run/attestrun-host/control.sock";
const CHALLENGE: &str = "/run/attestrun-agent/challenge.sock";
const DEVICE: &str = "device:/dev/tpmrm0";
pub const TCTI: &str = "swtpm:host=127.0.0.1,port=2321";

/// Made once: the owner whose images may run here, and what `attestrun setup` said.
pub struct Host {
    pub owner: Publisher,
    pub facts: Value,
}

impl World {
    /// The host is enrolled, trusts the owner, has the demo image's signature and list, and runs its
    /// services.
    pub fn open_for_business(&self) -> Result<&Host> {
        if self.host.get().is_none() {
            self.configure(Backend::Libcontainer)?;
            add_line("/etc/group", "attestrun:x:64999:")?;
            add_line(
                "/etc/passwd",
                "attestrun:x:64999:64999::/nonexistent:/usr/sbin/nologin",
            )?;
            for dir in ["/run/attestrun-agent", "/run/attestrun-host"] {
                fs::create_dir_all(dir)?;
            }
            std::os::unix::fs::chown("/run/attestrun-agent", Some(64999), Some(64999))?;
            let owner = Publisher::make(&self.program("attestctl")?, self.work.join("owner"))?;
            fs::create_dir_all(Path::new(TRUST).join("ca"))?;
            fs::copy(owner.at("image.pub"), Path::new(TRUST).join("image.pub"))?;
            fs::copy(owner.at("ca/ca.pem"), Path::new(TRUST).join("ca/ca.pem"))?;
            fs::write(POLICY, policy("enforce"))?;
            owner.publish(&self.images()?.demo, 1)?;
            self.start_software_root()?;
            let setup = Cmd::new(self.program("attestrun")?).arg("setup").ok()?;
            ensure!(
                setup.stderr.contains("software root"),
                "a software root is named: {setup}"
            );
            let facts = serde_json::from_str(&setup.stdout).with_context(|| format!("{setup}"))?;
            let again = Cmd::new(self.program("attestrun")?).arg("setup").ok()?;
            let mut first: Value = serde_json::from_str(&setup.stdout)?;
            first["fresh"] = Value::Bool(false);
            ensure!(
                serde_json::from_str::<Value>(&again.stdout)? == first,
                "setup twice: {again}"
            );
            self.start_services()?;
            let _ = self.host.set(Host { owner, facts });
        }
        self.host.get().context("host")
    }

    pub fn start_software_root(&self) -> Result<()> {
        if machine().tpm {
            return Ok(());
        }
        let state = self.work.join("host-tpm");
        fs::create_dir_all(&state)?;
        let swtpm = cmd!(
            "swtpm",
            "socket",
            "--tpm2",
            "--flags",
            "not-need-init,startup-clear"
        )
        .args([
            "--server",
            "type=tcp,port=2321,disconnect",
            "--ctrl",
            "type=tcp,port=2322",
        ])
        .arg("--tpmstate")
        .arg(format!("dir={}", state.display()));
        self.start("swtpm", swtpm, || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", 2322)).is_ok())
        })
    }

    pub fn start_services(&self) -> Result<()> {
        let host = Cmd::new(self.program("attestrun")?).arg("host");
        self.start("attestrun-host", host, || {
            Ok(UnixStream::connect(CONTROL).is_ok())
        })?;
        let agent = cmd!(
            "setpriv",
            "--reuid=64999",
            "--regid=64999",
            "--clear-groups",
            "--no-new-privs"
        )
        .arg("--bounding-set=-all")
        .arg(self.program("attestrun-agent")?);
        self.start("attestrun-agent", agent, || {
            Ok(UnixStream::connect(CHALLENGE).is_ok())
        })
    }

    /// Writes the packaged configuration with a software root and this backend.
    pub fn configure(&self, backend: Backend) -> Result<()> {
        self.configure_by_name(match backend {
            Backend::Libcontainer => "libcontainer",
            Backend::Runc => "runc",
        })
    }

    pub fn configure_by_name(&self, name: &str) -> Result<()> {
        let packaged = Path::new(crate::namespace::SOURCES).join("packaging/config.toml");
        let mut text = fs::read_to_string(&packaged)?;
        // The emulated machine's TPM is an swtpm too, and attestrun knows it as one.
        let tcti = if machine().tpm { DEVICE } else { TCTI };
        for (from, to) in [
            ("backend = \"auto\"", format!("backend = \"{name}\"")),
            (
                "tcti = \"device:/dev/tpmrm0\"",
                format!("tcti = \"{tcti}\""),
            ),
            ("root = \"hardware\"", "root = \"software\"".to_owned()),
            (
                "/usr/libexec/attestrun/attestrun-host",
                self.program("attestrun-host")?.display().to_string(),
            ),
        ] {
            ensure!(
                text.contains(from),
                "the packaged configuration has no `{from}`"
            );
            text = text.replacen(from, &to, 1);
        }
        fs::create_dir_all("/etc/attestrun")?;
        Ok(fs::write(CONFIG, text)?)
    }

    /// What a challenger of the demo image expects; waivers as given, and what the kernel may lack for the
    /// list's signature.
    pub fn expectations(&self, waive: &[&str]) -> Result<PathBuf> {
        let host = self.open_for_business()?;
        let demo = &self.images()?.demo;
        let mut waive = waive.to_vec();
        waive.push("kernel-keys");
        let manifest = self
            .ctl()?
            .args(["image", "manifest", "--digest"])
            .arg(&demo.layout)
            .ok()?;
        let policy = crate::image::digest(&fs::read(POLICY)?);
        let pin = self
            .ctl()?
            .args(["--json", "enroll", "--name", "e2e", "--inventory"]);
        let pin: Value =
            serde_json::from_str(&pin.arg(self.work.join("inventory.toml")).ok()?.stdout)?;
        let text = format!(
            "images = [\"{}\"]\nuser_ca = [\"{TRUST}/ca/ca.pem\"]\nrevocation = \"unchecked\"\ntenant = \"{TENANT}\"\n\
             policies = [\"{policy}\"]\nruntimes = [\"{}\"]\nswtpms = [\"{}\"]\nrootfs = [\"{}\"]\nenter = \"listed\"\n\
             waive = {}\nmax_age_secs = 60\nfirmware = {{ host = \"any\", vtpm = \"any\" }}\n\n[list]\nname = \"{LIST}\"\nmin_serial = 1\n\n[launch]\nargs = \"any\"\n\
             env = \"any\"\nallow = {}\n\n[[hosts]]\nname = \"e2e\"\nak_name = \"{}\"\nroot = \"software\"\n\
             binding_pcr_start = \"{}\"\n",
            demo.manifest,
            fact(&host.facts, "runtime")?,
            fact(&host.facts, "swtpm")?,
            manifest.stdout.trim(),
            strings(&waive),
            publisher::relaxations(),
            fact(&host.facts, "host_ak_name")?,
            publisher::fact(&pin, "binding_pcr_start")?,
        );
        let path = self.work.join("expectations.toml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Asks about a container and keeps the evidence.
    pub fn challenge(&self, id: &str, expectations: &Path) -> Result<Output> {
        self.ctl()?
            .args(["--json", "challenge", "--policy"])
            .arg(expectations)
            .arg("--save")
            .arg(self.work.join("evidence.json"))
            .arg(id)
            .output()
    }
}

/// A policy that admits the owner's demo image.
pub fn policy(mode: &str) -> String {
    let demo = rule("demo", "localhost/e2e/demo", Path::new(TRUST));
    format!("version = 1\nmode = \"{mode}\"\n\n{demo}")
}

/// In the private /etc: this machine may have a user of that name already, with another number.
pub fn add_line(file: &str, line: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let name = line.split(':').next();
    let others: String = text
        .lines()
        .filter(|l| l.split(':').next() != name)
        .map(|l| format!("{l}\n"))
        .collect();
    Ok(fs::write(file, format!("{others}{line}\n"))?)
}
