//! Evidence: the answer to a challenge, a CMW collection in JSON (RFC 9999) of raw bytes.
//!
//! Nothing in it is believed for being there: [`crate::appraise`] proves every item from the two
//! quotes down. `host/pcrs` and `host/root` are claims that the host quote and the challenger's
//! pins must confirm.

use crate::batch::Path;
use crate::canon::canonical;
use crate::digest::{FileDigest, RecordDigest};
use crate::event::Event;
use crate::pcr::{HOST_QUOTED, PcrIndex};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

pub use crate::wire::Challenge as ChallengeRequest;
use crate::wire::{Has, Prefix};

/// The collection's type (`__cmwc_t`).
pub const COLLECTION: &str = "tag:attestrun,2026:evidence/v1";
/// Media type of the whole.
pub const MEDIA_TYPE: &str = "application/cmw+json";
/// CMW indicator: evidence (RFC 9999, "cm-ind", bit 2).
const IND_EVIDENCE: u8 = 4;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    #[error("evidence has {found} bytes, more than {max}")]
    TooLong { found: usize, max: usize },
    #[error("not a CMW collection of evidence: {0}")]
    Malformed(String),
    #[error("collection type `{0}` is not {COLLECTION}")]
    Collection(String),
    #[error("item {item}: {problem}")]
    Item { item: &'static str, problem: String },
}

/// What kind of TPM vouches for a host: a claim in evidence, a fact in a challenger's pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Root {
    /// A TPM that is only a process (swtpm): for demonstrations and tests.
    Software,
    Hardware,
}

impl Root {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Hardware => "hardware",
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The host's PCRs 0 to 13, SHA-256 bank, as read by the host service: a claim until the quote's
/// digest confirms it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPcrs(pub [[u8; 32]; HOST_QUOTED.len()]);

/// `{"sha256":{"0":"<hex>",…}}`
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostPcrsText {
    sha256: BTreeMap<String, String>,
}

impl HostPcrs {
    pub fn get(&self, pcr: PcrIndex) -> Option<&[u8; 32]> {
        self.0.get(pcr.as_usize())
    }
    fn encode(&self) -> Vec<u8> {
        let values = HOST_QUOTED.iter().zip(&self.0);
        let sha256 = values
            .map(|(pcr, value)| (pcr.to_string(), hex::encode(value)))
            .collect();
        // A map of strings always has a canonical form.
        canonical(&HostPcrsText { sha256 }).unwrap_or_default()
    }
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text: HostPcrsText = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let mut pcrs = Self([[0; 32]; HOST_QUOTED.len()]);
        for (pcr, value) in HOST_QUOTED.iter().zip(&mut pcrs.0) {
            let digits = text
                .sha256
                .get(&pcr.to_string())
                .ok_or_else(|| format!("PCR {pcr} is missing"))?;
            hex::decode_to_slice(digits, value)
                .map_err(|_| format!("PCR {pcr}: `{digits}` is malformed"))?;
        }
        match pcrs.encode() == bytes {
            true => Ok(pcrs),
            false => Err("not in canonical form, or other PCRs than 0 to 13".to_owned()),
        }
    }
}

/// What is left out, because the challenger said that it has it: bytes at the beginning of the logs, and the
/// signature list with its signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFrom {
    pub container: u64,
    pub host: u64,
    pub ima: u64,
    pub siglist: bool,
}

/// By which a challenger says which signature list it has: SHA-256 of the SHA-256s of both parts.
pub fn list_digest(statement: &[u8], signature: &[u8]) -> FileDigest {
    let parts = [statement, signature].map(|part| *FileDigest::of(part).as_bytes());
    FileDigest::of(&parts.concat())
}

/// The items of a collection, decoded from base64 but not judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// TPMS_ATTEST of the host's quote.
    pub host_attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub host_sig: Vec<u8>,
    /// TPM2B_PUBLIC of the host's attestation key.
    pub host_ak: Vec<u8>,
    pub host_pcrs: HostPcrs,
    pub host_root: Root,
    /// TPMS_ATTEST of the vTPM's quote.
    pub container_attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub container_sig: Vec<u8>,
    /// TPM2B_PUBLIC of the vTPM's attestation key.
    pub container_ak: Vec<u8>,
    /// TPM2B_PUBLIC of the vTPM's endorsement key.
    pub container_ek: Vec<u8>,
    /// Which challenge the host's quote is for, among those that it covers.
    pub batch: Path,
    /// Where the logs begin: behind what the challenger said that it has.
    pub log_from: LogFrom,
    /// The binding record, canonical bytes ([`crate::binding`]); or its digest alone (32 bytes, which
    /// no record has), for who may not read it.
    pub binding: Vec<u8>,
    /// The host's binding log of this boot.
    pub binding_log: Vec<u8>,
    /// The host kernel's IMA list ([`crate::imalog::kernel`]); empty if it has none.
    pub host_ima: Vec<u8>,
    /// The container's event log ([`crate::imalog`]).
    pub container_log: Vec<u8>,
    /// The signature list's statement bytes.
    pub siglist: Vec<u8>,
    /// Its detached signature: CMS (DER), or a Sigstore bundle (JSON).
    pub siglist_sig: Vec<u8>,
}

/// A conceptual message: `[media type, base64url, indicator]` (RFC 9999, "JSON record").
#[derive(Serialize, Deserialize)]
struct Message(String, String, u8);

/// One field per item: unknown and duplicate labels are refused while reading.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Collection {
    #[serde(rename = "__cmwc_t")]
    kind: String,
    #[serde(rename = "host/attest")]
    host_attest: Message,
    #[serde(rename = "host/sig")]
    host_sig: Message,
    #[serde(rename = "host/ak")]
    host_ak: Message,
    #[serde(rename = "host/pcrs")]
    host_pcrs: Message,
    #[serde(rename = "host/root")]
    host_root: Message,
    #[serde(rename = "host/ima")]
    host_ima: Message,
    #[serde(rename = "container/attest")]
    container_attest: Message,
    #[serde(rename = "container/sig")]
    container_sig: Message,
    #[serde(rename = "container/ak")]
    container_ak: Message,
    #[serde(rename = "container/ek")]
    container_ek: Message,
    batch: Message,
    #[serde(rename = "log-from")]
    log_from: Message,
    binding: Message,
    #[serde(rename = "binding-log")]
    binding_log: Message,
    #[serde(rename = "container/log")]
    container_log: Message,
    siglist: Message,
    #[serde(rename = "siglist.sig")]
    siglist_sig: Message,
}

/// An item's label, media type and greatest size.
struct Kind {
    item: &'static str,
    media_type: &'static str,
    max: usize,
}

const fn kind(item: &'static str, media_type: &'static str, max: usize) -> Kind {
    Kind {
        item,
        media_type,
        max,
    }
}

const ATTEST: &str = "application/vnd.attestrun.tpms-attest";
const SIGNATURE: &str = "application/vnd.attestrun.tpmt-signature";
const PUBLIC: &str = "application/vnd.attestrun.tpm2b-public";

const HOST_ATTEST: Kind = kind("host/attest", ATTEST, 4 << 10);
const HOST_SIG: Kind = kind("host/sig", SIGNATURE, 4 << 10);
const HOST_AK: Kind = kind("host/ak", PUBLIC, 4 << 10);
const HOST_PCRS: Kind = kind(
    "host/pcrs",
    "application/vnd.attestrun.pcr-values+json",
    4 << 10,
);
const HOST_ROOT: Kind = kind("host/root", "application/vnd.attestrun.root-claim", 64);
const HOST_IMA: Kind = kind(
    "host/ima",
    "application/vnd.attestrun.ima-kernel",
    crate::imalog::kernel::MAX_HOST_LIST,
);
const CONTAINER_ATTEST: Kind = kind("container/attest", ATTEST, 4 << 10);
const CONTAINER_SIG: Kind = kind("container/sig", SIGNATURE, 4 << 10);
const CONTAINER_AK: Kind = kind("container/ak", PUBLIC, 4 << 10);
const CONTAINER_EK: Kind = kind("container/ek", PUBLIC, 4 << 10);
const BATCH: Kind = kind(
    "batch",
    "application/vnd.attestrun.merkle-path+json",
    4 << 10,
);
const LOG_FROM: Kind = kind(
    "log-from",
    "application/vnd.attestrun.log-from+json",
    1 << 10,
);
const BINDING: Kind = kind(
    "binding",
    "application/vnd.attestrun.binding+json",
    crate::binding::MAX_RECORD,
);
/// The same item for who may not read the record.
const BINDING_DIGEST: Kind = kind(
    "binding",
    "application/vnd.attestrun.binding-digest",
    DIGEST,
);
const BINDING_LOG: Kind = kind(
    "binding-log",
    "application/vnd.attestrun.binding-log",
    crate::binding::MAX_LOG,
);
const CONTAINER_LOG: Kind = kind(
    "container/log",
    "application/vnd.attestrun.ima-binary",
    crate::imalog::MAX_LOG,
);
const SIGLIST: Kind = kind(
    "siglist",
    "application/vnd.in-toto+json",
    crate::siglist::MAX_STATEMENT,
);
const SIGLIST_SIG: Kind = kind("siglist.sig", "application/cms", crate::cms::MAX_SIGNATURE);
/// The same item in the other envelope.
const SIGLIST_BUNDLE: Kind = kind(
    "siglist.sig",
    "application/vnd.dev.sigstore.bundle+json",
    crate::cms::MAX_SIGNATURE,
);

/// Length of a digest.
const DIGEST: usize = 32;

/// Whether it is the record, or its digest.
fn binding(bytes: &[u8]) -> &'static Kind {
    match bytes.len() {
        DIGEST => &BINDING_DIGEST,
        _ => &BINDING,
    }
}

/// Which of the two envelopes the list's signature is in: DER never begins with a brace.
fn siglist_sig(signature: &[u8]) -> &'static Kind {
    match signature.first() {
        Some(b'{') => &SIGLIST_BUNDLE,
        _ => &SIGLIST_SIG,
    }
}

impl Kind {
    fn pack(&self, bytes: &[u8]) -> Message {
        Message(
            self.media_type.to_owned(),
            BASE64URL.encode(bytes),
            IND_EVIDENCE,
        )
    }
    fn unpack(&self, message: &Message) -> Result<Vec<u8>, EvidenceError> {
        let Message(media_type, text, indicator) = message;
        let problem = if media_type != self.media_type {
            let shown: String = media_type.chars().take(80).collect();
            format!("media type is `{shown}`, expected {}", self.media_type)
        } else if *indicator != IND_EVIDENCE {
            format!("indicator is {indicator}, expected {IND_EVIDENCE} (evidence)")
        } else if text.len() / 4 * 3 > self.max {
            format!("longer than {} bytes", self.max)
        } else {
            match BASE64URL.decode(text) {
                Ok(bytes) => return Ok(bytes),
                Err(e) => format!("not base64url without padding: {e}"),
            }
        };
        Err(EvidenceError::Item {
            item: self.item,
            problem,
        })
    }
}

fn unpack_binding(message: &Message) -> Result<Vec<u8>, EvidenceError> {
    let kind = match message.0 == BINDING_DIGEST.media_type {
        true => &BINDING_DIGEST,
        false => &BINDING,
    };
    let bytes = kind.unpack(message)?;
    match binding(&bytes).media_type == kind.media_type {
        true => Ok(bytes),
        false => Err(EvidenceError::Item {
            item: kind.item,
            problem: format!("{} bytes are no {}", bytes.len(), kind.media_type),
        }),
    }
}

impl Evidence {
    /// Of the binding record, whether it is here or only its digest is.
    pub fn record_digest(&self) -> RecordDigest {
        match self.binding.as_slice().try_into() {
            Ok(digest) => RecordDigest::from_bytes(digest),
            Err(_) => crate::binding::digest_of(&self.binding),
        }
    }

    /// What others than a container's owner may see of it: that it is bound, runs and quotes, and not
    /// what it is. Both quotes still verify, and the log still replays.
    pub fn opaque(&self) -> Result<Self, crate::imalog::ParseError> {
        let log = crate::imalog::parse(&self.container_log)?;
        Ok(Self {
            binding: self.record_digest().as_bytes().to_vec(),
            container_log: log
                .iter()
                .flat_map(|entry| entry.opaque().encode())
                .collect(),
            // the host's list names other people's files
            host_ima: Vec::new(),
            siglist: Vec::new(),
            siglist_sig: Vec::new(),
            ..self.clone()
        })
    }

    /// Without what the challenger has already; a log that does not begin so is given in full, and shows
    /// what became of it.
    /// If that is the container's, it is another container than the challenger knows, or not the log that it
    /// was: then nothing is left out.
    pub fn without(mut self, has: &Has) -> Self {
        if has
            .container
            .is_some_and(|prefix| prefix.within(&self.container_log) == 0)
        {
            return self;
        }
        let cut = |log: &mut Vec<u8>, prefix: Option<Prefix>| {
            let bytes = prefix.map_or(0, |prefix| prefix.within(log));
            log.drain(..bytes);
            bytes as u64
        };
        let siglist = has.siglist == Some(list_digest(&self.siglist, &self.siglist_sig));
        self.log_from = LogFrom {
            container: cut(&mut self.container_log, has.container),
            host: cut(&mut self.binding_log, has.host),
            ima: cut(&mut self.host_ima, has.ima),
            siglist,
        };
        if siglist {
            (self.siglist, self.siglist_sig) = Default::default();
        }
        self
    }

    /// Whose container this is: the tenant in the one `attestrun.user` event of its log. None: nobody's.
    pub fn tenant(&self) -> Option<String> {
        let log = crate::imalog::parse(&self.container_log).ok()?;
        let mut users = log
            .iter()
            .filter_map(|entry| match Event::from_entry(entry) {
                Ok(Event::User(user)) => Some(user.tenant),
                _ => None,
            });
        match (users.next(), users.next()) {
            (Some(tenant), None) => Some(tenant),
            _ => None,
        }
    }

    /// The collection's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let collection = Collection {
            kind: COLLECTION.to_owned(),
            host_attest: HOST_ATTEST.pack(&self.host_attest),
            host_sig: HOST_SIG.pack(&self.host_sig),
            host_ak: HOST_AK.pack(&self.host_ak),
            host_pcrs: HOST_PCRS.pack(&self.host_pcrs.encode()),
            host_root: HOST_ROOT.pack(self.host_root.name().as_bytes()),
            host_ima: HOST_IMA.pack(&self.host_ima),
            container_attest: CONTAINER_ATTEST.pack(&self.container_attest),
            container_sig: CONTAINER_SIG.pack(&self.container_sig),
            container_ak: CONTAINER_AK.pack(&self.container_ak),
            container_ek: CONTAINER_EK.pack(&self.container_ek),
            batch: BATCH.pack(&self.batch.encode()),
            // Numbers always have a canonical form.
            log_from: LOG_FROM.pack(&canonical(&self.log_from).unwrap_or_default()),
            binding: binding(&self.binding).pack(&self.binding),
            binding_log: BINDING_LOG.pack(&self.binding_log),
            container_log: CONTAINER_LOG.pack(&self.container_log),
            siglist: SIGLIST.pack(&self.siglist),
            siglist_sig: siglist_sig(&self.siglist_sig).pack(&self.siglist_sig),
        };
        // Strings and small integers alone: JSON can spell them all.
        serde_json::to_vec(&collection).unwrap_or_default()
    }

    /// Every item, each once, each of its media type and within its size; nothing else.
    pub fn parse(bytes: &[u8], max: usize) -> Result<Self, EvidenceError> {
        if bytes.len() > max {
            return Err(EvidenceError::TooLong {
                found: bytes.len(),
                max,
            });
        }
        let c: Collection =
            serde_json::from_slice(bytes).map_err(|e| EvidenceError::Malformed(e.to_string()))?;
        if c.kind != COLLECTION {
            return Err(EvidenceError::Collection(c.kind.chars().take(80).collect()));
        }
        let host_pcrs = HostPcrs::parse(&HOST_PCRS.unpack(&c.host_pcrs)?).map_err(|problem| {
            EvidenceError::Item {
                item: HOST_PCRS.item,
                problem,
            }
        })?;
        let batch = Path::parse(&BATCH.unpack(&c.batch)?).map_err(|e| EvidenceError::Item {
            item: BATCH.item,
            problem: e.to_string(),
        })?;
        let log_from = serde_json::from_slice(&LOG_FROM.unpack(&c.log_from)?).map_err(|e| {
            EvidenceError::Item {
                item: LOG_FROM.item,
                problem: e.to_string(),
            }
        })?;
        let host_root = match HOST_ROOT.unpack(&c.host_root)?.as_slice() {
            b"software" => Root::Software,
            b"hardware" => Root::Hardware,
            _ => {
                let problem = "neither `software` nor `hardware`".to_owned();
                return Err(EvidenceError::Item {
                    item: HOST_ROOT.item,
                    problem,
                });
            }
        };
        Ok(Self {
            host_attest: HOST_ATTEST.unpack(&c.host_attest)?,
            host_sig: HOST_SIG.unpack(&c.host_sig)?,
            host_ak: HOST_AK.unpack(&c.host_ak)?,
            host_pcrs,
            host_root,
            host_ima: HOST_IMA.unpack(&c.host_ima)?,
            container_attest: CONTAINER_ATTEST.unpack(&c.container_attest)?,
            container_sig: CONTAINER_SIG.unpack(&c.container_sig)?,
            container_ak: CONTAINER_AK.unpack(&c.container_ak)?,
            container_ek: CONTAINER_EK.unpack(&c.container_ek)?,
            batch,
            log_from,
            binding: unpack_binding(&c.binding)?,
            binding_log: BINDING_LOG.unpack(&c.binding_log)?,
            container_log: CONTAINER_LOG.unpack(&c.container_log)?,
            siglist: SIGLIST.unpack(&c.siglist)?,
            siglist_sig: match c.siglist_sig.0 == SIGLIST_BUNDLE.media_type {
                true => SIGLIST_BUNDLE.unpack(&c.siglist_sig)?,
                false => SIGLIST_SIG.unpack(&c.siglist_sig)?,
            },
        })
    }
}

#[cfg(test)]
mod tests;
