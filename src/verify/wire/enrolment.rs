//! How a host proves that its attestation key is in the TPM whose endorsement key a manufacturer certified.

use super::{MAX_REQUEST, VERSION, WireError, bounded, json, malformed, version};
use crate::tpm2::Credential;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Serialize};

/// The answer to [`super::AgentRequest::Endorsement`]: a claim, until the key has opened a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsement {
    /// TPM2B_PUBLIC of the endorsement key, template L-2.
    pub ek: Vec<u8>,
    /// What the TPM keeps as its certificate (NV index 0x01c0000a); absent if it keeps none.
    pub certificate: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndorsementText {
    ek: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
}

/// The secret out of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activated {
    pub secret: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivatedText {
    secret: String,
}

/// A [`Credential`] on its way to the host.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialText {
    v: u64,
    blob: String,
    seed: String,
}

fn bytes(text: &str) -> Result<Vec<u8>, WireError> {
    BASE64URL
        .decode(text)
        .map_err(|e| WireError::Malformed(format!("not base64url: {e}")))
}

impl Endorsement {
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        json(&EndorsementText {
            ek: BASE64URL.encode(&self.ek),
            certificate: self.certificate.as_ref().map(|der| BASE64URL.encode(der)),
        })
    }
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REQUEST)?;
        let text: EndorsementText = serde_json::from_slice(body).map_err(malformed)?;
        Ok(Self {
            ek: bytes(&text.ek)?,
            certificate: text.certificate.as_deref().map(bytes).transpose()?,
        })
    }
}

impl Activated {
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        json(&ActivatedText {
            secret: BASE64URL.encode(&self.secret),
        })
    }
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REQUEST)?;
        let text: ActivatedText = serde_json::from_slice(body).map_err(malformed)?;
        Ok(Self {
            secret: bytes(&text.secret)?,
        })
    }
}

impl CredentialText {
    pub(super) fn of(credential: &Credential) -> Self {
        Self {
            v: VERSION,
            blob: BASE64URL.encode(&credential.blob),
            seed: BASE64URL.encode(&credential.seed),
        }
    }
    pub(super) fn check(&self) -> Result<Credential, WireError> {
        version(self.v)?;
        Ok(Credential {
            blob: bytes(&self.blob)?,
            seed: bytes(&self.seed)?,
        })
    }
}

impl Credential {
    /// The JSON object, as a challenger posts it.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        json(&CredentialText::of(self))
    }
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        bounded(body, MAX_REQUEST)?;
        let text: CredentialText = serde_json::from_slice(body).map_err(malformed)?;
        text.check()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AgentRequest, HEADER};
    use super::*;

    #[test]
    fn messages_round_trip() {
        for certificate in [None, Some(vec![0x30, 0])] {
            let endorsement = Endorsement {
                ek: vec![1, 2],
                certificate,
            };
            assert_eq!(
                Endorsement::parse(&endorsement.encode().unwrap()),
                Ok(endorsement)
            );
        }
        let activated = Activated {
            secret: vec![7; 32],
        };
        assert_eq!(
            Activated::parse(&activated.encode().unwrap()),
            Ok(activated)
        );
        let credential = Credential {
            blob: vec![1; 68],
            seed: vec![2; 68],
        };
        assert_eq!(
            Credential::parse(&credential.encode().unwrap()),
            Ok(credential.clone())
        );
        for request in [
            AgentRequest::Endorsement,
            AgentRequest::Activate(credential),
        ] {
            let frame = request.encode().unwrap();
            assert_eq!(AgentRequest::decode(&frame[HEADER..]), Ok(request));
        }
    }

    #[test]
    fn refuse_what_is_none_of_them() {
        for bad in [
            "",
            "{}",
            r#"{"v":2,"blob":"","seed":""}"#,
            r#"{"v":1,"blob":"=","seed":""}"#,
        ] {
            assert!(Credential::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Endorsement::parse(br#"{"ek":"","name":""}"#).is_err());
        assert!(Activated::parse(br#"{"secret":"=="}"#).is_err());
    }
}
