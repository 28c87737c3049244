//! A challenge as it travels: from the challenger to the agent, and on to the host service.

use super::{MAX_REQUEST, VERSION, WireError, bounded, json, malformed, version};
use crate::digest::FileDigest;
use crate::growing::Growing;
use crate::id::{ContainerId, Nonce};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Serialize};

/// What ties a challenge to the connection that it came over: a field of the qualifying data (see
/// [`crate::qualify`]), so that both quotes vouch for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ChannelBinding {
    /// Nothing is bound: over a local socket there is no channel. Hashed as the four bytes `none`.
    None,
    /// Of the TLS connection to the agent (RFC 9266, `tls-exporter`): who relays the challenge has
    /// another one to the agent that answers.
    TlsExporter([u8; 32]),
}

const NONE: &str = "none";
const TLS_EXPORTER: &str = "tls-exporter:";

impl ChannelBinding {
    /// The bytes that are hashed.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => NONE.as_bytes().to_vec(),
            Self::TlsExporter(value) => [TLS_EXPORTER.as_bytes(), value].concat(),
        }
    }
}

impl From<ChannelBinding> for String {
    fn from(binding: ChannelBinding) -> Self {
        match binding {
            ChannelBinding::None => NONE.to_owned(),
            ChannelBinding::TlsExporter(value) => format!("{TLS_EXPORTER}{}", hex::encode(value)),
        }
    }
}

impl TryFrom<String> for ChannelBinding {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == NONE {
            return Ok(Self::None);
        }
        let mut value = [0; 32];
        let digits = text.strip_prefix(TLS_EXPORTER).unwrap_or_default();
        match hex::decode_to_slice(digits, &mut value) {
            // one spelling: lower case
            Ok(()) if String::from(Self::TlsExporter(value)) == text => {
                Ok(Self::TlsExporter(value))
            }
            _ => Err("channel_binding is neither `none` nor `tls-exporter:<64 hex digits>`".into()),
        }
    }
}

/// What the challenger has of the logs from earlier answers; it need not travel again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Has {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Prefix>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Prefix>,
    /// Of the host's IMA list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima: Option<Prefix>,
    /// The signature list and its signature ([`crate::evidence::list_digest`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub siglist: Option<FileDigest>,
}

/// The beginning of a log. By its digest ([`Growing`]) it is known whether that log still begins so: another container
/// with the same id does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefix {
    pub bytes: u64,
    pub digest: FileDigest,
}

impl Has {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Prefix {
    /// None: nothing.
    pub fn of(read: &Growing) -> Option<Self> {
        (read.bytes() > 0).then(|| Self {
            bytes: read.bytes(),
            digest: read.digest(),
        })
    }
    /// How much of `log` this is: all of it, or nothing.
    pub fn within(&self, log: &[u8]) -> usize {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        match log.get(..bytes) {
            Some(prefix) if Growing::of(prefix).digest() == self.digest => bytes,
            _ => 0,
        }
    }
}

/// A question about one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub nonce: Nonce,
    pub container: ContainerId,
    pub channel_binding: ChannelBinding,
    /// Whether the host's quote may cover other challenges as well.
    pub batch: bool,
    pub has: Has,
}

/// The body of `POST /v1/challenge`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChallengeText {
    v: u64,
    nonce: String,
    container: String,
    channel_binding: ChannelBinding,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    batch: bool,
    #[serde(default, skip_serializing_if = "Has::is_nothing")]
    has: Has,
}

fn yes() -> bool {
    true
}
fn is_yes(batch: &bool) -> bool {
    *batch
}

impl Challenge {
    /// The HTTP body.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        json(&self.text())
    }
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REQUEST)?;
        serde_json::from_slice::<ChallengeText>(body)
            .map_err(malformed)?
            .check()
    }
    pub(super) fn text(&self) -> ChallengeText {
        ChallengeText {
            v: VERSION,
            nonce: BASE64URL.encode(self.nonce.as_bytes()),
            container: self.container.as_str().to_owned(),
            channel_binding: self.channel_binding,
            batch: self.batch,
            has: self.has,
        }
    }
}

impl ChallengeText {
    pub(super) fn check(self) -> Result<Challenge, WireError> {
        version(self.v)?;
        let nonce = BASE64URL
            .decode(&self.nonce)
            .map_err(|_| WireError::NonceEncoding)?;
        Ok(Challenge {
            nonce: Nonce::new(nonce)?,
            container: ContainerId::parse(&self.container)?,
            channel_binding: self.channel_binding,
            batch: self.batch,
            has: self.has,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_binding_has_one_spelling() {
        let bound = ChannelBinding::TlsExporter([0xab; 32]);
        let text = String::from(bound);
        assert_eq!(ChannelBinding::try_from(text.clone()), Ok(bound));
        assert_ne!(bound.bytes(), ChannelBinding::TlsExporter([0; 32]).bytes());
        let short = text.get(..40).unwrap_or_default();
        for bad in ["", "NONE", "tls-exporter:", &text.to_uppercase(), short] {
            assert!(ChannelBinding::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        let upper = text.replace("ab", "AB");
        assert!(ChannelBinding::try_from(upper).is_err());
    }
}
