//! A peer's evidence that was kept, and what the challenger knew when it asked for it: one word of a
//! command line, which `challenge` prints and `appraise` takes.

use super::{Asked, BASE64URL, channel, nonce};
use crate::disk;
use base64::Engine as _;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};
use verify::id::{ContainerId, UnixTime};

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub policy: PathBuf,
    pub evidence: PathBuf,
    pub asked: Asked,
}

impl Kept {
    /// Writes the evidence beside that of the container which was asked about.
    pub fn put(
        beside: &Path,
        number: usize,
        policy: &Path,
        asked: &Asked,
        bytes: &[u8],
    ) -> anyhow::Result<Self> {
        let mut evidence = beside.as_os_str().to_owned();
        evidence.push(format!(".peer-{number}"));
        let evidence = PathBuf::from(evidence);
        disk::replace(&evidence, "the peer's evidence", bytes)?;
        Ok(Self {
            policy: policy.to_owned(),
            evidence,
            asked: asked.clone(),
        })
    }

    /// `key=value`, divided by commas; every key once.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is not of the form key=value"))?;
            if values.insert(key, value).is_some() {
                return Err(format!("`{key}` is given twice"));
            }
        }
        let mut take = |key: &str| values.remove(key).ok_or_else(|| format!("no `{key}`"));
        let kept = Self {
            policy: take("policy")?.into(),
            evidence: take("evidence")?.into(),
            asked: Asked {
                nonce: nonce(take("nonce")?).map_err(|e| format!("nonce: {e}"))?,
                container: ContainerId::parse(take("container")?).map_err(|e| e.to_string())?,
                channel: channel(take("channel-binding")?)?,
                batch: true,
                at: UnixTime::parse(take("asked-at")?).map_err(|e| format!("asked-at: {e}"))?,
            },
        };
        match values.keys().next() {
            Some(key) => Err(format!("`{key}` is not known")),
            None => Ok(kept),
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "container": self.asked.container,
            "policy": self.policy,
            "evidence": self.evidence,
            "nonce": BASE64URL.encode(self.asked.nonce.as_bytes()),
            "asked_at": self.asked.at.to_string(),
            "channel_binding": String::from(self.asked.channel),
        })
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "container={},policy={},evidence={},nonce={},asked-at={},channel-binding={}",
            self.asked.container,
            self.policy.display(),
            self.evidence.display(),
            BASE64URL.encode(self.asked.nonce.as_bytes()),
            self.asked.at,
            String::from(self.asked.channel)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "container=c1,policy=p.toml,evidence=e.peer-1,nonce=-CiTwwaUUyRGRER-zLL68cykB5c,\
                        asked-at=2026-11-23T15:00:00Z,channel-binding=none";

    #[test]
    fn what_is_printed_is_what_is_taken() {
        let kept = Kept::parse(GOOD).unwrap();
        assert_eq!(kept.to_string(), GOOD);
        assert_eq!(kept.json()["evidence"], "e.peer-1");
    }

    #[test]
    fn refuse_what_is_incomplete_or_more() {
        for key in [
            "container",
            "policy",
            "evidence",
            "nonce",
            "asked-at",
            "channel-binding",
        ] {
            let without: Vec<_> = GOOD.split(',').filter(|p| !p.starts_with(key)).collect();
            let why = Kept::parse(&without.join(",")).unwrap_err();
            assert!(why.contains(key), "{why}");
        }
        for (more, why) in [
            (",policy=q", "twice"),
            (",x=y", "not known"),
            (",x", "key=value"),
        ] {
            let told = Kept::parse(&format!("{GOOD}{more}")).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
    }
}
