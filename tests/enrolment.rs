//! A challenger enrols a host: its key is proved to be in the TPM that a manufacturer certified, or it is
//! pinned and nothing is claimed. The tests' own CA plays the manufacturer of the software root.

use crate::{
    Module, Test, cmd,
    host::TCTI,
    machine::machine,
    spawn::{Cmd, Output},
    world::{Skip, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::PathBuf};

pub const MODULE: Module = Module {
    name: "enrolment",
    prepare: |world| world.open_for_business().map(drop),
    tests: &[
        Test::Once("a_key_is_proved_or_pinned", a_key_is_proved_or_pinned),
        Test::Once(
            "another_tpms_certificate_proves_nothing",
            another_tpms_certificate,
        ),
    ],
};

/// NV index of the certificate of the ECC P-256 endorsement key.
const INDEX: &str = "0x1c0000a";

struct Maker<'w> {
    world: &'w World,
    dir: PathBuf,
}

impl<'w> Maker<'w> {
    /// A CA with that name; its certificate is alone in its directory.
    fn new(world: &'w World, name: &str) -> Result<Self> {
        let dir = world.work.join(format!("maker-{name}"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("trusted"))?;
        let this = Self { world, dir };
        let new = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        let subject = format!("/CN={name}");
        let files = [
            "-keyout",
            "ca.key",
            "-out",
            "trusted/ca.pem",
            "-days",
            "30",
            "-subj",
            &subject,
        ];
        Cmd::new("openssl")
            .cwd(&this.dir)
            .args(new)
            .args(files)
            .ok()?;
        Ok(this)
    }

    fn tool(&self, name: &str) -> Cmd {
        cmd!(name).cwd(&self.dir).arg(format!("--tcti={TCTI}"))
    }

    /// A certificate (DER) for the public key in `pem`, an endorsement key's.
    fn certify(&self, pem: &str) -> Result<()> {
        fs::write(
            self.dir.join("purpose"),
            "extendedKeyUsage = 2.23.133.8.1\n",
        )?;
        let request = [
            "req",
            "-new",
            "-key",
            "ca.key",
            "-subj",
            "/CN=a TPM",
            "-out",
            "any.csr",
        ];
        Cmd::new("openssl").cwd(&self.dir).args(request).ok()?;
        let sign = [
            "x509",
            "-req",
            "-in",
            "any.csr",
            "-force_pubkey",
            pem,
            "-CA",
            "trusted/ca.pem",
        ];
        let rest = [
            "-CAkey", "ca.key", "-days", "30", "-extfile", "purpose", "-outform", "DER", "-out",
            "ek.der",
        ];
        Cmd::new("openssl")
            .cwd(&self.dir)
            .args(sign)
            .args(rest)
            .ok()?;
        Ok(())
    }

    /// As makers do: the certificate of the TPM's endorsement key is in its NV memory.
    fn deliver(&self) -> Result<()> {
        let size = fs::metadata(self.dir.join("ek.der"))?.len().to_string();
        let attributes = "ownerread|ownerwrite|authread|no_da";
        let define = self
            .tool("tpm2_nvdefine")
            .args([INDEX, "-C", "o", "-s", &size]);
        define.args(["-a", attributes]).ok()?;
        self.tool("tpm2_nvwrite")
            .args([INDEX, "-C", "o", "-i", "ek.der"])
            .ok()?;
        Ok(())
    }

    fn take_back(&self) -> Result<()> {
        self.tool("tpm2_nvundefine")
            .args([INDEX, "-C", "o"])
            .ok()
            .map(drop)
    }

    /// The host's endorsement key as PEM.
    fn endorsement_key(&self) -> Result<()> {
        let create = self
            .tool("tpm2_createek")
            .args(["-G", "ecc", "-c", "ek.ctx"]);
        create.args(["-u", "ek.pem", "-f", "pem"]).ok()?;
        self.tool("tpm2_flushcontext").arg("-t").ok()?;
        Ok(())
    }

    fn enroll(&self) -> Result<Output> {
        let inventory = self.dir.join("inventory.toml");
        let _ = fs::remove_file(&inventory);
        let enroll = self
            .world
            .ctl()?
            .args(["--json", "enroll", "--name", "e2e", "--inventory"]);
        enroll
            .arg(inventory)
            .arg("--manufacturers")
            .arg(self.dir.join("trusted"))
            .output()
    }

    fn refused(&self, words: &str) -> Result<()> {
        let output = self.enroll()?;
        ensure!(output.code() == 1, "{output}");
        ensure!(output.all().contains(words), "{words}: {output}");
        ensure!(
            !self.dir.join("inventory.toml").exists(),
            "it is in the inventory"
        );
        Ok(())
    }
}

/// The host service is the only user of the host's TPM but for what a maker does at the factory: here
/// that happens while it does not run.
fn at_the_factory(world: &World, work: impl FnOnce() -> Result<()>) -> Result<()> {
    if machine().tpm {
        return Err(Skip("the emulated machine's TPM is made by its emulator".into()).into());
    }
    world.stop("attestrun-agent")?;
    world.stop("attestrun-host")?;
    let done = work();
    world.start_services()?;
    done
}

fn a_key_is_proved_or_pinned(world: &World) -> Result<()> {
    let maker = Maker::new(world, "maker")?;
    maker.refused("keeps no certificate")?;
    at_the_factory(world, || {
        maker.endorsement_key()?;
        maker.certify("ek.pem")?;
        maker.deliver()
    })?;
    let output = maker.enroll()?;
    ensure!(output.code() == 0, "{output}");
    let said: Value = serde_json::from_str(&output.stdout)?;
    ensure!(
        said["trust"] == "proved" && said["root"] == "software",
        "{said}"
    );
    let text = fs::read_to_string(maker.dir.join("inventory.toml"))?;
    ensure!(
        text.contains("CN=maker") && text.contains("[[hosts]]"),
        "{text}"
    );
    let facts = &world.open_for_business()?.facts;
    let name = facts["host_ak_name"].as_str().context("host_ak_name")?;
    ensure!(text.contains(name), "another key: {text}");
    // who trusts another maker learns nothing of this one
    let stranger = Maker::new(world, "stranger")?;
    stranger.refused("no trusted CA of manufacturers vouches")?;
    at_the_factory(world, || maker.take_back())
}

/// A host that shows the certificate of somebody else's endorsement key.
fn another_tpms_certificate(world: &World) -> Result<()> {
    let maker = Maker::new(world, "maker")?;
    let other = [
        "ecparam",
        "-name",
        "prime256v1",
        "-genkey",
        "-noout",
        "-out",
        "other.key",
    ];
    Cmd::new("openssl").cwd(&maker.dir).args(other).ok()?;
    let public = ["ec", "-in", "other.key", "-pubout", "-out", "other.pem"];
    Cmd::new("openssl").cwd(&maker.dir).args(public).ok()?;
    maker.certify("other.pem")?;
    at_the_factory(world, || maker.deliver())?;
    maker.refused("it is another key's")?;
    at_the_factory(world, || maker.take_back())
}
