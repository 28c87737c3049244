//! What the agent asks: evidence of one container, who the host is, or which containers run. The agent is believed nothing:
//! all qualifying data is computed here.

use super::core::{Core, Missing};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};
use tpm::host::Root;
use verify::{
    evidence::{Evidence, LogFrom},
    imalog::kernel::MAX_HOST_LIST,
    qualify,
    tpm2::Public,
    wire::{
        self, AgentReply, AgentRequest, Challenge, ContainerFacts, Containers, Failure,
        FailureKind, HostFacts,
    },
};

const PATIENCE: Duration = Duration::from_secs(10);

/// One request and its reply.
pub fn serve(core: &Core, mut agent: UnixStream) -> Result<()> {
    agent.set_read_timeout(Some(PATIENCE))?;
    agent.set_write_timeout(Some(PATIENCE))?;
    let reply = match receive(&mut agent)? {
        Ok(AgentRequest::Challenge(challenge)) => answer(core, &challenge),
        Ok(AgentRequest::Host) => facts(core).map_err(failed),
        Ok(AgentRequest::Containers) => containers(core).map_err(failed),
        Ok(AgentRequest::Endorsement) => core
            .endorsement()
            .and_then(|endorsement| Ok(endorsement.encode()?))
            .map_err(failed),
        Ok(AgentRequest::Activate(credential)) => core
            .activate(&credential)
            .and_then(|activated| Ok(activated.encode()?))
            .map_err(failed),
        Err(error) => Err(Failure {
            kind: FailureKind::BadRequest,
            detail: error.to_string(),
        }),
    };
    let reply = reply.map_or_else(AgentReply::Err, AgentReply::Ok);
    agent
        .write_all(&reply.encode()?)
        .context("the agent does not take its answer")
}

fn receive(agent: &mut UnixStream) -> Result<Result<AgentRequest, wire::WireError>> {
    let mut header = [0; wire::HEADER];
    agent
        .read_exact(&mut header)
        .context("the agent sent no request")?;
    let length = match wire::frame_length(header, wire::MAX_REQUEST) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    let mut body = vec![0; length];
    agent
        .read_exact(&mut body)
        .context("the agent sent half a request")?;
    Ok(AgentRequest::decode(&body))
}

fn answer(core: &Core, challenge: &Challenge) -> Result<Vec<u8>, Failure> {
    let container = &challenge.container;
    let bound = core.find(container).map_err(|missing| match missing {
        Missing::NotFound => Failure {
            kind: FailureKind::NotFound,
            detail: format!("no attested container {container} runs on this host"),
        },
        Missing::Ambiguous => Failure {
            kind: FailureKind::Ambiguous,
            detail: format!("several containers of this host have the id {container}"),
        },
    })?;
    let evidence = || -> Result<Vec<u8>> {
        let binding = &challenge.channel_binding.bytes();
        let (theirs, siglist) = bound
            .quote(qualify::vtpm(&challenge.nonce, container, binding))
            .context("the container's guard")?;
        let bytes = |text: &str| {
            BASE64
                .decode(text)
                .context("the container's guard sent no base64")
        };
        let (attest, signature) = (bytes(&theirs.attest)?, bytes(&theirs.signature)?);
        // the vTPM's quote first: the host's vouches that it was there
        let digest = qualify::vtpm_quote_digest(&attest, &signature);
        let leaf = qualify::host_leaf(&challenge.nonce, container, binding, &digest, &bound.r);
        let (ours, batch) = core.vouch(leaf, challenge.batch)?;
        // read afterwards, it has all that the quote covers
        let host_ima = ima_list()?;
        let evidence = Evidence {
            host_attest: ours.quote.attest.clone(),
            host_sig: ours.quote.signature.clone(),
            host_ak: Public::parse(core.aik_public())?.to_2b(),
            host_pcrs: ours.pcrs.clone(),
            host_root: root(core),
            host_ima,
            container_attest: attest,
            container_sig: signature,
            container_ak: bytes(&theirs.ak)?,
            container_ek: bytes(&theirs.ek)?,
            batch,
            log_from: LogFrom::default(),
            binding: bound.record.canonical()?,
            binding_log: ours.binding_log.clone(),
            container_log: bytes(&theirs.log)?,
            siglist,
            siglist_sig: bytes(&theirs.siglist_signature)?,
        };
        Ok(evidence.encode())
    };
    evidence().map_err(failed)
}

/// The kernel's IMA list; empty where the kernel keeps none.
fn ima_list() -> Result<Vec<u8>> {
    const PATH: &str = "/sys/kernel/security/ima/binary_runtime_measurements";
    let doing = || format!("cannot read the kernel's IMA list {PATH}");
    let file = match File::open(PATH) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.with_context(doing)?,
    };
    let mut list = Vec::new();
    file.take(MAX_HOST_LIST as u64 + 1)
        .read_to_end(&mut list)
        .with_context(doing)?;
    ensure!(
        list.len() <= MAX_HOST_LIST,
        "the kernel's IMA list has more than {MAX_HOST_LIST} bytes: an IMA policy that measures programs alone makes it shorter"
    );
    Ok(list)
}

fn facts(core: &Core) -> Result<Vec<u8>> {
    let link = core.link();
    let facts = HostFacts {
        ak: Public::parse(core.aik_public())?.to_2b(),
        root: root(core),
        binding_pcr_start: core.binding_start(),
        host_boot: link.host_boot,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(facts.encode()?)
}

fn containers(core: &Core) -> Result<Vec<u8>> {
    let facts = core.running().into_iter().map(|bound| {
        let claim = &bound.record.claim;
        ContainerFacts {
            container: claim.container.clone(),
            created: claim.created,
            image: claim.image,
            mode: claim.mode.clone(),
            tier: claim.tier.clone(),
            record: bound.r,
        }
    });
    let containers = Containers {
        containers: facts.collect(),
    };
    Ok(containers.encode()?)
}

fn root(core: &Core) -> wire::Root {
    match core.root() {
        Root::Hardware => wire::Root::Hardware,
        Root::Software => wire::Root::Software,
    }
}

fn failed(error: anyhow::Error) -> Failure {
    Failure {
        kind: FailureKind::Failed,
        detail: format!("{error:#}"),
    }
}
