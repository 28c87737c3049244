//! `attestctl challenge` and `appraise`: ask a host about a container, and judge the answer.
//!
//! Trusts: the policy file, its user CAs, this machine's clock and random numbers. The nonce is used
//! once and lives as long as the challenge; `appraise` is for evidence that was kept, and demands again
//! what the challenger knew when it asked.

mod kept; // evidence in files, and what was asked for it

use crate::{
    agent::AgentArgs,
    challenger::{self, Answered, Asked, Challenger},
    disk, ear,
    key::SigningKey,
    memory::Store,
    page,
    report::{Report, Style, Usage},
    verdict,
};
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use clap::Args;
use kept::Kept;
use std::{
    fmt,
    path::{Path, PathBuf},
};
use verify::{
    appraise::{
        Appraisal, Expectations, Memory, RevocationCheck, Standard, Trust, Trusted, Verdict,
    },
    cms,
    evidence::Evidence,
    hostlist::HostPolicy,
    id::{ContainerId, Nonce, UnixTime},
    wire::{ChannelBinding, MAX_REPLY},
};

/// Where the challenger's expectations are.
#[derive(Args)]
pub struct ExpectedArgs {
    /// What is expected of host and container (TOML)
    #[arg(long)]
    policy: PathBuf,
    /// Further [[hosts]], as `attestctl enroll` pins them
    #[arg(long)]
    inventory: Option<PathBuf>,
}

#[derive(Args)]
pub struct Challenge {
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    expected: ExpectedArgs,
    /// What earlier answers said, to compare with; made if absent [default: the policy's name, ending in
    /// .memory]
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Insist on a quote of the host for this challenge alone
    #[arg(long)]
    no_batch: bool,
    /// Write the verdict as an HTML page
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the verdict as a signed token (EAR, a JWT), good for `max_age_secs`
    #[arg(long, value_name = "FILE", requires = "ear_key")]
    ear: Option<PathBuf>,
    /// The key that signs it (ECDSA P-256, PEM)
    #[arg(long, value_name = "FILE", requires = "ear")]
    ear_key: Option<PathBuf>,
    /// The relying party's nonce, to be in the token [default: the challenge's]
    #[arg(long, value_name = "TEXT", requires = "ear", value_parser = relying_nonce, allow_hyphen_values = true)]
    ear_nonce: Option<String>,
    /// Keep the evidence in this file; that of peers in FILE.peer-1 and so on
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// A container whose namespaces this one joins, and the policy that it must meet; asked first, in
    /// this order. May be given several times
    #[arg(long, value_name = "ID=POLICY", value_parser = peer, allow_hyphen_values = true)]
    peer: Vec<(String, PathBuf)>,
    /// The container's full id, as its engine gave it to the runtime
    container: String,
}

#[derive(Args)]
pub struct Appraise {
    /// Evidence kept by `attestctl challenge --save`
    evidence: PathBuf,
    #[command(flatten)]
    expected: ExpectedArgs,
    // one nonce in 64 begins with `-`, and so may a container's id
    /// The nonce of that challenge (base64url, as `challenge` printed it)
    #[arg(long, allow_hyphen_values = true)]
    nonce: String,
    /// The container that was asked about
    #[arg(long, allow_hyphen_values = true)]
    container: String,
    /// When it was asked (RFC 3339, as `challenge` printed it)
    #[arg(long)]
    asked_at: String,
    /// What tied it to a TLS connection, as `challenge` printed it
    #[arg(long, value_parser = channel, default_value = "none")]
    channel_binding: ChannelBinding,
    /// A container whose namespaces this one joins, as `challenge` printed it: its policy, kept evidence,
    /// and what was asked. May be given several times, in the same order
    #[arg(long, value_parser = Kept::parse, allow_hyphen_values = true, value_name =
        "container=ID,policy=FILE,evidence=FILE,nonce=NONCE,asked-at=TIME,channel-binding=BINDING")]
    peer: Vec<Kept>,
}

fn channel(text: &str) -> Result<ChannelBinding, String> {
    ChannelBinding::try_from(text.to_owned())
}

/// `ID=POLICY`; an id has no `=`.
fn peer(text: &str) -> Result<(String, PathBuf), String> {
    let (id, policy) = text.split_once('=').ok_or("not ID=POLICY")?;
    Ok((id.to_owned(), policy.into()))
}

pub fn challenge(args: &Challenge, style: Style) -> anyhow::Result<Report> {
    asked(args, style).map(|(report, _)| report)
}

/// What the verdict is, and, if it is accepted, the witness of it.
pub fn asked(args: &Challenge, style: Style) -> anyhow::Result<(Report, Option<Trusted>)> {
    // Everything that can be wrong on this side comes before a nonce is spent.
    let agent = args.agent.agent()?;
    let inventory = args.expected.inventory.as_deref();
    let policy = standard(&args.expected.policy, inventory)?;
    let peers = args.peer.iter().map(|(id, file)| {
        let policy = standard(file, inventory)?;
        Ok((container(id)?, policy))
    });
    let peers: Vec<_> = peers.collect::<anyhow::Result<_>>()?;
    let container = container(&args.container)?;
    let ear_key = args.ear_key.as_deref().map(SigningKey::read).transpose()?;
    let memory = args.memory.clone();
    let store =
        Store::open(&memory.unwrap_or_else(|| args.expected.policy.with_extension("memory")))?;
    let challenger = Challenger {
        agent: &agent,
        store: &store,
        batch: !args.no_batch,
        whole: args.save.is_some(),
    };
    let (mut accepted, mut kept) = (Vec::new(), Vec::new());
    for (number, (peer, policy)) in peers.iter().enumerate() {
        let answered = challenger.challenge(peer, policy, &accepted)?;
        if let (Some(path), Some((_, file))) = (&args.save, args.peer.get(number)) {
            let (asked, bytes) = (&answered.asked, answered.evidence.encode());
            kept.push(Kept::put(path, number + 1, file, asked, &bytes)?);
        }
        match answered.appraisal.verdict {
            Verdict::Accepted(trusted) => accepted.push(trusted),
            Verdict::Refused | Verdict::Unknown => {
                let mut report = verdict::report(&answered.appraisal, style);
                report.add("peer", peer.as_str());
                return Ok((report, None));
            }
        }
    }
    let Answered {
        asked,
        evidence,
        appraisal,
    } = challenger.challenge(&container, &policy, &accepted)?;
    if let Some(path) = &args.save {
        disk::replace(path, "the evidence", &evidence.encode())?;
    }
    args.write(&asked, &appraisal, policy.expect(), ear_key.as_ref())?;
    let mut report = verdict::report(&appraisal, style);
    report.add("nonce", BASE64URL.encode(asked.nonce.as_bytes()));
    report.add("asked_at", asked.at.to_string());
    report.add("channel_binding", String::from(asked.channel));
    if let Some(path) = &args.save {
        report.add("evidence", path.display().to_string());
        report.add("peers", kept.iter().map(Kept::json).collect::<Vec<_>>());
        let peers: String = kept.iter().map(|peer| format!(" --peer {peer}")).collect();
        report.text.push_str(&format!(
            "\nkept; judge it again, not later than {} s after asking, with\n  attestctl appraise {} {} --container {} --nonce {} --asked-at {} --channel-binding {}{peers}",
            policy.expect().max_age_secs,
            path.display(),
            args.expected,
            asked.container,
            BASE64URL.encode(asked.nonce.as_bytes()),
            asked.at,
            String::from(asked.channel)
        ));
    }
    let trusted = match appraisal.verdict {
        Verdict::Accepted(trusted) => Some(trusted),
        Verdict::Refused | Verdict::Unknown => None,
    };
    Ok((report, trusted))
}

impl Challenge {
    /// The verdict for others: a page for people, a token for programs.
    fn write(
        &self,
        asked: &Asked,
        appraisal: &Appraisal,
        expect: &Expectations,
        key: Option<&SigningKey>,
    ) -> anyhow::Result<()> {
        let nonce = BASE64URL.encode(asked.nonce.as_bytes());
        if let Some(path) = &self.report {
            let facts = [
                ("asked at", asked.at.to_string()),
                ("nonce", nonce.clone()),
                ("bound to", String::from(asked.channel)),
                ("expectations", self.expected.policy.display().to_string()),
            ];
            let page = page::html(appraisal, &facts);
            disk::replace(path, "the report", page.as_bytes())?;
        }
        // The grammar demands both or none.
        if let (Some(path), Some(key)) = (&self.ear, key) {
            let nonce = self.ear_nonce.as_ref().unwrap_or(&nonce);
            let token = ear::token(appraisal, asked, nonce, expect.max_age_secs, key)?;
            disk::replace(path, "the result", token.as_bytes())?;
        }
        Ok(())
    }
}

/// RFC 9711, section 4.1: 8 to 88 bytes in JSON.
fn relying_nonce(text: &str) -> Result<String, String> {
    match (8..=88).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err(format!("{} bytes; a token's nonce has 8 to 88", text.len())),
    }
}

pub fn appraise_file(args: &Appraise, style: Style) -> anyhow::Result<Report> {
    Ok(match judge_kept(args, style)? {
        Judged::Accepted(_, report) | Judged::Not(report) => report,
    })
}

/// What became of kept evidence.
pub enum Judged {
    Accepted(Box<Accepted>, Report),
    /// It, or a peer's, was refused or could not be judged.
    Not(Report),
}

/// Kept evidence that was appraised and accepted.
pub struct Accepted {
    evidence: Evidence,
    asked: Asked,
    _trusted: Trusted,
}

impl Accepted {
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }
    pub fn asked(&self) -> &Asked {
        &self.asked
    }
}

pub fn judge_kept(args: &Appraise, style: Style) -> anyhow::Result<Judged> {
    let policy = standard(&args.expected.policy, args.expected.inventory.as_deref())?;
    let asked = Asked {
        nonce: nonce(&args.nonce).map_err(|e| Usage(format!("--nonce: {e}")))?,
        container: container(&args.container)?,
        channel: args.channel_binding,
        batch: true,
        at: UnixTime::parse(&args.asked_at).map_err(|e| Usage(format!("--asked-at: {e}")))?,
    };
    let mut accepted = Vec::new();
    for peer in &args.peer {
        let policy = standard(&peer.policy, args.expected.inventory.as_deref())?;
        let (_, appraisal) = judge_file(&peer.evidence, &peer.asked, &policy, &accepted)?;
        match appraisal.verdict {
            Verdict::Accepted(trusted) => accepted.push(trusted),
            Verdict::Refused | Verdict::Unknown => {
                let mut report = verdict::report(&appraisal, style);
                report.add("peer", peer.asked.container.as_str());
                return Ok(Judged::Not(report));
            }
        }
    }
    let (evidence, appraisal) = judge_file(&args.evidence, &asked, &policy, &accepted)?;
    let report = verdict::report(&appraisal, style);
    Ok(match appraisal.verdict {
        Verdict::Refused | Verdict::Unknown => Judged::Not(report),
        Verdict::Accepted(trusted) => {
            let accepted = Accepted {
                evidence,
                asked,
                _trusted: trusted,
            };
            Judged::Accepted(Box::new(accepted), report)
        }
    })
}

fn nonce(text: &str) -> Result<Nonce, String> {
    let bytes = BASE64URL
        .decode(text)
        .map_err(|e| format!("not base64url without padding: {e}"))?;
    Nonce::new(bytes).map_err(|e| e.to_string())
}

fn judge_file(
    path: &Path,
    asked: &Asked,
    standard: &Standard,
    peers: &[Trusted],
) -> anyhow::Result<(Evidence, Appraisal)> {
    let bytes = disk::read(path, "the evidence", MAX_REPLY as u64)?;
    let evidence = challenger::parse(&bytes, &path.display().to_string())?;
    let appraisal = challenger::judge(&evidence, asked, standard, peers, &Memory::Kept);
    Ok((evidence, appraisal))
}

/// What the challenger expects, and the bytes behind the files that it names.
pub fn standard(path: &Path, inventory: Option<&Path>) -> anyhow::Result<Standard> {
    let mut text = disk::read_text(path, "the challenger's policy")?;
    if let Some(file) = inventory {
        let hosts = disk::read_text(file, "the inventory")?;
        text = with_hosts(&text, &hosts).with_context(|| {
            format!(
                "adding the hosts of {} to {}",
                file.display(),
                path.display()
            )
        })?;
    }
    let expect = Expectations::parse(&text)
        .with_context(|| format!("reading the challenger's policy {}", path.display()))?;
    let mut user_roots = Vec::new();
    for file in &expect.user_ca {
        // Relative to the policy, so that the two can travel together.
        let file = beside(path, file);
        let pem = disk::read(&file, "the user CA", disk::SMALL)?;
        let roots = cms::certificates_from_pem(&pem)
            .with_context(|| format!("reading the user CA {}", file.display()))?;
        user_roots.extend(roots);
    }
    let mut crls = Vec::new();
    if expect.revocation == RevocationCheck::Crl {
        for file in &expect.crls {
            crls.push(disk::read_crl(&beside(path, file))?);
        }
    }
    let host_policy = match &expect.host_policy {
        None => None,
        Some(file) => {
            let file = beside(path, file);
            let text = disk::read(&file, "the host policy", disk::LARGE)?;
            let text = std::str::from_utf8(&text).context("the host policy is not text")?;
            let policy = HostPolicy::parse(text);
            Some(policy.with_context(|| format!("reading {}", file.display()))?)
        }
    };
    let trust = Trust {
        user_roots,
        crls,
        host_policy,
    };
    Ok(Standard::new(expect, trust))
}

/// `policy` with the [[hosts]] of `inventory`, which may hold nothing else: it is written by
/// enrolment, and enrolment decides nothing but who a host is.
fn with_hosts(policy: &str, inventory: &str) -> anyhow::Result<String> {
    let mut policy: toml::Table = toml::from_str(policy).context("the policy is not TOML")?;
    let mut inventory: toml::Table =
        toml::from_str(inventory).context("the inventory is not TOML")?;
    let Some(toml::Value::Array(more)) = inventory.remove("hosts") else {
        bail!("the inventory has no [[hosts]]; add one with attestctl enroll");
    };
    if let Some(key) = inventory.keys().next() {
        bail!("the inventory has a key `{key}`; it holds [[hosts]] alone");
    }
    match policy
        .entry("hosts")
        .or_insert_with(|| toml::Value::Array(Vec::new()))
    {
        toml::Value::Array(hosts) => hosts.extend(more),
        _ => bail!("the policy's `hosts` is not a list of [[hosts]] tables"),
    }
    toml::to_string(&policy).context("writing the policy with the inventory's hosts")
}

impl fmt::Display for ExpectedArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--policy {}", self.policy.display())?;
        match &self.inventory {
            Some(file) => write!(f, " --inventory {}", file.display()),
            None => Ok(()),
        }
    }
}

fn beside(policy: &Path, file: &Path) -> PathBuf {
    policy.parent().unwrap_or(Path::new("")).join(file)
}

fn container(text: &str) -> anyhow::Result<ContainerId> {
    ContainerId::parse(text).map_err(|e| Usage(e.to_string()).into())
}

pub fn now() -> UnixTime {
    UnixTime::from_secs(chrono::Utc::now().timestamp())
}

#[cfg(test)]
mod tests;
