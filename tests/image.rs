//! Test images: real OCI images with two gzip layers, made from Debian's static busybox.
//!
//! The first layer holds busybox and the usual tree, the second a change, a deletion (whiteout) and a
//! second program: busybox with a few bytes behind it, so that it runs and has another digest. One
//! archive serves all engines: an OCI layout that also carries docker's `manifest.json`.

use crate::cmd;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// The program of the pause image.
pub const PAUSE: &str = "/pause";
/// The program that they do not name: it behaves as `echo`.
pub const UNLISTED: &str = "/usr/local/bin/echo";
const APPLETS: &[&str] = &[
    "cat", "chmod", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "kill", "ls",
    "mkdir", "mount", "pwd", "readlink", "rm", "sh", "sleep", "sort", "stat", "stty", "test",
    "touch", "tr", "true", "tty", "umount", "wc",
];

/// An image as a directory and as one file.
pub struct Image {
    /// As engines name it: `localhost/e2e/demo:v1`.
    pub name: String,
    /// OCI image layout.
    pub layout: PathBuf,
    /// The same as tar, for `docker load`, `podman load` and `ctr image import`.
    pub archive: PathBuf,
    /// `sha256:…` of the manifest.
    pub manifest: String,
}

/// What distinguishes one image from another.
pub struct Plan<'a> {
    pub name: &'a str,
    /// Text of `/etc/layer2`: another text is another image.
    pub text: &'a str,
}

/// A regular file: path without the leading slash, mode, content.
pub type File<'a> = (&'a str, u32, &'a [u8]);

impl Image {
    /// Writes the image below `dir`.
    pub fn make(dir: &Path, plan: &Plan<'_>) -> Result<Self> {
        Self::with_files(dir, plan, &[])
    }

    /// The same with further files in its second layer: path, mode, content.
    pub fn with_files(dir: &Path, plan: &Plan<'_>, files: &[File<'_>]) -> Result<Self> {
        Self::of_layers(dir, plan.name, &usual_layers(plan, files)?, |_| ())
    }

    /// The demo's layers with another configuration, which names another author: another image that
    /// no engine can tell by its layers.
    pub fn twin(dir: &Path, plan: &Plan<'_>, author: &str) -> Result<Self> {
        Self::of_layers(dir, plan.name, &usual_layers(plan, &[])?, |config| {
            config["author"] = json!(author);
        })
    }

    /// The demo's layers, and one of `files` files of `size` bytes each.
    pub fn with_bulk(dir: &Path, plan: &Plan<'_>, files: usize, size: usize) -> Result<Self> {
        let mut layers = Vec::from(usual_layers(plan, &[])?);
        layers.push(bulk_layer(files, size, u64::MAX)?);
        Self::of_layers(dir, plan.name, &layers, |_| ())
    }

    /// The same, with files that compress to some three quarters, as an image's do.
    pub fn with_text(dir: &Path, plan: &Plan<'_>, files: usize, size: usize) -> Result<Self> {
        let mut layers = Vec::from(usual_layers(plan, &[])?);
        layers.push(bulk_layer(files, size, 0x3f3f_3f3f_3f3f_3f3f)?);
        Self::of_layers(dir, plan.name, &layers, |_| ())
    }

    /// So many layers: the usual first one, then one file each.
    pub fn of_many_layers(dir: &Path, name: &str, count: usize) -> Result<Self> {
        let mut layers = vec![base_layer(&busybox()?)?];
        for number in 1..count {
            let mut layer = Layer::new();
            let path = format!("etc/layer-{number}");
            layer.add(tar::EntryType::Regular, &path, 0o644, path.as_bytes(), None)?;
            layers.push(layer.finish()?);
        }
        Self::of_layers(dir, name, &layers, |_| ())
    }

    /// No layer at all: all such images have the same root, which is empty.
    pub fn of_nothing(dir: &Path, name: &str, author: &str) -> Result<Self> {
        Self::of_layers(dir, name, &[], |config| config["author"] = json!(author))
    }

    /// What pods are held together with: one program, [`PAUSE`], that waits.
    pub fn pause(dir: &Path, name: &str) -> Result<Self> {
        let (source, built) = (dir.join("pause.c"), dir.join("pause"));
        fs::create_dir_all(dir)?;
        fs::write(
            &source,
            "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n",
        )?;
        cmd!("cc", "-static", "-Os", "-s", "-o", &built, &source).ok()?;
        let mut layer = Layer::new();
        let program = fs::read(&built)?;
        layer.add(tar::EntryType::Regular, &PAUSE[1..], 0o755, &program, None)?;
        Self::of_layers(dir, name, &[layer.finish()?], |config| {
            config["config"] = json!({ "Entrypoint": [PAUSE] });
        })
    }

    /// An image of these layers (tars); `change` has the last word about its configuration.
    fn of_layers(
        dir: &Path,
        name: &str,
        layers: &[Vec<u8>],
        change: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        let layout = dir.join(name.replace(['/', ':'], "_"));
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in layers {
            diff_ids.push(digest(layer));
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(layer)?;
            let blob = gzip.finish()?;
            descriptors.push(put(
                &layout,
                &blob,
                "application/vnd.oci.image.layer.v1.tar+gzip",
            )?);
        }
        let history: Vec<_> = (0..layers.len())
            .map(|number| json!({ "created_by": format!("layer {number}") }))
            .collect();
        let mut config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {
                "Env": ["PATH=/usr/local/bin:/bin", "DEMO=1"],
                "Cmd": ["/bin/true"],
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        change(&mut config);
        let config = put(
            &layout,
            config.to_string().as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": descriptors,
        });
        let mut manifest = put(
            &layout,
            manifest.to_string().as_bytes(),
            "application/vnd.oci.image.manifest.v1+json",
        )?;
        let manifest_digest = text(&manifest["digest"]);
        manifest["annotations"] =
            json!({ "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        let path =
            |descriptor: &Value| format!("blobs/{}", text(&descriptor["digest"]).replace(':', "/"));
        let docker = json!([{
            "Config": path(&config),
            "RepoTags": [name],
            "Layers": descriptors.iter().map(path).collect::<Vec<_>>(),
        }]);
        fs::write(layout.join("manifest.json"), docker.to_string())?;
        let archive = layout.with_extension("tar");
        let mut tar = tar::Builder::new(fs::File::create(&archive)?);
        tar.append_dir_all(".", &layout)?;
        tar.finish()?;
        fs::remove_file(layout.join("manifest.json"))?; // docker's alone; a plain layout has none
        Ok(Self {
            name: name.to_owned(),
            layout,
            archive,
            manifest: manifest_digest,
        })
    }

    /// The file of one of its blobs.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.layout.join("blobs").join(digest.replace(':', "/"))
    }

    /// The repository, as rules and signatures name it.
    pub fn repository(&self) -> &str {
        self.name
            .rsplit_once(':')
            .map_or(self.name.as_str(), |(repository, _)| repository)
    }
}

fn busybox() -> Result<Vec<u8>> {
    fs::read("/bin/busybox").context("busybox-static is not installed")
}

fn usual_layers(plan: &Plan<'_>, files: &[File<'_>]) -> Result<[Vec<u8>; 2]> {
    let busybox = busybox()?;
    Ok([
        base_layer(&busybox)?,
        upper_layer(&busybox, plan.text, files)?,
    ])
}

/// A layer of `files` files of `size` bytes each, no two the same, 100 to a directory.
fn bulk_layer(files: usize, size: usize, bits: u64) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.add(tar::EntryType::Directory, "bulk/", 0o755, b"", None)?;
    let mut content = vec![0; size];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..files {
        let directory = number / 100;
        if number % 100 == 0 {
            let name = format!("bulk/{directory}/");
            layer.add(tar::EntryType::Directory, &name, 0o755, b"", None)?;
        }
        for word in content.chunks_mut(8) {
            // xorshift64 (Marsaglia 2003): cheap, and nothing compresses what all bits are taken of
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&(state & bits).to_le_bytes()[..word.len()]);
        }
        let name = format!("bulk/{directory}/{number}");
        layer.add(tar::EntryType::Regular, &name, 0o644, &content, None)?;
    }
    layer.finish()
}

fn base_layer(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    for (dir, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/local", 0o755),
        ("usr/local/bin", 0o755),
        ("var", 0o755),
    ] {
        layer.add(
            tar::EntryType::Directory,
            &format!("{dir}/"),
            mode,
            b"",
            None,
        )?;
    }
    layer.add(tar::EntryType::Regular, "bin/busybox", 0o755, busybox, None)?;
    for applet in APPLETS {
        layer.add(
            tar::EntryType::Symlink,
            &format!("bin/{applet}"),
            0o777,
            b"",
            Some("busybox"),
        )?;
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n";
    layer.add(tar::EntryType::Regular, "etc/passwd", 0o644, passwd, None)?;
    layer.add(
        tar::EntryType::Regular,
        "etc/group",
        0o644,
        b"root:x:0:\nuser:x:1000:\n",
        None,
    )?;
    layer.add(
        tar::EntryType::Regular,
        "etc/removed",
        0o644,
        b"the second layer deletes this\n",
        None,
    )?;
    // Not a program: starting it must fail as under runc, not be handed to a shell.
    layer.add(
        tar::EntryType::Regular,
        "bin/garbage",
        0o755,
        b"this is no program\n",
        None,
    )?;
    layer.finish()
}

fn upper_layer(busybox: &[u8], text: &str, files: &[File<'_>]) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.add(tar::EntryType::Directory, "etc/", 0o755, b"", None)?;
    layer.add(
        tar::EntryType::Regular,
        "etc/layer2",
        0o644,
        text.as_bytes(),
        None,
    )?;
    layer.add(tar::EntryType::Regular, "etc/.wh.removed", 0o644, b"", None)?;
    let second = [busybox, b"\na second program\n"].concat();
    layer.add(
        tar::EntryType::Regular,
        UNLISTED.trim_start_matches('/'),
        0o755,
        &second,
        None,
    )?;
    for (path, mode, data) in files {
        layer.add(tar::EntryType::Regular, path, *mode, data, None)?;
    }
    layer.finish()
}

/// A layer with no times and no owners but root, so that its digest depends on its content alone.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
    fn add(
        &mut self,
        kind: tar::EntryType,
        path: &str,
        mode: u32,
        data: &[u8],
        link: Option<&str>,
    ) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path)?;
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        if let Some(link) = link {
            header.set_link_name(link)?;
        }
        header.set_cksum();
        Ok(self.0.append(&header, data)?)
    }
    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

/// Stores a blob; its descriptor.
fn put(layout: &Path, bytes: &[u8], media_type: &str) -> Result<Value> {
    let digest = digest(bytes);
    fs::write(layout.join("blobs").join(digest.replace(':', "/")), bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

/// `sha256:<hex>` of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
