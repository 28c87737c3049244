//! Messages between the agent and the host service: pure encoding and decoding, one spelling each.
//!
//! A frame is a length (u32, big-endian) and that many bytes of JSON. One request and one reply per
//! connection. The agent is the only caller; nothing that it sends is trusted, and it passes on what
//! the host service answers without reading it: evidence proves itself at the challenger.

mod challenge;
mod containers;
mod enrolment;

pub use crate::evidence::Root;
pub use challenge::{Challenge, ChannelBinding, Has, Prefix};
pub use containers::{ContainerFacts, Containers};
pub use enrolment::{Activated, Endorsement};

use crate::{id::IdError, pcr::HOST_BINDING_PCR, tpm2::Credential};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use challenge::ChallengeText;
use enrolment::CredentialText;
use serde::{Deserialize, Serialize, de::IgnoredAny};

/// Version of this protocol; a service understands this one and the one before (there is none yet).
pub const VERSION: u64 = 1;
/// A request is a nonce, an id and a few words.
pub const MAX_REQUEST: usize = 16 * 1024;
/// A reply holds evidence: two logs of at most 64 MiB each, the kernel's of 32, and a list of at most 160,
/// in base64.
pub const MAX_REPLY: usize = 448 << 20;
/// Bytes of the length in front of each frame.
pub const HEADER: usize = 4;

/// A message that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {length} bytes is longer than the {max} allowed here")]
    TooLong { length: usize, max: usize },
    #[error("an empty frame")]
    Empty,
    #[error("not a message of this protocol: {0}")]
    Malformed(String),
    #[error("protocol version {0} is not understood here (this side speaks {VERSION})")]
    Version(u64),
    #[error("the nonce is not base64url without padding (RFC 4648, section 5)")]
    NonceEncoding,
    #[error(transparent)]
    Id(#[from] IdError),
}

/// `body` behind its length.
pub fn frame(body: &[u8], max: usize) -> Result<Vec<u8>, WireError> {
    let length = match u32::try_from(body.len()) {
        Ok(n) if body.len() <= max => n,
        _ => {
            return Err(WireError::TooLong {
                length: body.len(),
                max,
            });
        }
    };
    if length == 0 {
        return Err(WireError::Empty);
    }
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    Ok(out)
}

/// How many bytes follow `header`; call it before anything is allocated.
pub fn frame_length(header: [u8; HEADER], max: usize) -> Result<usize, WireError> {
    match usize::try_from(u32::from_be_bytes(header)) {
        Ok(0) => Err(WireError::Empty),
        Ok(length) if length <= max => Ok(length),
        _ => Err(WireError::TooLong {
            length: u32::from_be_bytes(header) as usize,
            max,
        }),
    }
}

/// What the agent asks of the host service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // one at a time, and seldom another one
pub enum AgentRequest {
    /// Evidence about one container.
    Challenge(Challenge),
    /// The host's attestation key and where its binding PCR started: what enrolment pins.
    Host,
    /// Which attested containers run: [`Containers`].
    Containers,
    /// The host TPM's endorsement key and its certificate: [`Endorsement`].
    Endorsement,
    /// The secret out of a credential for the endorsement key and the attestation key: [`Activated`].
    Activate(Credential),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
#[allow(clippy::large_enum_variant)]
enum RequestText {
    Challenge { challenge: ChallengeText },
    Host { v: u64 },
    Containers { v: u64 },
    Endorsement { v: u64 },
    Activate { credential: CredentialText },
}

impl AgentRequest {
    /// The whole frame.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let text = match self {
            Self::Challenge(challenge) => RequestText::Challenge {
                challenge: challenge.text(),
            },
            Self::Host => RequestText::Host { v: VERSION },
            Self::Containers => RequestText::Containers { v: VERSION },
            Self::Endorsement => RequestText::Endorsement { v: VERSION },
            Self::Activate(credential) => RequestText::Activate {
                credential: CredentialText::of(credential),
            },
        };
        frame(&json(&text)?, MAX_REQUEST)
    }
    /// From a frame's body.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REQUEST)?;
        match serde_json::from_slice(body).map_err(malformed)? {
            RequestText::Challenge { challenge } => challenge.check().map(Self::Challenge),
            RequestText::Host { v } => version(v).map(|()| Self::Host),
            RequestText::Containers { v } => version(v).map(|()| Self::Containers),
            RequestText::Endorsement { v } => version(v).map(|()| Self::Endorsement),
            RequestText::Activate { credential } => credential.check().map(Self::Activate),
        }
    }
}

/// What the host service says about itself: claims, to be pinned or proved by who enrols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// TPM2B_PUBLIC of the host AIK (TPM 2.0 Library part 2, 12.2.5).
    pub ak: Vec<u8>,
    pub root: Root,
    /// Host PCR that holds the binding log, SHA-256 bank, and its value before the first entry.
    pub binding_pcr_start: [u8; 32],
    /// The kernel's boot id.
    pub host_boot: String,
    /// Version of the host service.
    pub version: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostText {
    ak: String,
    root: Root,
    binding_pcr: u8,
    binding_pcr_start: String,
    host_boot: String,
    version: String,
}

impl HostFacts {
    /// The JSON object, as the host service sends it and as the agent passes it on.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        json(&HostText {
            ak: BASE64URL.encode(&self.ak),
            root: self.root,
            binding_pcr: HOST_BINDING_PCR.get(),
            binding_pcr_start: hex::encode(self.binding_pcr_start),
            host_boot: self.host_boot.clone(),
            version: self.version.clone(),
        })
    }

    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REQUEST)?;
        let text: HostText = serde_json::from_slice(body).map_err(malformed)?;
        if text.binding_pcr != HOST_BINDING_PCR.get() {
            return Err(WireError::Malformed(format!(
                "binding_pcr is {}, expected {}",
                text.binding_pcr,
                HOST_BINDING_PCR.get()
            )));
        }
        let mut binding_pcr_start = [0; 32];
        hex::decode_to_slice(&text.binding_pcr_start, &mut binding_pcr_start)
            .map_err(|e| WireError::Malformed(format!("binding_pcr_start: {e}")))?;
        let ak = BASE64URL
            .decode(&text.ak)
            .map_err(|e| WireError::Malformed(format!("ak is not base64url: {e}")))?;
        Ok(Self {
            ak,
            root: text.root,
            binding_pcr_start,
            host_boot: text.host_boot,
            version: text.version,
        })
    }
}

/// Why the host service did not answer with evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request makes no sense: do not send it again.
    BadRequest,
    /// No such container.
    NotFound,
    /// Several containers have this id (ids repeat between containerd namespaces).
    Ambiguous,
    /// A rule says no.
    Refused,
    /// It could not be found out.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub kind: FailureKind,
    pub detail: String,
}

/// What the host service answers; `Ok` holds the bytes of one JSON object (evidence for
/// [`AgentRequest::Challenge`], [`HostFacts`] for [`AgentRequest::Host`], [`Containers`] for
/// [`AgentRequest::Containers`]), verbatim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentReply {
    Ok(Vec<u8>),
    Err(Failure),
}

/// The one spelling of a good reply, so that what it holds is passed on byte for byte.
const OK_PREFIX: &[u8] = br#"{"v":1,"ok":"#;
const OK_SUFFIX: &[u8] = b"}";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FailureText {
    v: u64,
    err: Failure,
}

impl AgentReply {
    /// The whole frame.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let body = match self {
            Self::Ok(object) => {
                one_object(object)?;
                [OK_PREFIX, object, OK_SUFFIX].concat()
            }
            Self::Err(err) => json(&FailureText {
                v: VERSION,
                err: err.clone(),
            })?,
        };
        frame(&body, MAX_REPLY)
    }

    /// From a frame's body.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REPLY)?;
        if let Some(object) = body
            .strip_prefix(OK_PREFIX)
            .and_then(|rest| rest.strip_suffix(OK_SUFFIX))
        {
            one_object(object)?;
            return Ok(Self::Ok(object.to_vec()));
        }
        let text: FailureText = serde_json::from_slice(body).map_err(malformed)?;
        version(text.v)?;
        Ok(Self::Err(text.err))
    }
}

fn one_object(bytes: &[u8]) -> Result<(), WireError> {
    if bytes.first() != Some(&b'{') {
        return Err(WireError::Malformed("`ok` is not a JSON object".to_owned()));
    }
    serde_json::from_slice::<IgnoredAny>(bytes)
        .map(drop)
        .map_err(malformed)
}

fn version(v: u64) -> Result<(), WireError> {
    if v == VERSION {
        Ok(())
    } else {
        Err(WireError::Version(v))
    }
}

fn bounded(body: &[u8], max: usize) -> Result<(), WireError> {
    match body.len() {
        0 => Err(WireError::Empty),
        length if length > max => Err(WireError::TooLong { length, max }),
        _ => Ok(()),
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    serde_json::to_vec(value).map_err(malformed)
}

fn malformed(e: serde_json::Error) -> WireError {
    WireError::Malformed(e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ContainerId, Nonce};

    fn challenge() -> Challenge {
        Challenge {
            nonce: Nonce::new(vec![0xfb; 20]).unwrap(),
            container: ContainerId::parse("web-1").unwrap(),
            channel_binding: ChannelBinding::None,
            batch: true,
            has: Has::default(),
        }
    }

    fn body(frame: &[u8], max: usize) -> &[u8] {
        let (header, body) = frame.split_at(HEADER);
        assert_eq!(
            frame_length(header.try_into().unwrap(), max),
            Ok(body.len())
        );
        body
    }

    #[test]
    fn accept_requests_as_they_are_written() {
        for request in [
            AgentRequest::Challenge(challenge()),
            AgentRequest::Host,
            AgentRequest::Containers,
        ] {
            let frame = request.encode().unwrap();
            assert_eq!(AgentRequest::decode(body(&frame, MAX_REQUEST)), Ok(request));
        }
        let frame = AgentRequest::Challenge(challenge()).encode().unwrap();
        assert_eq!(
            body(&frame, MAX_REQUEST),
            br#"{"op":"challenge","challenge":{"v":1,"nonce":"-_v7-_v7-_v7-_v7-_v7-_v7-_s","container":"web-1","channel_binding":"none"}}"#
        );
        assert_eq!(
            Challenge::parse(&challenge().encode().unwrap()),
            Ok(challenge())
        );
    }

    #[test]
    fn refuse_malformed_requests() {
        let text = |v: &str, nonce: &str, id: &str, cb: &str| {
            format!(
                r#"{{"op":"challenge","challenge":{{"v":{v},"nonce":"{nonce}","container":"{id}","channel_binding":"{cb}"}}}}"#
            )
        };
        let good = "-_v7-_v7-_v7-_v7-_v7-_v7-_s";
        assert!(AgentRequest::decode(text("1", good, "c", "none").as_bytes()).is_ok());
        let decode = |t: String| AgentRequest::decode(t.as_bytes()).unwrap_err();
        assert_eq!(decode(text("2", good, "c", "none")), WireError::Version(2));
        assert_eq!(
            decode(text("1", "+/v7", "c", "none")),
            WireError::NonceEncoding
        );
        assert_eq!(
            decode(text("1", "AAAA", "c", "none")),
            WireError::Id(IdError::NonceLength(3))
        );
        assert!(matches!(
            decode(text("1", good, "a/b", "none")),
            WireError::Id(IdError::Format(_))
        ));
        assert!(matches!(
            decode(text("1", good, "c", "tls")),
            WireError::Malformed(_)
        ));
        for bad in [
            r#"{"op":"host"}"#,
            r#"{"op":"bind","v":1}"#,
            r#"{"op":"host","v":1,"x":1}"#,
            r#"{"op":"host","v":1,"v":1}"#,
            r#"{"op":"host","v":1}x"#,
            r#"[]"#,
        ] {
            assert!(
                matches!(
                    AgentRequest::decode(bad.as_bytes()),
                    Err(WireError::Malformed(_))
                ),
                "{bad}"
            );
        }
        assert_eq!(AgentRequest::decode(b""), Err(WireError::Empty));
        let long = vec![b' '; MAX_REQUEST + 1];
        assert!(matches!(
            AgentRequest::decode(&long),
            Err(WireError::TooLong { .. })
        ));
    }

    #[test]
    fn accept_replies_byte_for_byte() {
        for reply in [
            AgentReply::Ok(br#"{ "b":1, "a":{"x":"}"} }"#.to_vec()),
            AgentReply::Err(Failure {
                kind: FailureKind::NotFound,
                detail: "no \"c\"".to_owned(),
            }),
        ] {
            let frame = reply.encode().unwrap();
            assert_eq!(AgentReply::decode(body(&frame, MAX_REPLY)), Ok(reply));
        }
    }

    #[test]
    fn refuse_replies_with_two_answers() {
        for bad in [
            r#"{"v":1,"ok":{},"err":{"kind":"failed","detail":""}}"#,
            r#"{"v":1,"ok":[]}"#,
            r#"{"v":1,"ok":{}"#,
            r#"{"v":1}"#,
            r#"{"v":1,"err":{"kind":"odd","detail":""}}"#,
            r#"{"v":1,"err":{"kind":"failed"}}"#,
        ] {
            assert!(
                matches!(
                    AgentReply::decode(bad.as_bytes()),
                    Err(WireError::Malformed(_))
                ),
                "{bad}"
            );
        }
        assert_eq!(
            AgentReply::decode(br#"{"v":2,"err":{"kind":"failed","detail":""}}"#),
            Err(WireError::Version(2))
        );
        assert!(AgentReply::Ok(b"{} {}".to_vec()).encode().is_err());
    }

    #[test]
    fn host_facts_round_trip() {
        let facts = HostFacts {
            ak: vec![0, 1, 2],
            root: Root::Software,
            binding_pcr_start: [7; 32],
            host_boot: "8f0e…".to_owned(),
            version: "0.1.0".to_owned(),
        };
        assert_eq!(HostFacts::parse(&facts.encode().unwrap()), Ok(facts));
        let short = br#"{"ak":"","root":"software","binding_pcr":13,"binding_pcr_start":"00","host_boot":"","version":""}"#;
        assert!(matches!(
            HostFacts::parse(short),
            Err(WireError::Malformed(_))
        ));
    }

    #[test]
    fn frames_are_bounded_before_they_are_read() {
        assert_eq!(frame_length([0, 0, 0, 0], 10), Err(WireError::Empty));
        assert_eq!(frame_length([0, 0, 0, 10], 10), Ok(10));
        assert_eq!(
            frame_length([0xff; 4], 10),
            Err(WireError::TooLong {
                length: 0xffff_ffff,
                max: 10
            })
        );
        assert_eq!(frame(b"", 10), Err(WireError::Empty));
        assert_eq!(
            frame(b"abc", 2),
            Err(WireError::TooLong { length: 3, max: 2 })
        );
    }
}
