//! The host whose rule sends to a containers policy, and policies that ask one thing of the demo image.

use crate::{
    admission::{demo_bundle, ours, refusal, restoring},
    host::policy,
    image::digest,
    matrix::Made,
    policy::under,
    publisher::STORE,
    runtime::{Bundle, Runtime},
    signatures::fresh,
    sigstore::{Simple, key_simple, payload},
    stock_tools::{log_of, shown},
    world::World,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

pub const CONTAINERS: &str = "/etc/containers/policy.json";

/// The tests' policy with these lines in place of the rule's keys.
pub fn with_signers(lines: &str) -> Result<String> {
    let text = policy("enforce");
    let keys = text.lines().find(|line| line.starts_with("keys ="));
    Ok(text.replace(keys.context("keys")?, lines))
}

/// `body`, which writes the containers policy; afterwards it is as before, or gone again.
pub fn with_containers_policy(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let kept = fs::read(CONTAINERS).ok();
    let done = body();
    match kept {
        Some(kept) => fs::write(CONTAINERS, kept)?,
        None if fs::exists(CONTAINERS)? => fs::remove_file(CONTAINERS)?,
        None => {}
    }
    done
}

/// The demo image, listed and with signatures as each case has them.
pub struct Stage<'w> {
    pub world: &'w World,
    pub rt: Runtime,
    pub bundle: Bundle,
    pub image: String,
    pub name: String,
    dir: PathBuf,
    pub key: KeyPair,
    pub other: KeyPair,
}

impl<'w> Stage<'w> {
    pub fn new(world: &'w World) -> Result<Self> {
        let demo = &world.images()?.demo;
        let stage = Self {
            rt: ours(world)?,
            bundle: demo_bundle(world, &["/bin/sleep", "1000"])?,
            image: demo.manifest.clone(),
            name: demo.name.clone(),
            world,
            dir: fresh(world, "containers-policy")?,
            key: KeyPair::generate()?,
            other: KeyPair::generate()?,
        };
        stage.file("key.pub", &stage.key.public_key_pem())?;
        stage.file("other.pub", &stage.other.public_key_pem())?;
        Ok(stage)
    }

    pub fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    pub fn at(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// `body` on a host with this containers policy, whose store has these signatures as well.
    pub fn with(
        &self,
        containers: &str,
        signatures: &[Made],
        body: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.under("containers_policy = true", containers, signatures, body)
    }

    pub fn under(
        &self,
        signers: &str,
        containers: &str,
        signatures: &[Made],
        body: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        restoring(STORE, || {
            for (number, made) in signatures.iter().enumerate() {
                let dir = self.dir.join(number.to_string());
                let _ = fs::remove_dir_all(&dir);
                fs::create_dir_all(&dir)?;
                let import = self.world.ctl()?.args(["import", "--store", STORE]);
                import.arg(made.write(&dir)?).ok()?;
            }
            with_containers_policy(|| {
                fs::write(CONTAINERS, containers)?;
                under(&with_signers(signers)?, body)
            })
        })
    }

    pub fn is_refused(&self, why: &str) -> Result<()> {
        let created = self.rt.create(&self.bundle).output()?;
        ensure!(!created.status.success(), "not refused: {created}");
        refusal(&created, why)?;
        created.says(CONTAINERS)?;
        Ok(())
    }

    pub fn refuses(&self, containers: &Value, signatures: &[Made], why: &str) -> Result<()> {
        let text = containers.to_string();
        let done = self.with(&text, signatures, || self.is_refused(why));
        done.with_context(|| format!("`{why}` expected under {text}"))
    }

    /// It is created, and what decided is measured: the file itself, and the files that it names.
    pub fn admits(
        &self,
        containers: &Value,
        signatures: &[Made],
        files: &[(&str, &str)],
    ) -> Result<()> {
        let text = containers.to_string();
        let done = self.with(&text, signatures, || self.is_admitted(files));
        done.with_context(|| format!("admission expected under {text}"))
    }

    pub fn is_admitted(&self, files: &[(&str, &str)]) -> Result<()> {
        self.rt.up(&self.bundle)?;
        let events = log_of(&self.bundle.id).and_then(|log| shown(self.world, &log));
        self.rt.down(&self.bundle)?;
        let events = events?;
        let mut grounds = events.iter().filter(|e| e["event"] == "attestrun.grounds");
        let grounds = &grounds.next().context("attestrun.grounds")?["content"];
        let decided = grounds["sources"].as_array().context("sources")?.iter();
        let decided: Vec<&Value> = decided.filter(|s| s["kind"] != "user-ca").collect();
        let mut expected = vec![("policy.json", CONTAINERS)];
        expected.extend(files);
        ensure!(decided.len() == expected.len(), "{decided:?}");
        for (kind, path) in expected {
            let measured =
                json!({ "kind": kind, "path": path, "sha256": digest(&fs::read(path)?) });
            ensure!(decided.contains(&&measured), "{measured}: {decided:?}");
        }
        Ok(())
    }

    /// What cosign signs: the repository's name.
    pub fn payload(&self) -> Vec<u8> {
        payload("localhost/e2e/demo", &self.image)
    }

    pub fn signed(&self) -> Vec<Made> {
        vec![simple(key_simple(&self.key, self.payload()))]
    }
    pub fn signed_by_other(&self) -> Vec<Made> {
        vec![simple(key_simple(&self.other, self.payload()))]
    }
}

pub fn simple(simple: Simple) -> Made {
    Made::Simple(simple)
}

pub fn b64(text: &str) -> String {
    BASE64.encode(text)
}

/// A file that asks this of the demo's namespace and rejects everything else.
pub fn asking(requirements: Value) -> Value {
    json!({
        "default": [{ "type": "reject" }],
        "transports": { "docker": { "localhost/e2e": requirements } },
    })
}

/// `sigstoreSigned` with these fields, for any name in the repository.
pub fn sigstore(fields: &Value) -> Value {
    let mut all = json!({
        "type": "sigstoreSigned", "signedIdentity": { "type": "matchRepository" },
    });
    for (name, value) in fields.as_object().into_iter().flatten() {
        all[name.as_str()] = value.clone();
    }
    all
}

pub fn asking_for(fields: &Value) -> Value {
    asking(json!([sigstore(fields)]))
}
