//! The one network connection of attestrun: containerd's local socket, asked for a container's record
//! and its snapshot. Four calls that do not wait for the container; each has a deadline.

use anyhow::{Context, Result};
use containerd_client::{
    connect,
    services::v1::{
        GetContainerRequest, GetImageRequest,
        containers_client::ContainersClient,
        images_client::ImagesClient,
        snapshots::{MountsRequest, StatSnapshotRequest, snapshots_client::SnapshotsClient},
    },
    tonic::{Request, metadata::MetadataValue},
};
use content::store::{ContainerdAnswer, ContainerdMount, ContainerdQuery};
use std::{future::Future, time::Duration};
use verify::digest::ConfigDigest;

const DEADLINE: Duration = Duration::from_secs(10);

/// CRI's own record of a container, whose `ImageRef` is the image's configuration digest.
const CRI_METADATA: &str = "io.cri-containerd.container.metadata";

pub fn ask(query: &ContainerdQuery) -> Result<ContainerdAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(record(query)).with_context(|| {
        format!(
            "containerd {} does not tell the image of container {}",
            query.address.display(),
            query.container
        )
    })
}

async fn record(query: &ContainerdQuery) -> Result<ContainerdAnswer> {
    let channel = in_time("connect", connect(&query.address)).await?;
    let within = |step| Step {
        step,
        namespace: &query.namespace,
    };

    let request = within("Containers.Get").request(GetContainerRequest {
        id: query.container.clone(),
    })?;
    let mut containers = ContainersClient::new(channel.clone());
    let container = in_time("Containers.Get", containers.get(request))
        .await?
        .into_inner()
        .container;
    let container = container.context("Containers.Get: no record")?;

    let request = within("Images.Get").request(GetImageRequest {
        name: container.image.clone(),
    })?;
    let mut images = ImagesClient::new(channel.clone());
    let image = in_time("Images.Get", images.get(request))
        .await?
        .into_inner()
        .image;
    let target = image
        .and_then(|image| image.target)
        .context("Images.Get: no target")?
        .digest;

    let (snapshotter, key) = (container.snapshotter, container.snapshot_key);
    let mut snapshots = SnapshotsClient::new(channel);
    let stat = StatSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
    };
    let info = in_time(
        "Snapshots.Stat",
        snapshots.stat(within("Snapshots.Stat").request(stat)?),
    )
    .await?
    .into_inner()
    .info;
    let parent = info.context("Snapshots.Stat: no info")?.parent;

    let mounts = MountsRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
    };
    let mounts = in_time(
        "Snapshots.Mounts",
        snapshots.mounts(within("Snapshots.Mounts").request(mounts)?),
    )
    .await?
    .into_inner()
    .mounts;

    let cri_image_ref = match container.extensions.get(CRI_METADATA) {
        Some(metadata) => Some(image_ref(&metadata.value).context(CRI_METADATA)?),
        None => None,
    };
    Ok(ContainerdAnswer {
        image_name: container.image,
        target: target.parse().context("the image's target")?,
        snapshotter,
        snapshot_key: key,
        parent: if parent.is_empty() {
            None
        } else {
            Some(parent.parse().context("the snapshot's parent")?)
        },
        mounts: mounts
            .into_iter()
            .map(|m| ContainerdMount {
                kind: m.r#type,
                source: m.source.into(),
                options: m.options,
            })
            .collect(),
        labels: container.labels.into_iter().collect(),
        cri_image_ref,
    })
}

fn image_ref(metadata: &[u8]) -> Result<ConfigDigest> {
    let json: serde_json::Value = serde_json::from_slice(metadata)?;
    let text = json
        .pointer("/Metadata/ImageRef")
        .and_then(|r| r.as_str())
        .context("it has no ImageRef")?;
    Ok(text.parse()?)
}

struct Step<'a> {
    step: &'static str,
    namespace: &'a str,
}

impl Step<'_> {
    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let namespace = MetadataValue::try_from(self.namespace)
            .with_context(|| format!("{}: `{}` is no namespace", self.step, self.namespace))?;
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        Ok(request)
    }
}

async fn in_time<T, E: Into<anyhow::Error>>(
    step: &'static str,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map_err(Into::into).with_context(|| step.to_owned()),
        Err(_) => anyhow::bail!("{step}: no answer within {} s", DEADLINE.as_secs()),
    }
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
