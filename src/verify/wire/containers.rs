//! Which attested containers run on a host, as the host service says: claims, for who looks after a fleet.

use super::{MAX_REPLY, WireError, bounded, json, malformed};
use crate::{
    digest::{ImageDigest, OrNone, RecordDigest},
    id::{ContainerId, UnixTime},
};
use serde::{Deserialize, Serialize};

/// One running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerFacts {
    pub container: ContainerId,
    pub created: UnixTime,
    pub image: OrNone<ImageDigest>,
    pub mode: String,
    pub tier: String,
    pub record: RecordDigest,
}

/// The answer to [`super::AgentRequest::Containers`], in the order in which they were bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Containers {
    pub containers: Vec<ContainerFacts>,
}

impl Containers {
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        json(self)
    }
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REPLY)?;
        serde_json::from_slice(body).map_err(malformed)
    }
}
