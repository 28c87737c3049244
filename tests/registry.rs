//! Registries on loopback: Debian's docker-registry, and go-containerregistry's, which lists referrers; and
//! the few words of their protocol (OCI distribution-spec 1.1, "Push") that put an OCI layout into one.

use crate::{
    cmd,
    image::digest,
    namespace::TOOLS,
    world::{Skip, World},
};
use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

pub const ADDRESS: &str = "127.0.0.1:5000";
/// Debian's: it knows no referrers, so that a tag stands in for the list of them.
pub const PLAIN: Registry = Registry(ADDRESS);
/// This one makes the list itself.
pub const REFERRING: Registry = Registry("127.0.0.1:5002");
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Starts the registry, when it does not run yet.
pub fn start(world: &World) -> Result<()> {
    if world.has_daemon("docker-registry") {
        return Ok(());
    }
    let config = world.work.join("registry.yml");
    let files = world.work.join("registry");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{ADDRESS}\"}}\n",
        files.display()
    );
    fs::write(&config, text)?;
    let registry = cmd!("docker-registry", "serve", &config);
    world.start("docker-registry", registry, || {
        Ok(TcpStream::connect(ADDRESS).is_ok())
    })
}

/// Starts the one that lists referrers, where tests/peers has put it; empty, since it keeps all in memory.
pub fn start_referring(world: &World) -> Result<()> {
    let program = Path::new(TOOLS).join("registry-of-referrers");
    if !program.exists() {
        let why = "there is no registry that lists referrers (tests/peers makes one)";
        return Err(Skip(why.to_owned()).into());
    }
    let registry = cmd!(&program, REFERRING.0);
    world.start("registry of referrers", registry, || {
        Ok(TcpStream::connect(REFERRING.0).is_ok())
    })
}

/// The same files behind TLS and a password, under a name of its own.
pub const GUARDED: &str = "registry.example:5443";
pub const USER: &str = "reader";
pub const PASSWORD: &str = "secret";
/// htpasswd(1): the password by bcrypt, the only kind that the registry takes.
const HTPASSWD: &str = "reader:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Starts it; the certificate of its CA, which nobody trusts yet.
pub fn start_guarded(world: &World) -> Result<String> {
    let files = world.work.join("registry");
    let at = |name: &str| world.work.join(format!("guarded.{name}"));
    let name = GUARDED.trim_end_matches(":5443");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new([name.to_owned()])?.signed_by(&key, &authority)?;
    fs::write(at("pem"), leaf.pem())?;
    fs::write(at("key"), key.serialize_pem())?;
    fs::write(at("htpasswd"), HTPASSWD)?;
    let config = json!({
        "version": "0.1",
        "storage": { "filesystem": { "rootdirectory": files } },
        "auth": { "htpasswd": { "realm": "guarded", "path": at("htpasswd") } },
        "http": {
            "addr": "127.0.0.1:5443",
            "tls": { "certificate": at("pem"), "key": at("key") },
        },
    });
    fs::write(at("yml"), config.to_string())?; // JSON is YAML
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    fs::write("/etc/hosts", format!("{hosts}\n127.0.0.1 {name}\n"))?;
    let registry = cmd!("docker-registry", "serve", at("yml"));
    world.start("guarded registry", registry, || {
        Ok(TcpStream::connect("127.0.0.1:5443").is_ok())
    })?;
    Ok(authority.pem())
}

/// A registry without TLS.
#[derive(Clone, Copy)]
pub struct Registry(pub &'static str);

impl Registry {
    /// Makes the list of referrers itself.
    pub fn lists_referrers(self) -> bool {
        self.0 == REFERRING.0
    }

    /// Pushes every blob of `layout` to `repository`.
    pub fn push_blobs(self, layout: &Path, repository: &str) -> Result<()> {
        for entry in fs::read_dir(layout.join("blobs/sha256"))? {
            self.push_blob(repository, &fs::read(entry?.path())?)?;
        }
        Ok(())
    }

    pub fn push_blob(self, repository: &str, content: &[u8]) -> Result<()> {
        let (status, head) =
            self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"")?;
        ensure!(status == 202, "the registry answers {status}: {head}");
        let place = head
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .context("no Location")?;
        let path = &place[place.find("/v2").context("no path")?..];
        let gap = if path.contains('?') { '&' } else { '?' };
        let path = format!("{}{gap}digest={}", path.trim(), digest(content));
        let (status, head) = self.send("PUT", &path, "application/octet-stream", content)?;
        ensure!(status == 201, "the registry answers {status}: {head}");
        Ok(())
    }

    /// Puts a manifest or index under a tag.
    pub fn push_manifest(self, repository: &str, tag: &str, content: &[u8]) -> Result<()> {
        let document: Value = serde_json::from_slice(content)?;
        let kind = document["mediaType"].as_str().unwrap_or(INDEX);
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, head) = self.send("PUT", &path, kind, content)?;
        ensure!(status == 201, "the registry answers {status}: {head}");
        Ok(())
    }

    /// The index of referrers under the tag that stands in for the referrers' interface.
    pub fn push_referrers(
        self,
        repository: &str,
        subject: &str,
        manifests: &[Value],
    ) -> Result<()> {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let tag = subject.replace(':', "-");
        self.push_manifest(repository, &tag, index.to_string().as_bytes())
    }

    /// Whether something is under this name: a tag, or a digest.
    pub fn has(self, repository: &str, kind: &str, name: &str) -> Result<bool> {
        let (status, head) =
            self.send("GET", &format!("/v2/{repository}/{kind}/{name}"), "", b"")?;
        ensure!(
            [200, 404].contains(&status),
            "the registry answers {status}: {head}"
        );
        Ok(status == 200)
    }

    /// One request (HTTP/1.1, RFC 9112); status and head of the answer.
    fn send(self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.0)?;
        let kind = match kind {
            "" => String::new(),
            kind => format!("Content-Type: {kind}\r\n"),
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{kind}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.0,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).replace("\r\n", "\n");
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        Ok((status.context("no status")?, answer))
    }
}
