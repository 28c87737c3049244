//! The container's owner: keys, CA, certificate, image signatures and lists, made with attestctl; and
//! for what attestctl rightly does not make (expired, foreign), with openssl.

use crate::{cmd, image, image::Image, spawn::Cmd};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const TENANT: &str = "spiffe://e2e.example/tenant/demo";
pub const LIST: &str = "e2e";
/// Where a host looks for signatures and lists.
pub const STORE: &str = "/var/lib/attestrun/signatures";
/// Which serials a host has seen.
pub const SERIALS: &str = "/var/lib/attestrun/host/serials.json";

/// Extensions of a certificate that signs lists, as openssl writes them.
pub const LEAF: &str = "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n\
                        extendedKeyUsage = codeSigning";

/// One owner's things, in one directory.
#[derive(Clone)]
pub struct Publisher {
    ctl: PathBuf,
    pub dir: PathBuf,
}

impl Publisher {
    /// A fresh image key, CA and certificate.
    pub fn make(ctl: &Path, dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let publisher = Self {
            ctl: ctl.to_owned(),
            dir,
        };
        let at = |name: &str| publisher.at(name);
        publisher
            .ctl(&["image", "keygen"])
            .arg("--out-key")
            .arg(at("image.key"))
            .arg("--out-pub")
            .arg(at("image.pub"))
            .ok()?;
        publisher
            .ctl(&["ca", "init", "--name", "e2e user CA"])
            .arg("--dir")
            .arg(at("ca"))
            .ok()?;
        publisher
            .ctl(&["ca", "issue", "--tenant", TENANT, "--name", "e2e owner"])
            .arg("--dir")
            .arg(at("ca"))
            .arg("--out-cert")
            .arg(at("user.pem"))
            .arg("--out-key")
            .arg(at("user.key"))
            .ok()?;
        Ok(publisher)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    pub fn ctl(&self, args: &[&str]) -> Cmd {
        Cmd::new(&self.ctl).args(args)
    }

    /// Signs `image` into the host's store.
    pub fn sign(&self, image: &Image) -> Result<()> {
        self.ctl(&[
            "image",
            "sign",
            "--reference",
            image.repository(),
            "--store",
            STORE,
        ])
        .arg("--key")
        .arg(self.at("image.key"))
        .arg(&image.layout)
        .ok()?;
        Ok(())
    }

    /// A list of `image`'s programs but the one that shall not run; its file.
    pub fn list(&self, image: &Image, serial: u64) -> Result<PathBuf> {
        let list = self.at(&format!("list-{serial}.json"));
        self.ctl(&[
            "list",
            "create",
            "--name",
            LIST,
            "--serial",
            &serial.to_string(),
            "--days",
            "30",
        ])
        .args(["--exclude", image::UNLISTED, "--output"])
        .arg(&list)
        .arg(&image.layout)
        .ok()?;
        Ok(list)
    }

    /// Signs a list with the owner's certificate; the signature's file.
    pub fn sign_list(&self, list: &Path) -> Result<PathBuf> {
        let signature = list.with_extension("p7s");
        self.ctl(&["list", "sign", "--cert"])
            .arg(self.at("user.pem"))
            .arg("--key")
            .arg(self.at("user.key"))
            .arg("--output")
            .arg(&signature)
            .arg(list)
            .ok()?;
        Ok(signature)
    }

    /// Puts a list and its signature into the host's store.
    pub fn import(&self, list: &Path, signature: &Path) -> Result<()> {
        let import = self.ctl(&["import", "--store", STORE, "--list"]).arg(list);
        import.arg("--sig").arg(signature).ok()?;
        Ok(())
    }

    /// All that makes `image` run: signature, list, both imported.
    pub fn publish(&self, image: &Image, serial: u64) -> Result<()> {
        self.sign(image)?;
        let list = self.list(image, serial)?;
        let signature = self.sign_list(&list)?;
        self.import(&list, &signature)
    }

    /// Writes a changed copy of a list: `change` edits the parsed statement.
    pub fn changed(
        &self,
        list: &Path,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<PathBuf> {
        let mut statement: Value = serde_json::from_slice(&fs::read(list)?)?;
        change(&mut statement);
        let path = self.at(name);
        // serde_json keeps object keys sorted: for these statements that is RFC 8785's spelling.
        fs::write(&path, statement.to_string())?;
        Ok(path)
    }

    /// A CMS signature by openssl over `list` with the certificate of that name.
    pub fn sign_with_openssl(&self, list: &Path, certificate: &str, key: &str) -> Result<PathBuf> {
        let signature = list.with_extension(format!("{certificate}.p7s"));
        cmd!(
            "openssl", "cms", "-sign", "-binary", "-md", "sha256", "-outform", "DER", "-in", list
        )
        .arg("-signer")
        .arg(self.at(certificate))
        .arg("-inkey")
        .arg(self.at(key))
        .arg("-out")
        .arg(&signature)
        .ok()?;
        Ok(signature)
    }

    /// A certificate of this CA for this owner that was good on one day, long ago.
    pub fn expired_certificate(&self) -> Result<()> {
        let old = "-startdate 20200101000000Z -enddate 20200102000000Z";
        self.certificate("expired", LEAF, old)
    }

    /// `<name>.pem` and `<name>.key`: a certificate by openssl with these extensions and this validity,
    /// whatever attestctl would say to them.
    pub fn certificate(&self, name: &str, extensions: &str, validity: &str) -> Result<()> {
        let dir = self.at(&format!("{name}-ca"));
        fs::create_dir_all(&dir)?;
        let config = dir.join("ca.cnf");
        fs::write(dir.join("index.txt"), "")?;
        fs::write(dir.join("serial"), "1000\n")?;
        let text = format!(
            "[ca]\ndefault_ca = this\n[this]\ndir = {0}\ndatabase = {0}/index.txt\nserial = {0}/serial\n\
             new_certs_dir = {0}\ncertificate = {1}/ca.pem\nprivate_key = {1}/ca.key\ndefault_md = sha256\n\
             policy = any\n[any]\ncommonName = supplied\n[leaf]\n{extensions}\nsubjectAltName = URI:{TENANT}\n\
             subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n",
            dir.display(),
            self.at("ca").display(),
        );
        fs::write(&config, text)?;
        cmd!(
            "openssl",
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes"
        )
        .args(["-subj", "/CN=e2e owner", "-keyout"])
        .arg(self.at(&format!("{name}.key")))
        .arg("-out")
        .arg(dir.join("csr"))
        .ok()?;
        cmd!(
            "openssl",
            "ca",
            "-batch",
            "-notext",
            "-extensions",
            "leaf",
            "-config",
            &config,
            "-in",
            dir.join("csr")
        )
        .args(validity.split(' '))
        .arg("-out")
        .arg(self.at(&format!("{name}.pem")))
        .ok()?;
        Ok(())
    }
}

/// What a launch may have beyond the default rules: dockerd has itself called as a prestart hook
/// (libnetwork), so host and challenger name that program by its digest.
pub fn relaxations() -> String {
    let dockerd =
        fs::read("/usr/sbin/dockerd").map(|bytes| format!("hook:{}", image::digest(&bytes)));
    dockerd
        .map(|hook| strings(&[&hook]))
        .unwrap_or("[]".to_owned())
}

/// A rule of the host's policy that admits the owner's images of this repository.
pub fn rule(name: &str, scope: &str, trust: &Path) -> String {
    let allow = relaxations();
    format!(
        "[[rule]]\nname = \"{name}\"\nscope = \"{scope}\"\nkeys = [\"{0}/image.pub\"]\nuser_ca = [\"{0}/ca/ca.pem\"]\n\
         tenant = \"{TENANT}\"\nlist = \"{LIST}\"\nmin_serial = 1\nrevocation = \"unchecked\"\nenter = \"listed\"\n\
         min_tier = \"none\"\n\n[rule.launch]\nallow = {allow}\n\n",
        trust.display()
    )
}

/// The facts that `attestrun setup` printed.
pub fn fact(facts: &Value, key: &str) -> Result<String> {
    facts[key]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("no {key} in {facts}"))
}

/// A TOML list of strings.
pub fn strings(items: &[&str]) -> String {
    json!(items).to_string() // JSON's form of it is TOML's too
}
