//! The matrix's signers, and signatures as they hand them out.

use super::{Case, Format, NAME, SCAN, Signer};
use crate::{
    image::digest,
    sigstore::{
        ISSUER, Instance, LOGGED, Leaf, SIGN, SUBJECT, Simple, key_bundle, key_simple, payload,
        statement,
    },
};
use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The signers, the right ones and the others.
pub struct Cast {
    key: KeyPair,
    other_key: KeyPair,
    instance: Instance,
    leaf: Leaf,
    stranger: Leaf,
    other_instance: Instance,
    other_leaf: Leaf,
}

impl Cast {
    pub fn new() -> Result<Self> {
        let (instance, other_instance) = (Instance::new(), Instance::new());
        Ok(Self {
            key: KeyPair::generate()?,
            other_key: KeyPair::generate()?,
            leaf: instance.leaf(),
            other_leaf: other_instance.leaf(),
            stranger: instance.stranger(),
            instance,
            other_instance,
        })
    }

    pub fn signature(
        &self,
        format: Format,
        signer: Signer,
        case: Case,
        image: &str,
    ) -> Result<Made> {
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
            Signer::Key => self.by_key(format, case, content),
            Signer::Keyless => self.keyless(format, case, content),
        };
        Ok(match case {
            Case::Corrupt => made.corrupted()?,
            _ => made,
        })
    }

    fn by_key(&self, format: Format, case: Case, content: Vec<u8>) -> Made {
        let key = match case {
            Case::WrongKey => &self.other_key,
            _ => &self.key,
        };
        match format {
            Format::Simple => Made::Simple(key_simple(key, content)),
            Format::Bundle => Made::Bundle(key_bundle(key, &content)),
        }
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
    pub fn demand(&self, signer: Signer, dir: &Path) -> Result<Vec<String>> {
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
pub enum Made {
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
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
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

pub fn descriptor(content: &[u8]) -> Value {
    json!({ "mediaType": "", "digest": digest(content), "size": content.len() })
}

/// An OCI layout of these blobs below `dir`.
pub fn layout(dir: &Path, blobs: &[&[u8]], entries: &[Value]) -> Result<PathBuf> {
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
