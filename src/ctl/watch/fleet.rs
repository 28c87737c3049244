//! The fleet file: which agents are asked about which containers, and what is expected of them.

use crate::{
    agent::{self, Agent, AgentArgs},
    challenge, disk,
};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use verify::{
    appraise::Standard,
    id::ContainerId,
    wire::{ContainerFacts, Containers},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    policy: PathBuf,
    inventory: Option<PathBuf>,
    agent_ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default)]
    agents: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: Option<String>,
    socket: Option<PathBuf>,
    containers: Asked,
    policy: Option<PathBuf>,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Asked {
    All(All),
    These(Vec<String>),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum All {
    All,
}

/// One agent, and what is expected of its containers.
pub struct Member {
    pub agent: Agent,
    pub name: String,
    pub standard: Arc<Standard>,
    /// None: all that the agent names.
    containers: Option<Vec<ContainerId>>,
}

impl Member {
    /// The containers to ask about; their agent knows them, unless they are named.
    pub fn containers(&self) -> anyhow::Result<Vec<ContainerId>> {
        if let Some(named) = &self.containers {
            return Ok(named.clone());
        }
        let body = agent::get(&self.agent, "/v1/containers", "application/json")?;
        let all = Containers::parse(&body).context("reading the list of containers")?;
        let id = |facts: ContainerFacts| facts.container;
        Ok(all.containers.into_iter().map(id).collect())
    }
}

/// Reads the file and all that it names.
pub fn read(path: &Path) -> anyhow::Result<Vec<Member>> {
    let bytes = disk::read(path, "the fleet file", disk::LARGE)?;
    let text = String::from_utf8(bytes).context("the fleet file is not text")?;
    let members = parse(path, &text);
    members.with_context(|| format!("reading the fleet file {}", path.display()))
}

fn parse(path: &Path, text: &str) -> anyhow::Result<Vec<Member>> {
    let file: File = toml::from_str(text)?;
    if file.agents.is_empty() {
        bail!("it has no [[agents]], so nobody would be asked");
    }
    let beside = |file: &PathBuf| path.parent().unwrap_or(Path::new("")).join(file);
    let inventory = file.inventory.as_ref().map(beside);
    let mut standards: HashMap<PathBuf, Arc<Standard>> = HashMap::new();
    let mut members: Vec<Member> = Vec::new();
    for entry in file.agents {
        let policy = beside(entry.policy.as_ref().unwrap_or(&file.policy));
        let standard = match standards.get(&policy) {
            Some(standard) => standard.clone(),
            None => Arc::new(challenge::standard(&policy, inventory.as_deref())?),
        };
        standards.insert(policy, standard.clone());
        let [ca, cert, key] =
            [&file.agent_ca, &file.cert, &file.key].map(|f| f.as_ref().map(beside));
        let agent = match (entry.url, &entry.socket, ca, cert, key) {
            (Some(url), None, Some(ca), Some(cert), Some(key)) => {
                AgentArgs::remote(url, ca, cert, key).agent()?
            }
            (None, Some(socket), ..) => Agent::Local(beside(socket)),
            (Some(url), None, ..) => bail!("{url} is asked with agent_ca, cert and key"),
            _ => bail!("each of [[agents]] has either a url or a socket"),
        };
        let name = agent.to_string();
        if members.iter().any(|member| member.name == name) {
            bail!("{name} is there twice");
        }
        let containers = match entry.containers {
            Asked::All(All::All) => None,
            Asked::These(ids) if ids.is_empty() => bail!("{name}: `containers` is empty"),
            Asked::These(ids) => Some(
                ids.iter()
                    .map(|id| ContainerId::parse(id).with_context(|| format!("container `{id}`")))
                    .collect::<anyhow::Result<_>>()?,
            ),
        };
        members.push(Member {
            agent,
            name,
            standard,
            containers,
        });
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuse_fleets_that_say_too_little_or_too_much() {
        for (text, says) in [
            ("policy = \"p\"\n", "[[agents]]"),
            ("agents = []\n", "policy"),
            ("policy = \"p\"\nmore = 1\n", "more"),
            ("policy = \"p\"\n[[agents]]\nsocket = \"s\"\n", "containers"),
        ] {
            let error = parse(Path::new("fleet.toml"), text).map(drop).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
        }
    }
}
