//! Everything that the checks look at, taken from evidence once; what cannot be had says why.

use super::known::{ListQuestion, Signed};
use super::log::ContainerLog;
use super::rolling::{BindingLog, Continued, Standard, applicable};
use super::{Expectations, Memory, PinnedHost, Problem, Trusted};
use crate::binding::{self, Record};
use crate::check::Subject;
use crate::cms::verify_detached;
use crate::digest::{ImageDigest, RecordDigest};
use crate::event;
use crate::evidence::{Evidence, list_digest};
use crate::growing::Growing;
use crate::hostlist::HostPolicy;
use crate::id::{ContainerId, Nonce, UnixTime};
use crate::imalog::ParseError;
use crate::imalog::kernel::{HostEntry, parse_host};
use crate::pcr::{HOST_QUOTED, QUOTED};
use crate::profile::Peer;
use crate::qualify;
use crate::release::Recipient;
use crate::siglist::{ListRule, VerifiedList, verify_list};
use crate::tpm2::{
    AttestationKey, EndorsementKey, KeyRefusal, Malformed, Public, QuoteError, QuotedPcrs,
    VerifiedQuote, verify_quote,
};
use std::sync::Arc;

/// What was asked, and when.
pub(super) struct Challenge<'a> {
    pub nonce: &'a Nonce,
    pub container: &'a ContainerId,
    pub channel_binding: &'a [u8],
    pub batch: bool,
    pub now: UnixTime,
    pub asked_at: UnixTime,
    /// Containers that the challenger has accepted just now.
    pub peers: &'a [Trusted],
    pub memory: &'a Memory,
}

impl Challenge<'_> {
    pub fn accepted(&self, peer: &Peer) -> bool {
        let is =
            |one: &Trusted| (*one.container() == peer.container) && one.record() == peer.record;
        self.peers.iter().any(is)
    }
}

/// One quote with its key.
pub(super) struct Quoted {
    pub public: Result<Public, Malformed>,
    /// None: the public area did not parse.
    pub key: Option<Result<AttestationKey, KeyRefusal>>,
    /// None: there is no key to check it with.
    pub quote: Option<Result<VerifiedQuote, Vec<QuoteError>>>,
    /// None: there is no verified quote, or no values.
    pub pcrs: Option<Result<QuotedPcrs, QuoteError>>,
}

impl Quoted {
    fn of(
        public: &[u8],
        verify: impl FnOnce(&AttestationKey) -> Result<VerifiedQuote, Vec<QuoteError>>,
    ) -> Self {
        let public = Public::parse_2b(public);
        let key = public.as_ref().ok().map(AttestationKey::check);
        let quote = match &key {
            Some(Ok(key)) => Some(verify(key)),
            Some(Err(_)) | None => None,
        };
        Self {
            public,
            key,
            quote,
            pcrs: None,
        }
    }
    fn explain(&mut self, values: Option<&[[u8; 32]]>) {
        self.pcrs = match (&self.quote, values) {
            (Some(Ok(quote)), Some(values)) => Some(quote.explains(values)),
            _ => None,
        };
    }
    /// The quote, once everything but its PCR values is proved.
    pub fn verified(&self) -> Option<&VerifiedQuote> {
        self.quote.as_ref()?.as_ref().ok()
    }
    /// The quoted values.
    pub fn values(&self) -> Option<&QuotedPcrs> {
        self.pcrs.as_ref()?.as_ref().ok()
    }
}

pub(super) struct Facts<'a> {
    pub evidence: &'a Evidence,
    pub challenge: &'a Challenge<'a>,
    pub standard: &'a Standard,
    pub expect: &'a Expectations,
    pub host_policy: Option<&'a HostPolicy>,
    /// What is remembered of the beginnings of the logs.
    pub earlier: Continued<'a>,
    /// How far binding log and container's log are known by now.
    read: [Growing; 2],
    pub host: Quoted,
    pub container: Quoted,
    pub ek: Result<Result<EndorsementKey, KeyRefusal>, Malformed>,
    pub record: Result<Record, String>,
    /// Of the record's bytes, whether they parse or not.
    pub r: RecordDigest,
    pub binding_log: Result<BindingLog<'a>, String>,
    /// What is here of the host's IMA list.
    pub ima: Result<Vec<HostEntry>, ParseError>,
    pub log: Result<ContainerLog, ParseError>,
    pub signed: Arc<Signed>,
}

impl<'a> Facts<'a> {
    pub fn gather(
        evidence: &'a Evidence,
        challenge: &'a Challenge<'a>,
        standard: &'a Standard,
    ) -> Self {
        let (expect, trust) = (standard.expect(), standard.trust());
        let (nonce, id, channel) = (
            challenge.nonce,
            challenge.container,
            challenge.channel_binding,
        );
        let r = evidence.record_digest();
        let record = match evidence.binding.len() {
            32 => {
                Err("only the binding record's digest is here: the record is for its owner".into())
            }
            _ => Record::parse(&evidence.binding).map_err(|e| e.to_string()),
        };

        // The vTPM's quote, explained by the container's log from zero.
        let qd = qualify::vtpm(nonce, id, channel);
        let (attest, sig) = (&evidence.container_attest, &evidence.container_sig);
        let mut container = Quoted::of(&evidence.container_ak, |key| {
            verify_quote(key, attest, sig, &qd, &QUOTED)
        });
        let names = [&evidence.host_ak, &evidence.container_ak];
        let names = names.map(|key| Public::parse_2b(key).ok().map(|key| key.name()));
        let rolling = challenge.memory.rolling();
        let earlier = applicable(rolling, standard, evidence, names);
        let log = match earlier.log {
            None => ContainerLog::parse(&evidence.container_log),
            Some(earlier) => earlier.log.clone().continued(&evidence.container_log),
        };
        let values = log.as_ref().ok().map(|log| log.replay.of(&QUOTED));
        container.explain(values.as_deref());

        // The host's quote over it, over the record, and over the values that the host reports.
        let digest = qualify::vtpm_quote_digest(attest, sig);
        let leaf = qualify::host_leaf(nonce, id, channel, &digest, &r);
        let qd = evidence.batch.root_of(&leaf);
        let (attest, sig) = (&evidence.host_attest, &evidence.host_sig);
        let mut host = Quoted::of(&evidence.host_ak, |key| {
            let asked = [&evidence.host_ak[..], attest, sig, &qd];
            let verify = || verify_quote(key, attest, sig, &qd, &HOST_QUOTED);
            standard.known().quote(asked, verify)
        });
        host.explain(Some(&evidence.host_pcrs.0));

        let image = record.as_ref().ok();
        let image = image.and_then(|record| record.claim.image.digest().copied());
        let signed = signed(evidence, challenge, standard, image);

        let entries = binding::parse_log(&evidence.binding_log).map_err(|e| e.to_string());
        let read = [
            go_on(earlier.binding.map(|log| &log.read), &evidence.binding_log),
            go_on(earlier.log.map(|log| &log.read), &evidence.container_log),
        ];
        Self {
            evidence,
            challenge,
            standard,
            expect,
            host_policy: trust.host_policy.as_ref(),
            read,
            host,
            container,
            ek: Public::parse_2b(&evidence.container_ek)
                .map(|public| EndorsementKey::check(&public)),
            record,
            r,
            binding_log: entries.map(|entries| BindingLog {
                earlier: earlier.binding,
                entries,
            }),
            ima: parse_host(&evidence.host_ima),
            earlier,
            log,
            signed,
        }
    }

    pub fn record(&self) -> Result<&Record, Problem> {
        self.record
            .as_ref()
            .map_err(|_| Problem::Unknown("the binding record does not parse".into()))
    }
    pub fn binding_log(&self) -> Result<&BindingLog<'a>, Problem> {
        let log = self.binding_log.as_ref();
        log.map_err(|_| Problem::Unknown("the binding log does not parse".into()))
    }
    /// How far the log behind that TPM's PCRs is known by now.
    pub fn read(&self, subject: Subject) -> &Growing {
        let [host, container] = &self.read;
        match subject {
            Subject::Host => host,
            Subject::Container => container,
        }
    }
    pub fn log(&self) -> Result<&ContainerLog, Problem> {
        self.log
            .as_ref()
            .map_err(|_| Problem::Unknown("the container's log does not parse".into()))
    }
    pub fn list(&self) -> Result<&VerifiedList, Problem> {
        match &self.signed.list {
            Some(Ok(list)) => Ok(list),
            _ => Err(Problem::Unknown(
                "there is no verified signature list".into(),
            )),
        }
    }
    pub fn host_public(&self) -> Result<&Public, Problem> {
        let why = || Problem::Unknown("the host's attestation key does not parse".into());
        self.host.public.as_ref().map_err(|_| why())
    }
    pub fn vtpm_public(&self) -> Result<&Public, Problem> {
        let why = || Problem::Unknown("the vTPM's attestation key does not parse".into());
        self.container.public.as_ref().map_err(|_| why())
    }
    pub fn host_quote(&self) -> Result<&VerifiedQuote, Problem> {
        self.host
            .verified()
            .ok_or_else(|| Problem::Unknown("the host's quote is not verified".into()))
    }
    pub fn vtpm_quote(&self) -> Result<&VerifiedQuote, Problem> {
        self.container
            .verified()
            .ok_or_else(|| Problem::Unknown("the vTPM's quote is not verified".into()))
    }
    /// The pin of the host whose key evidence shows.
    pub fn pin(&self) -> Result<&PinnedHost, Problem> {
        let name = self.host_public()?.name();
        self.expect
            .host(&name)
            .ok_or_else(|| Problem::Unknown(format!("host key {name} is not pinned")))
    }
    /// The vTPM that the quote is from, if its endorsement key is one.
    pub fn recipient(&self) -> Option<Recipient> {
        match &self.ek {
            Ok(Ok(ek)) => Recipient::of(ek, self.container.values()?),
            _ => None,
        }
    }
    pub fn measured_image(&self) -> Result<&event::Image, Problem> {
        self.log()?.one("attestrun.image", |event| match event {
            event::Event::Image(image) => Some(image),
            _ => None,
        })
    }
}

fn go_on(earlier: Option<&Growing>, more: &[u8]) -> Growing {
    let mut read = earlier.cloned().unwrap_or_default();
    read.add(more);
    read
}

/// The list that is here, or that the challenger has, and its signature.
fn signed(
    evidence: &Evidence,
    challenge: &Challenge<'_>,
    standard: &Standard,
    image: Option<ImageDigest>,
) -> Arc<Signed> {
    let kept = challenge.memory.siglist();
    let kept = kept.filter(|_| evidence.log_from.siglist);
    let (bytes, signature, list) = match kept {
        Some(kept) => (kept.statement(), kept.signature(), kept.digest()),
        None => {
            let (bytes, signature) = (&evidence.siglist[..], &evidence.siglist_sig[..]);
            (bytes, signature, list_digest(bytes, signature))
        }
    };
    let (expect, roots, now) = (
        standard.expect(),
        &standard.trust().user_roots,
        challenge.now,
    );
    let rule = ListRule {
        roots,
        tenant: &expect.tenant,
        name: &expect.list.name,
        min_serial: expect.list.min_serial.max(challenge.memory.list_serial()),
        revocation: standard.revocation(),
    };
    let asked = ListQuestion {
        list,
        image,
        min_serial: rule.min_serial,
        now,
    };
    standard.known().list(asked, || Signed {
        signer: verify_detached(bytes, signature, roots, now, rule.revocation),
        list: image.map(|image| verify_list(bytes, signature, &rule, &[image], now)),
    })
}
