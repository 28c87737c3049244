//! One challenge from nonce to verdict: asks an agent, compares with what is remembered, appraises, and
//! remembers what was proved.
//!
//! Trusts: this machine's clock and random numbers, the challenger's memory and expectations.

use crate::{
    agent::{self, Agent},
    challenge::now,
    key,
    memory::{Kept, Learned, Store},
    report::Refused,
};
use anyhow::Context as _;
use verify::{
    appraise::{Appraisal, Memory, Question, Standard, Trusted, appraise},
    evidence::{Evidence, MEDIA_TYPE},
    id::{ContainerId, Nonce, UnixTime},
    wire::{Challenge, ChannelBinding, Has, MAX_REPLY},
};

/// 160 bits (Guo et al. 2019).
const NONCE_BYTES: usize = 20;

/// Who asks one agent.
pub struct Challenger<'a> {
    pub agent: &'a Agent,
    pub store: &'a Store,
    /// Whether the host's quote may cover other challenges as well.
    pub batch: bool,
    /// Ask for all of the evidence, whatever is remembered: it is to be kept.
    pub whole: bool,
}

/// What the challenger knows of its own question.
#[derive(Debug, Clone)]
pub struct Asked {
    pub nonce: Nonce,
    pub container: ContainerId,
    pub channel: ChannelBinding,
    pub batch: bool,
    pub at: UnixTime,
}

/// An answer, judged.
pub struct Answered {
    pub asked: Asked,
    pub evidence: Evidence,
    pub appraisal: Appraisal,
}

impl Challenger<'_> {
    pub fn challenge(
        &self,
        container: &ContainerId,
        standard: &Standard,
        peers: &[Trusted],
    ) -> anyhow::Result<Answered> {
        let agent = self.agent.to_string();
        // Before the question: what others learn meanwhile is later than its answer may be.
        let before = self.store.snapshot()?;
        let kept = match self.whole {
            true => Kept::default(),
            false => before.kept(&agent, container.as_str())?,
        };
        let (asked, bytes) = ask(self.agent, container, self.batch, kept.has(standard))?;
        let evidence = parse(&bytes, &agent)?;
        let memory = before.memory(&kept, &evidence, standard.expect())?;
        let mut appraisal = judge(&evidence, &asked, standard, peers, &memory);
        if let Some(seen) = appraisal.seen.take() {
            let proved = (seen, appraisal.rolling.take());
            let expect = standard.expect();
            let learned = Learned::new(agent, container, expect, &evidence, &kept, proved);
            self.store.remember(&[learned])?;
        }
        Ok(Answered {
            asked,
            evidence,
            appraisal,
        })
    }
}

/// A fresh nonce, and the answer to it.
pub fn ask(
    agent: &Agent,
    container: &ContainerId,
    batch: bool,
    has: Has,
) -> anyhow::Result<(Asked, Vec<u8>)> {
    let nonce = Nonce::new(key::random::<NONCE_BYTES>()?.to_vec())?;
    let at = now();
    let question = |channel_binding| {
        let challenge = Challenge {
            nonce: nonce.clone(),
            container: container.clone(),
            channel_binding,
            batch,
            has,
        };
        Ok(challenge.encode()?)
    };
    let (bytes, channel) = agent::post(agent, "/v1/challenge", &question, MEDIA_TYPE)?;
    let asked = Asked {
        nonce,
        container: container.clone(),
        channel,
        batch,
        at,
    };
    Ok((asked, bytes))
}

/// Evidence from `source`.
pub fn parse(bytes: &[u8], source: &str) -> anyhow::Result<Evidence> {
    Evidence::parse(bytes, MAX_REPLY)
        .map_err(|e| Refused(e.to_string()))
        .with_context(|| format!("reading the evidence from {source}"))
}

pub fn judge(
    evidence: &Evidence,
    asked: &Asked,
    standard: &Standard,
    peers: &[Trusted],
    memory: &Memory,
) -> Appraisal {
    let channel = asked.channel.bytes();
    let question = Question {
        nonce: &asked.nonce,
        container: &asked.container,
        channel_binding: &channel,
        batch: asked.batch,
        asked_at: asked.at,
    };
    appraise(evidence, &question, standard, now(), peers, memory)
}
