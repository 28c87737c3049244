//! A registry on loopback (Debian's docker-registry), and the few words of its protocol (OCI
//! distribution-spec 1.1, "Push") that put an OCI layout into it.

use crate::{cmd, image::digest, world::World};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

pub const ADDRESS: &str = "127.0.0.1:5000";
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

/// Pushes every blob of `layout` to `repository`.
pub fn push_blobs(layout: &Path, repository: &str) -> Result<()> {
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        push_blob(repository, &fs::read(entry?.path())?)?;
    }
    Ok(())
}

pub fn push_blob(repository: &str, content: &[u8]) -> Result<()> {
    let (status, head) = send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"")?;
    ensure!(status == 202, "the registry answers {status}: {head}");
    let place = head
        .lines()
        .find_map(|line| line.strip_prefix("Location: "))
        .context("no Location")?;
    let path = &place[place.find("/v2").context("no path")?..];
    let gap = if path.contains('?') { '&' } else { '?' };
    let path = format!("{}{gap}digest={}", path.trim(), digest(content));
    let (status, head) = send("PUT", &path, "application/octet-stream", content)?;
    ensure!(status == 201, "the registry answers {status}: {head}");
    Ok(())
}

/// Puts a manifest or index under a tag.
pub fn push_manifest(repository: &str, tag: &str, content: &[u8]) -> Result<()> {
    let document: Value = serde_json::from_slice(content)?;
    let kind = document["mediaType"].as_str().unwrap_or(INDEX);
    let path = format!("/v2/{repository}/manifests/{tag}");
    let (status, head) = send("PUT", &path, kind, content)?;
    ensure!(status == 201, "the registry answers {status}: {head}");
    Ok(())
}

/// The index of referrers under the tag that stands in for the referrers' interface.
pub fn push_referrers(repository: &str, subject: &str, manifests: &[Value]) -> Result<()> {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let tag = subject.replace(':', "-");
    push_manifest(repository, &tag, index.to_string().as_bytes())
}

/// One request (HTTP/1.1, RFC 9112); status and head of the answer.
fn send(method: &str, path: &str, kind: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(ADDRESS)?;
    let kind = match kind {
        "" => String::new(),
        kind => format!("Content-Type: {kind}\r\n"),
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {ADDRESS}\r\n{kind}Content-Length: {}\r\nConnection: close\r\n\r\n",
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
