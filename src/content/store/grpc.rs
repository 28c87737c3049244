//! The one network connection of attestrun: containerd's local socket, asked for a container's record
//! and its snapshot; by `attestctl`, for an image's name. No call waits for the container; all of them together have a deadline, so that a
//! hung containerd is an error that names the step and not a `create` that hangs too.

use super::{ContainerRecord, Containerd, ContainerdMount, ContainerdRoot, Cri, Snapshot};
use anyhow::{Context, Error, Result, anyhow};
use containerd_client::{
    connect,
    services::v1::{
        GetContainerRequest, GetImageRequest, GetImageResponse, Image, ListImagesRequest,
        ListNamespacesRequest,
        containers_client::ContainersClient,
        images_client::ImagesClient,
        namespaces_client::NamespacesClient,
        snapshots::{
            MountsRequest, StatSnapshotRequest, StatSnapshotResponse,
            snapshots_client::SnapshotsClient,
        },
    },
    tonic::{Code, Request, Response, Status, metadata::MetadataValue, transport::Channel},
};
use std::{
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use verify::{
    digest::{ConfigDigest, ImageDigest},
    id::ContainerId,
};

/// For everything that one `create` asks; the answers take a few milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// CRI's own records, which no pod can write. A container's has its image's configuration digest.
const CRI_CONTAINER: &str = "io.cri-containerd.container.metadata";
const CRI_SANDBOX: &str = "io.cri-containerd.sandbox.metadata";

/// A connection in one namespace.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    address: PathBuf,
    namespace: MetadataValue<containerd_client::tonic::metadata::Ascii>,
    since: Instant,
}

impl Client {
    pub fn connect(store: &ContainerdRoot, namespace: &str) -> Result<Box<dyn Containerd>> {
        let address = store.address.clone();
        let since = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let connected =
            runtime.block_on(async { tokio::time::timeout(DEADLINE, connect(&address)).await });
        let channel = match connected {
            Ok(connected) => {
                connected.map_err(|error| failed("connect", &address, error.into()))?
            }
            Err(_) => return Err(late("connect", &address)),
        };
        let namespace = MetadataValue::try_from(namespace)
            .with_context(|| format!("`{namespace}` is no namespace of containerd's"))?;
        Ok(Box::new(Self {
            runtime,
            channel,
            address,
            namespace,
            since,
        }))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.clone();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request
    }

    /// The answers of `calls`, which run side by side; `None` for what containerd does not know.
    fn answers<T: Send + 'static>(
        &self,
        step: &str,
        calls: impl IntoIterator<Item = impl Future<Output = Answer<T>> + Send + 'static>,
    ) -> Result<Vec<Option<T>>> {
        let left = DEADLINE.saturating_sub(self.since.elapsed());
        let all = async {
            let running: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
            let mut answers = Vec::with_capacity(running.len());
            for call in running {
                answers.push(match call.await? {
                    Ok(answer) => Some(answer.into_inner()),
                    Err(status) if status.code() == Code::NotFound => None,
                    Err(status) => return Err(failed(step, &self.address, status.into())),
                });
            }
            Ok(answers)
        };
        let timed = async { tokio::time::timeout(left, all).await };
        let answers = self.runtime.block_on(timed);
        answers.unwrap_or_else(|_| Err(late(step, &self.address)))
    }

    fn answer<T: Send + 'static>(
        &self,
        step: &str,
        call: impl Future<Output = Answer<T>> + Send + 'static,
    ) -> Result<Option<T>> {
        Ok(self.answers(step, [call])?.into_iter().next().flatten())
    }

    /// Images.Get.
    fn named(&self, name: &str) -> impl Future<Output = Answer<GetImageResponse>> + Send + use<> {
        let mut images = ImagesClient::new(self.channel.clone());
        let request = self.request(GetImageRequest {
            name: name.to_owned(),
        });
        async move { images.get(request).await }
    }

    /// Images.List.
    fn list(&self, filters: Vec<String>) -> Result<Vec<Image>> {
        let mut images = ImagesClient::new(self.channel.clone());
        let request = self.request(ListImagesRequest { filters });
        let call = async move { images.list(request).await };
        let listed = self.answer("Images.List", call)?;
        Ok(listed.map(|answer| answer.images).unwrap_or_default())
    }

    /// Snapshots.Stat.
    fn info(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> impl Future<Output = Answer<StatSnapshotResponse>> + Send + use<> {
        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        let request = self.request(StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        async move { snapshots.stat(request).await }
    }
}

fn joined<T>(answer: Result<Answer<T>, tokio::task::JoinError>) -> Answer<T> {
    answer.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
}

/// What an image's name stands for.
fn target(answer: Option<GetImageResponse>) -> Result<Option<ImageDigest>> {
    let target = answer.and_then(|answer| answer.image?.target);
    let digest = target.map(|target| target.digest.parse());
    digest.transpose().context("Images.Get: the image's target")
}

type Answer<T> = Result<Response<T>, Status>;

impl Containerd for Client {
    fn container(&self, id: &ContainerId) -> Result<Option<ContainerRecord>> {
        let mut containers = ContainersClient::new(self.channel.clone());
        let request = self.request(GetContainerRequest { id: id.to_string() });
        let call = async move { containers.get(request).await };
        let Some(record) = self
            .answer("Containers.Get", call)?
            .and_then(|answer| answer.container)
        else {
            return Ok(None);
        };
        let cri = match record.extensions.get(CRI_CONTAINER) {
            Some(metadata) => Cri::Container(image_ref(&metadata.value).with_context(|| {
                format!("containerd's record of container {id}: {CRI_CONTAINER}")
            })?),
            None if record.extensions.contains_key(CRI_SANDBOX) => Cri::Sandbox,
            None => Cri::None,
        };
        Ok(Some(ContainerRecord {
            image: record.image,
            snapshotter: record.snapshotter,
            snapshot_key: record.snapshot_key,
            labels: record.labels.into_iter().collect(),
            cri,
        }))
    }

    fn images(&self, names: &[String]) -> Result<Vec<Option<ImageDigest>>> {
        let calls = names.iter().map(|name| self.named(name));
        let answers = self.answers("Images.Get", calls)?;
        answers.into_iter().map(target).collect()
    }

    fn names(&self, target: &ImageDigest) -> Result<Vec<String>> {
        let images = self.list(vec![format!("target.digest=={target}")])?;
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    fn all(&self) -> Result<Vec<(String, ImageDigest)>> {
        let images = self.list(Vec::new())?.into_iter();
        let named = images.filter_map(|image| Some((image.name, image.target?.digest)));
        named
            .map(|(name, digest)| Ok((name, digest.parse().context("Images.List")?)))
            .collect()
    }

    fn namespaces(&self) -> Result<Vec<String>> {
        let mut namespaces = NamespacesClient::new(self.channel.clone());
        let request = self.request(ListNamespacesRequest::default());
        let call = async move { namespaces.list(request).await };
        let listed = self.answer("Namespaces.List", call)?;
        let namespaces = listed.into_iter().flat_map(|answer| answer.namespaces);
        Ok(namespaces.map(|namespace| namespace.name).collect())
    }

    fn snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        image: &str,
    ) -> Result<(Snapshot, Option<ImageDigest>)> {
        // begun here, and answered while the mounts are waited for
        let entered = self.runtime.enter();
        let info = tokio::spawn(self.info(snapshotter, key));
        let named = tokio::spawn(self.named(image));
        drop(entered);
        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        let request = self.request(MountsRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        let mounts = async move { snapshots.mounts(request).await };
        let mounts = self.answer("Snapshots.Mounts", mounts)?;
        let info = self.answer("Snapshots.Stat", async { joined(info.await) })?;
        let named = self.answer("Images.Get", async { joined(named.await) })?;
        let none = || format!("containerd has no snapshot {key}");
        let snapshot = Snapshot {
            parent: info
                .and_then(|answer| answer.info)
                .with_context(none)?
                .parent,
            mounts: mounts
                .with_context(none)?
                .mounts
                .into_iter()
                .map(|mount| ContainerdMount {
                    kind: mount.r#type,
                    source: mount.source.into(),
                    options: mount.options,
                })
                .collect(),
        };
        Ok((snapshot, target(named)?))
    }

    fn parent(&self, snapshotter: &str, key: &str) -> Result<String> {
        let info = self.answer("Snapshots.Stat", self.info(snapshotter, key))?;
        let info = info.and_then(|answer| answer.info);
        Ok(info
            .with_context(|| format!("containerd has no snapshot {key}"))?
            .parent)
    }
}

fn image_ref(metadata: &[u8]) -> Result<ConfigDigest> {
    let json: serde_json::Value = serde_json::from_slice(metadata)?;
    let text = json
        .pointer("/Metadata/ImageRef")
        .and_then(|r| r.as_str())
        .context("it has no ImageRef")?;
    Ok(text.parse()?)
}

fn late(step: &str, address: &Path) -> Error {
    anyhow!(
        "containerd at {0}: {step} was not answered within {1} s; see whether `ctr --address {0} version` answers, and restart containerd if not",
        address.display(),
        DEADLINE.as_secs()
    )
}

fn failed(step: &str, address: &Path, error: Error) -> Error {
    error.context(format!(
        "containerd at {}: {step} failed (does containerd run, and is this its socket in config.toml?)",
        address.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cri_metadata() {
        let digest = ConfigDigest::of(b"config");
        let text = format!(r#"{{"Version":"v1","Metadata":{{"ID":"x","ImageRef":"{digest}"}}}}"#);
        assert_eq!(image_ref(text.as_bytes()).unwrap(), digest);
        assert!(image_ref(b"{}").is_err());
        assert!(image_ref(br#"{"Metadata":{"ImageRef":"busybox"}}"#).is_err());
    }
}
