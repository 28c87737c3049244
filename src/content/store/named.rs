//! Images by the names that engines have for them, of containers or not: what an administrator asks
//! about. The same stores, manifests and signatures as for a container, and as little believed.

use super::{
    Attached, Connect, Containerd, ContainerdRoot, LocateError, Roots,
    attached::{beside, in_content},
    blobs::Blobs,
    claims::with_stored,
    containerd::BLOBS,
    containers_storage, docker,
    place::Place,
};
use crate::signatures::Store;
use std::collections::BTreeMap;
use verify::{
    digest::{ConfigDigest, ImageDigest},
    image::ClaimedImage,
    policy::ImageName,
    signature::StoredSignature,
};

/// An image of a store, under one of its names.
#[derive(Debug)]
pub struct Named {
    /// Whose store, and where.
    pub store: String,
    /// What the store calls it.
    pub name: String,
    /// As [`super::Found`] has them; or why there is none.
    pub claims: Result<Vec<ClaimedImage>, LocateError>,
    pub(super) attached: Vec<Attached>,
}

impl Named {
    /// As [`super::Found::signatures`].
    pub fn signatures(
        &self,
        digest: &ImageDigest,
        store: &Store,
    ) -> anyhow::Result<Vec<StoredSignature>> {
        beside(store, digest, &self.attached)
    }
}

/// What an administrator types: a name in any of the forms that engines take, or an image's id.
pub(super) struct Typed {
    whole: String,
    /// In their full forms; podman prefers the second one to Docker Hub's.
    names: Vec<String>,
}

impl Typed {
    fn of(text: &str) -> Self {
        let forms = [text.to_owned(), format!("localhost/{text}")];
        Self {
            whole: text.to_owned(),
            names: forms.iter().filter_map(|form| full(form)).collect(),
        }
    }

    pub fn means(&self, name: &str) -> bool {
        name == self.whole || full(name).is_some_and(|full| self.names.contains(&full))
    }

    /// The digest of the image's configuration, or its beginning as engines show it.
    pub fn is_id(&self, hex: &str) -> bool {
        const SHOWN: usize = 12;
        let typed = self.whole.trim_start_matches("sha256:");
        typed.len() >= SHOWN && hex.starts_with(typed)
    }
}

fn full(name: &str) -> Option<String> {
    ImageName::of(name)?.scope_identity()
}

/// Every image that a store of `roots` has under this name or id. A store that cannot be asked is told
/// among them.
pub fn named(text: &str, roots: &Roots, signatures: &Store, connect: &Connect<'_>) -> Vec<Named> {
    let typed = Typed::of(text);
    let roots = roots.canonical();
    let mut found = Vec::new();
    let mut take = |store: String, images: Result<Vec<Named>, LocateError>| match images {
        Ok(images) => found.extend(images),
        Err(error) => found.push(Named {
            store,
            name: text.to_owned(),
            claims: Err(error),
            attached: Vec::new(),
        }),
    };
    for root in &roots.containers_storage {
        let images = containers_storage::named(root, &typed, signatures);
        take(format!("containers-storage {}", root.display()), images);
    }
    for root in &roots.docker {
        let images = docker::named(root, &typed, signatures);
        take(format!("Docker {}", root.display()), images);
    }
    for store in &roots.containerd {
        let images = in_containerd(store, &typed, signatures, connect);
        take(format!("containerd {}", store.address.display()), images);
    }
    found
}

fn in_containerd(
    store: &ContainerdRoot,
    typed: &Typed,
    signatures: &Store,
    connect: &Connect<'_>,
) -> Result<Vec<Named>, LocateError> {
    let mut found = Vec::new();
    // any namespace will do for asking which there are
    for namespace in connect(store, "default")?.namespaces()? {
        let api = connect(store, &namespace)?;
        for (name, target) in api.all()? {
            // CRI has each image under its id, too
            let is_record = name.starts_with("sha256:") && name != typed.whole;
            if is_record || !typed.means(&name) {
                continue;
            }
            let shown = format!("containerd {}, {namespace}", store.address.display());
            found.extend(of_target(store, &*api, shown, &name, target, signatures)?);
        }
    }
    Ok(found)
}

/// The images behind a name: one for each platform that is here.
fn of_target(
    store: &ContainerdRoot,
    api: &dyn Containerd,
    shown: String,
    name: &str,
    target: ImageDigest,
    signatures: &Store,
) -> Result<Vec<Named>, LocateError> {
    let blobs = Blobs::new(Place::open(&store.root)?, BLOBS);
    let candidates = blobs.candidates(target)?;
    let mut by_config: BTreeMap<ConfigDigest, (Vec<u8>, Vec<Vec<u8>>)> = BTreeMap::new();
    for candidate in candidates.images {
        let entry = by_config
            .entry(candidate.config.digest())
            .or_insert((candidate.config_bytes, Vec::new()));
        entry.1.push(candidate.manifest_bytes);
    }
    let images = by_config.into_iter().map(|(config, (bytes, manifests))| {
        let indexes = &candidates.indexes;
        let claims = with_stored(name, config, bytes, manifests, indexes, signatures)?;
        Ok(Named {
            store: shown.clone(),
            name: name.to_owned(),
            attached: in_content(&blobs, name, &claims, api),
            claims: Ok(claims),
        })
    });
    images.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_every_form_that_engines_take() {
        let typed = Typed::of("busybox");
        for name in [
            "busybox",
            "busybox:latest",
            "docker.io/library/busybox:latest",
            "localhost/busybox:latest",
        ] {
            assert!(typed.means(name), "{name}");
        }
        for name in ["busybox:v1", "registry.example/busybox:latest", ""] {
            assert!(!typed.means(name), "{name}");
        }
        let hex = "a6771a42".repeat(8);
        assert!(Typed::of(&hex[..12]).is_id(&hex));
        assert!(Typed::of(&format!("sha256:{hex}")).is_id(&hex));
        assert!(!Typed::of(&hex[..8]).is_id(&hex));
        assert!(!Typed::of("").is_id(&hex));
    }
}
