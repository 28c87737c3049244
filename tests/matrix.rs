//! The matrix of image signatures: {simple, bundle} × {key, keyless} × {manifest, index} × what is wrong
//! with them. Each cell is a store of its own, filled by `attestctl import`, and one verdict.

use crate::{
    admission::restoring,
    cmd,
    host::{POLICY, policy},
    image::digest,
    publisher::{Publisher, STORE},
    runtime::{Backend, Runtime},
    signatures::{fresh, verify},
    sigstore::{ISSUER, Instance, LOGGED, Leaf, SIGN, SUBJECT, Simple, pae, payload, statement},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{KeyPair, PublicKeyData as _, SanType, SigningKey as _};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const SCAN: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";
const NAME: &str = "registry.example/app";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Simple,
    Bundle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signer {
    Key,
    Keyless,
}

/// What the signature is about; what runs is always the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Manifest,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Ok,
    /// Another key; another authority.
    WrongKey,
    WrongIdentity,
    WrongDigest,
    /// The certificate had run out when the signature was logged.
    Expired,
    OtherPredicate,
    None,
    Corrupt,
}

const FORMATS: [Format; 2] = [Format::Simple, Format::Bundle];
const SIGNERS: [Signer; 2] = [Signer::Key, Signer::Keyless];
const ABOUT: [About; 2] = [About::Manifest, About::Index];
const CASES: [Case; 8] = [
    Case::Ok,
    Case::WrongKey,
    Case::WrongIdentity,
    Case::WrongDigest,
    Case::Expired,
    Case::OtherPredicate,
    Case::None,
    Case::Corrupt,
];

/// The words of a refusal; nothing for what there is no such thing of.
fn expected(format: Format, signer: Signer, case: Case) -> Option<&'static str> {
    Some(match (case, signer, format) {
        (Case::Ok, _, _) => "signed by",
        (Case::WrongKey, Signer::Key, _) => "was not made by key",
        (Case::WrongKey, Signer::Keyless, _) => "its certificate is not trusted",
        (Case::WrongIdentity, Signer::Keyless, _) => "which is not asked for",
        (Case::Expired, Signer::Keyless, _) => "was not in force when it signed",
        // A key has neither a name nor an end.
        (Case::WrongIdentity | Case::Expired, Signer::Key, _) => return None,
        (Case::WrongDigest | Case::None, _, _) => "has no signature for it",
        // The store keeps attestations apart.
        (Case::OtherPredicate, _, Format::Bundle) => "has no signature for it",
        (Case::OtherPredicate, _, Format::Simple) => "has type",
        (Case::Corrupt, Signer::Key, _) => "was not made by key",
        (Case::Corrupt, Signer::Keyless, _) => "was not made over this content",
    })
}

/// The signers, the right ones and the others.
struct Cast {
    key: KeyPair,
    other_key: KeyPair,
    instance: Instance,
    leaf: Leaf,
    stranger: Leaf,
    other_instance: Instance,
    other_leaf: Leaf,
}

impl Cast {
    fn new() -> Result<Self> {
        let (instance, other_instance) = (Instance::new(), Instance::new());
        let stranger = instance.leaf_with(|params| {
            let name = "https://ci.example/somebody/else";
            params.subject_alt_names = name.try_into().map(SanType::URI).into_iter().collect();
        });
        Ok(Self {
            key: KeyPair::generate()?,
            other_key: KeyPair::generate()?,
            leaf: instance.leaf(),
            other_leaf: other_instance.leaf(),
            stranger,
            instance,
            other_instance,
        })
    }

    fn signature(&self, format: Format, signer: Signer, case: Case, image: &str) -> Result<Made> {
        let about = match case {
            Case::WrongDigest => digest(b"another image"),
            _ => image.to_owned(),
        };
        let content = match (format, case) {
            (Format::Simple, Case::OtherPredicate) => {
                let payload = String::from_utf8(payload(NAME, &about))?;
                payload
                    .replace("cosign container", "atomic container")
                    .into()
            }
            (Format::Simple, _) => payload(NAME, &about),
            (Format::Bundle, Case::OtherPredicate) => statement(&about, SCAN),
            (Format::Bundle, _) => statement(&about, SIGN),
        };
        let made = match signer {
            Signer::Key => self.by_key(format, case, content)?,
            Signer::Keyless => self.keyless(format, case, content),
        };
        Ok(match case {
            Case::Corrupt => made.corrupted()?,
            _ => made,
        })
    }

    fn by_key(&self, format: Format, case: Case, content: Vec<u8>) -> Result<Made> {
        let key = match case {
            Case::WrongKey => &self.other_key,
            _ => &self.key,
        };
        Ok(match format {
            Format::Simple => {
                let signature = BASE64.encode(key.sign(&content)?);
                Made::Simple((content, signature, Default::default()))
            }
            Format::Bundle => Made::Bundle(json!({
                "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial": { "publicKey": {
                    "hint": BASE64.encode(key.subject_public_key_info()),
                } },
                "dsseEnvelope": {
                    "payload": BASE64.encode(&content),
                    "payloadType": "application/vnd.in-toto+json",
                    "signatures": [{ "sig": BASE64.encode(key.sign(&pae(&content))?) }],
                },
            })),
        })
    }

    fn keyless(&self, format: Format, case: Case, content: Vec<u8>) -> Made {
        let (instance, leaf) = match case {
            Case::WrongKey => (&self.other_instance, &self.other_leaf),
            Case::WrongIdentity => (&self.instance, &self.stranger),
            _ => (&self.instance, &self.leaf),
        };
        let time = match case {
            Case::Expired => LOGGED + 3600,
            _ => LOGGED,
        };
        match format {
            Format::Simple => Made::Simple(instance.simple(leaf, content, time)),
            Format::Bundle => Made::Bundle(instance.bundle(leaf, &content, time)),
        }
    }

    /// What is asked for: the right key, or the right identity of the right authorities. The logs are
    /// those of both instances, so that a stranger fails by the authority.
    fn demand(&self, signer: Signer, dir: &Path) -> Result<Vec<String>> {
        let file = |name: &str, content: &str| -> Result<String> {
            let path = dir.join(name);
            fs::write(&path, content)?;
            Ok(path.display().to_string())
        };
        Ok(match signer {
            Signer::Key => vec!["--key".into(), file("key.pub", &self.key.public_key_pem())?],
            Signer::Keyless => {
                let (mut root, other) = (self.instance.root(), self.other_instance.root());
                for logs in ["tlogs", "ctlogs"] {
                    let more = other[logs].as_array().cloned().unwrap_or_default();
                    root[logs].as_array_mut().context("logs")?.extend(more);
                }
                vec![
                    "--trusted-root".into(),
                    file("root.json", &root.to_string())?,
                    "--certificate-identity".into(),
                    SUBJECT.into(),
                    "--certificate-oidc-issuer".into(),
                    ISSUER.into(),
                ]
            }
        })
    }
}

/// A signature as its signer hands it out.
enum Made {
    Simple(Simple),
    Bundle(Value),
}

impl Made {
    /// One bit of the signature is another.
    fn corrupted(self) -> Result<Self> {
        let flip = |text: &str| -> Result<String> {
            let mut bytes = BASE64.decode(text)?;
            *bytes.last_mut().context("an empty signature")? ^= 1;
            Ok(BASE64.encode(bytes))
        };
        Ok(match self {
            Self::Simple((payload, signature, annotations)) => {
                Self::Simple((payload, flip(&signature)?, annotations))
            }
            Self::Bundle(mut bundle) => {
                let signature = &mut bundle["dsseEnvelope"]["signatures"][0]["sig"];
                *signature = json!(flip(signature.as_str().context("sig")?)?);
                Self::Bundle(bundle)
            }
        })
    }

    /// The file or directory that `attestctl import` takes.
    fn write(&self, dir: &Path) -> Result<PathBuf> {
        match self {
            Self::Bundle(bundle) => {
                let path = dir.join("image.sigstore.json");
                fs::write(&path, bundle.to_string())?;
                Ok(path)
            }
            Self::Simple((payload, signature, annotations)) => {
                let mut layer = descriptor(payload);
                layer["mediaType"] = json!("application/vnd.dev.cosign.simplesigning.v1+json");
                let mut annotations = annotations.clone();
                annotations.insert(
                    "dev.cosignproject.cosign/signature".to_owned(),
                    signature.clone(),
                );
                layer["annotations"] = json!(annotations);
                let manifest = json!({
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": descriptor(b"{}"),
                    "layers": [layer],
                });
                let manifest = manifest.to_string().into_bytes();
                let mut entry = descriptor(&manifest);
                entry["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
                entry["annotations"] = json!({ "kind": "dev.cosignproject.cosign/sigs" });
                layout(dir, &[payload, b"{}", &manifest], &[entry])
            }
        }
    }
}

fn descriptor(content: &[u8]) -> Value {
    json!({ "mediaType": "", "digest": digest(content), "size": content.len() })
}

/// An OCI layout of these blobs below `dir`.
fn layout(dir: &Path, blobs: &[&[u8]], entries: &[Value]) -> Result<PathBuf> {
    let layout = dir.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    for blob in blobs {
        let name = digest(blob).replace(':', "/");
        fs::write(layout.join("blobs").join(name), blob)?;
    }
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    fs::write(layout.join("index.json"), index.to_string())?;
    Ok(layout)
}

/// An index with the demo image's manifest in it, as a layout to import.
fn index_of(manifest: &[u8], dir: &Path) -> Result<(String, PathBuf)> {
    let mut child = descriptor(manifest);
    child["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    child["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [child] });
    let index = index.to_string().into_bytes();
    let mut entry = descriptor(&index);
    entry["mediaType"] = json!(kind);
    let dir = dir.join("index");
    let layout = layout(&dir, &[manifest, &index], &[entry])?;
    Ok((digest(&index), layout))
}

pub fn the_matrix(world: &World) -> Result<()> {
    let cast = Cast::new()?;
    let demo = &world.images()?.demo;
    let manifest = fs::read(demo.blob(&demo.manifest))?;
    let common = fresh(world, "matrix")?;
    let (index, index_layout) = index_of(&manifest, &common)?;
    let (mut cells, mut wrong) = (0, Vec::new());
    for format in FORMATS {
        for signer in SIGNERS {
            let demand = cast.demand(signer, &common)?;
            let demand: Vec<&str> = demand.iter().map(String::as_str).collect();
            for about in ABOUT {
                for case in CASES {
                    let Some(words) = expected(format, signer, case) else {
                        continue;
                    };
                    let cell = format!("{format:?}-{signer:?}-{about:?}-{case:?}");
                    let dir = fresh(world, &format!("matrix/{cell}"))?;
                    let signed = match about {
                        About::Manifest => &demo.manifest,
                        About::Index => &index,
                    };
                    let mut sources = vec![index_layout.clone()];
                    if case != Case::None {
                        let made = cast.signature(format, signer, case, signed)?;
                        sources.push(made.write(&dir)?);
                    }
                    let store = dir.join("store");
                    let import = world.ctl()?.args(["import", "--store"]).arg(&store);
                    import.args(&sources).ok().context(cell.clone())?;
                    let judged = verify(world, &store, &demo.manifest, &demand)?;
                    wrong.extend(misjudged(&cell, case, words, &judged));
                    cells += 1;
                }
            }
        }
    }
    cmd!("rm", "-rf", &common).ok()?;
    ensure!(cells == 56, "{cells} cells");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The formats again where it counts: podman, containerd and Docker start what is signed by the right
/// key, and not what another one has signed.
pub fn each_engine_asks_for_both_formats(world: &World) -> Result<()> {
    let host = world.open_for_business()?;
    let other = Publisher::make(&world.program("attestctl")?, world.work.join("other-owner"))?;
    let demo = &world.images()?.demo;
    // A bundle signs no name.
    let any =
        policy("enforce").replace("revocation = ", "signed_identity = \"any\"\nrevocation = ");
    restoring(POLICY, || {
        fs::write(POLICY, &any)?;
        for format in FORMATS {
            for (signer, runs) in [(&host.owner, true), (&other, false)] {
                restoring(STORE, || {
                    cmd!("rm", "-rf", STORE).ok()?;
                    fs::create_dir(STORE)?;
                    let sign = world.ctl()?.args(["image", "sign", "--store", STORE]);
                    let sign = sign.arg("--key").arg(signer.at("image.key"));
                    let form = match format {
                        Format::Simple => ["--reference", demo.repository()].to_vec(),
                        Format::Bundle => ["--new-bundle-format"].to_vec(),
                    };
                    sign.args(form).arg(&demo.layout).ok()?;
                    let list = host.owner.list(demo, 1)?;
                    let signature = host.owner.sign_list(&list)?;
                    host.owner.import(&list, &signature)?;
                    on_each_engine(world, runs).context(format!("{format:?}"))
                })?;
            }
        }
        Ok(())
    })
}

fn on_each_engine(world: &World, runs: bool) -> Result<()> {
    let rt = Runtime::attestrun(&world.program("attestrun")?, Backend::Libcontainer);
    let name = world.images()?.demo.name.as_str();
    let podman = world.podman_run(&rt, "run")?;
    world.note("e2e-formats");
    let ctr = world.ctr()?.args(["run", "--rm", "--runc-binary"]);
    let docker = world.docker()?.args(["run", "--rm", "--network=none"]);
    for run in [
        podman.args(["--rm", name, "/bin/true"]),
        ctr.arg(&rt.path).args([name, "e2e-formats", "/bin/true"]),
        docker
            .arg(format!("--runtime=e2e-{}", rt.name))
            .args([name, "/bin/true"]),
    ] {
        let output = run.output()?;
        match runs {
            true => ensure!(output.code() == 0, "this should run: {output}"),
            false => {
                ensure!(output.code() != 0, "this should be refused: {output}");
                output.says("was not made by key")?;
            }
        }
    }
    Ok(())
}

fn misjudged(cell: &str, case: Case, words: &str, judged: &Output) -> Option<String> {
    let code = if case == Case::Ok { 0 } else { 1 };
    let right = judged.code() == code && judged.stdout.contains(words);
    (!right).then(|| format!("{cell}: expected {code} and `{words}`: {judged}"))
}
