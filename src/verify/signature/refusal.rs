//! Why a signature does not count.

use super::simple::{MAX_PAYLOAD, PAYLOAD_TYPE};
use crate::digest::{ImageDigest, KeyDigest};
use crate::id::UnixTime;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureRefusal {
    #[error("no keys are named that could have made it")]
    NoKeys,
    #[error("no identities are named that could have made it")]
    NoIdentities,
    #[error("the trusted root names no {0}")]
    NoAuthority(&'static str),
    #[error("no image is named that it could be about")]
    NoImage,
    #[error("the signature is not base64")]
    NotBase64,
    #[error("it has {0} bytes, more than {MAX_PAYLOAD}")]
    TooLong(usize),
    #[error("it is malformed: {0}")]
    Malformed(String),
    #[error("the signed payload has type `{0}`, not `{PAYLOAD_TYPE}`")]
    WrongType(String),
    #[error("the signature is about image {0}")]
    OtherImage(ImageDigest),
    #[error("the statement has type `{0}`, not in-toto's v1")]
    WrongStatement(String),
    #[error("the statement is of type `{found}`, not `{wanted}`")]
    OtherPredicate { found: String, wanted: String },
    #[error("it is an image signature, not an attestation")]
    NotAStatement,
    #[error("it was not made by {}", keys(.0))]
    WrongKey(Vec<KeyDigest>),
    #[error("it was made with a key, not with a certificate")]
    NotKeyless,
    #[error("its certificate is for {subject} of {issuer}, which is not asked for")]
    WrongIdentity { subject: String, issuer: String },
    #[error("its certificate names {0}")]
    Nameless(&'static str),
    #[error("its certificate is not trusted: {0}")]
    Certificate(String),
    #[error("its certificate was not in force when it signed: {0}")]
    NotInForce(String),
    #[error("its certificate's log entry (SCT) does not count: {0}")]
    Sct(String),
    #[error("it has no entry in a transparency log")]
    NotLogged,
    #[error("its transparency log entry does not count: {0}")]
    Log(String),
    #[error("it has no timestamp of a timestamp authority")]
    NotTimestamped,
    #[error("its time is not proved: {0}")]
    Time(String),
    #[error("its time {0} is in the future")]
    Future(UnixTime),
    #[error("the signature was not made over this content: {0}")]
    Altered(String),
}

fn keys(keys: &[KeyDigest]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| format!("key {key}")).collect();
    keys.join(" or ")
}

/// Text from elsewhere, cut to what a message bears.
pub(super) fn clip(text: impl ToString) -> String {
    text.to_string().chars().take(200).collect()
}
