//! A Sigstore instance of the tests' own: certificate authority, certificate log, transparency log, and
//! signers that use them. Written from the formats' descriptions, without attestrun's code; the unit
//! tests of src/verify use it too.
#![allow(dead_code)] // each of the two needs a part

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use der::{Decode as _, Encode as _};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SigningKey as _,
    date_time_ymd,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, time::Duration};

/// When the certificates begin: 2025-06-01T00:00:00Z. They last ten minutes.
pub const ISSUED: i64 = 1_748_736_000;
/// When signatures are logged.
pub const LOGGED: i64 = ISSUED + 60;
pub const SUBJECT: &str = "https://ci.example/acme/app/release";
pub const ISSUER: &str = "https://oidc.example";

/// Embedded SCTs (RFC 6962, section 3.3); Fulcio's issuer (fulcio `docs/oid-info.md`).
const SCTS: [u64; 10] = [1, 3, 6, 1, 4, 1, 11129, 2, 4, 2];
const ISSUER_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 57264, 1, 8];

pub struct Instance {
    authority: CertifiedIssuer<'static, KeyPair>,
    certificate_log: KeyPair,
    log: KeyPair,
}

/// A short-lived certificate and its key.
pub struct Leaf {
    der: Vec<u8>,
    key: KeyPair,
}

/// A simple signature: payload, signature in base64, annotations.
pub type Simple = (Vec<u8>, String, BTreeMap<String, String>);

pub const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// An in-toto statement about an image (`sha256:…`).
pub fn statement(image: &str, predicate_type: &str) -> Vec<u8> {
    stating(image, predicate_type, &json!({}))
}

/// The same that states something.
pub fn stating(image: &str, predicate_type: &str, predicate: &Value) -> Vec<u8> {
    let hex = image.trim_start_matches("sha256:");
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "digest": { "sha256": hex } }],
        "predicateType": predicate_type,
        "predicate": predicate,
    });
    statement.to_string().into_bytes()
}

/// A simple-signing payload.
pub fn payload(reference: &str, image: &str) -> Vec<u8> {
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": image },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    payload.to_string().into_bytes()
}

/// DSSE, "Pre-Authentication Encoding".
pub fn pae(statement: &[u8]) -> Vec<u8> {
    let (kind, length) = (PAYLOAD_TYPE, statement.len());
    let head = format!("DSSEv1 {} {kind} {length} ", kind.len());
    [head.as_bytes(), statement].concat()
}

pub fn pem(der: &[u8]) -> String {
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        BASE64
            .encode(der)
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    )
}

fn id(key: &KeyPair) -> [u8; 32] {
    Sha256::digest(key.subject_public_key_info()).into()
}

impl Instance {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2035, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            authority: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            certificate_log: KeyPair::generate().unwrap(),
            log: KeyPair::generate().unwrap(),
        }
    }

    /// Its trusted_root.json.
    pub fn root(&self) -> Value {
        let log = |key: &KeyPair| {
            json!({
                "baseUrl": "https://log.example",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": BASE64.encode(key.subject_public_key_info()),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": { "start": "2025-01-01T00:00:00Z" },
                },
                "logId": { "keyId": BASE64.encode(id(key)) },
            })
        };
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(&self.log)],
            "ctlogs": [log(&self.certificate_log)],
            "certificateAuthorities": [{
                "uri": "https://ca.example",
                "certChain": { "certificates": [
                    { "rawBytes": BASE64.encode(self.authority.der()) },
                ] },
                "validFor": { "start": "2025-01-01T00:00:00Z" },
            }],
        })
    }

    /// The log's key and the authority's certificate, as a containers policy names them.
    pub fn pems(&self) -> (String, String) {
        (pem(self.authority.der()), self.log.public_key_pem())
    }

    pub fn leaf(&self) -> Leaf {
        self.leaf_with(|_| ())
    }

    /// A leaf that differs from Fulcio's profile by `edit`, which the certificate log has seen.
    pub fn leaf_with(&self, edit: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let (params, key) = leaf_params(edit);
        let unseen = self.sign_leaf(&params, &key);
        let mut seen = params;
        let list = self.sct(&unseen);
        seen.custom_extensions
            .push(CustomExtension::from_oid_content(&SCTS, list));
        let der = self.sign_leaf(&seen, &key);
        Leaf { der, key }
    }

    /// A leaf of somebody else.
    pub fn stranger(&self) -> Leaf {
        self.leaf_with(|params| {
            let name = "https://ci.example/somebody/else".try_into().unwrap();
            params.subject_alt_names = vec![SanType::URI(name)];
        })
    }

    /// A leaf that no certificate log has seen.
    pub fn unseen_leaf(&self) -> Leaf {
        let (params, key) = leaf_params(|_| ());
        let der = self.sign_leaf(&params, &key);
        Leaf { der, key }
    }

    fn sign_leaf(&self, params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
        let leaf = params.signed_by(key, &self.authority).unwrap();
        leaf.der().to_vec()
    }

    /// The extension's content for the certificate `der` (RFC 6962, section 3.2).
    fn sct(&self, der: &[u8]) -> Vec<u8> {
        let time = (LOGGED as u64 * 1000).to_be_bytes();
        let certificate = x509_cert::Certificate::from_der(der).unwrap();
        let tbs = certificate.tbs_certificate.to_der().unwrap();
        let issuer = Sha256::digest(self.authority.key().subject_public_key_info());
        let mut signed = vec![0, 0];
        signed.extend(time);
        signed.extend([0, 1]);
        signed.extend(issuer);
        signed.extend(&(tbs.len() as u32).to_be_bytes()[1..]);
        signed.extend(&tbs);
        signed.extend([0, 0]);
        let signature = self.certificate_log.sign(&signed).unwrap();
        let mut sct = vec![0];
        sct.extend(id(&self.certificate_log));
        sct.extend(time);
        sct.extend([0, 0, 4, 3]);
        sct.extend((signature.len() as u16).to_be_bytes());
        sct.extend(signature);
        let mut list = ((sct.len() + 2) as u16).to_be_bytes().to_vec();
        list.extend((sct.len() as u16).to_be_bytes());
        list.extend(sct);
        der::asn1::OctetString::new(list).unwrap().to_der().unwrap()
    }

    /// The log's entry for `body`, taken at `time`: promise and proof.
    pub fn entry(&self, body: &Value, time: i64) -> Value {
        let content = body.to_string().into_bytes(); // keys are sorted, as RFC 8785 has them
        let promised = json!({
            "body": BASE64.encode(&content),
            "integratedTime": time,
            "logID": hex::encode(id(&self.log)),
            "logIndex": 7,
        })
        .to_string();
        // A tree of one leaf (RFC 6962, section 2.1): its hash is the root.
        let leaf = BASE64.encode(Sha256::digest([&[0], content.as_slice()].concat()));
        let note = format!("log.example - 1\n1\n{leaf}\n");
        let mut line = id(&self.log)[..4].to_vec();
        line.extend(self.log.sign(note.as_bytes()).unwrap());
        json!({
            "logIndex": "7",
            "logId": { "keyId": BASE64.encode(id(&self.log)) },
            "kindVersion": { "kind": body["kind"], "version": body["apiVersion"] },
            "integratedTime": time.to_string(),
            "inclusionPromise": {
                "signedEntryTimestamp": BASE64.encode(self.log.sign(promised.as_bytes()).unwrap()),
            },
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": leaf,
                "treeSize": "1",
                "checkpoint": {
                    "envelope": format!("{note}\n— log.example {}\n", BASE64.encode(line)),
                },
            },
            "canonicalizedBody": BASE64.encode(&content),
        })
    }

    /// A bundle v0.3: `statement` signed by `leaf`, logged at `time`.
    pub fn bundle(&self, leaf: &Leaf, statement: &[u8], time: i64) -> Value {
        let signature = BASE64.encode(leaf.key.sign(&pae(statement)).unwrap());
        let body = dsse_body(statement, &signature, &pem(&leaf.der));
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": { "rawBytes": BASE64.encode(&leaf.der) },
                "tlogEntries": [self.entry(&body, time)],
            },
            "dsseEnvelope": envelope(statement, &signature),
        })
    }

    /// `payload` signed by `leaf` as a simple signature, logged at `time`.
    pub fn simple(&self, leaf: &Leaf, payload: Vec<u8>, time: i64) -> Simple {
        let signature_b64 = BASE64.encode(leaf.key.sign(&payload).unwrap());
        let body = record_body(&payload, &signature_b64, &pem(&leaf.der));
        let annotations = [
            ("dev.sigstore.cosign/certificate", pem(&leaf.der)),
            ("dev.sigstore.cosign/chain", pem(self.authority.der())),
            ("dev.sigstore.cosign/bundle", self.annotation(&body, time)),
        ];
        let annotations = annotations.map(|(name, text)| (name.to_owned(), text));
        (payload, signature_b64, annotations.into())
    }

    /// `payload` signed by `key` as a simple signature, logged at `time`.
    pub fn key_simple(&self, key: &KeyPair, payload: Vec<u8>, time: i64) -> Simple {
        let (payload, signature_b64, mut annotations) = key_simple(key, payload);
        let body = record_body(&payload, &signature_b64, &key.public_key_pem());
        let entry = self.annotation(&body, time);
        annotations.insert("dev.sigstore.cosign/bundle".to_owned(), entry);
        (payload, signature_b64, annotations)
    }

    /// cosign's annotation of a log entry.
    pub fn annotation(&self, body: &Value, time: i64) -> String {
        let entry = self.entry(body, time);
        json!({
            "SignedEntryTimestamp": entry["inclusionPromise"]["signedEntryTimestamp"],
            "Payload": {
                "body": entry["canonicalizedBody"],
                "integratedTime": time,
                "logIndex": 7,
                "logID": hex::encode(id(&self.log)),
            },
        })
        .to_string()
    }
}

/// `payload` signed by `key` as a simple signature, which stands in no log.
pub fn key_simple(key: &KeyPair, payload: Vec<u8>) -> Simple {
    let signature_b64 = BASE64.encode(key.sign(&payload).unwrap());
    (payload, signature_b64, BTreeMap::new())
}

/// A bundle v0.3: `statement` signed by `key`, which stands in no log.
pub fn key_bundle(key: &KeyPair, statement: &[u8]) -> Value {
    let signature = BASE64.encode(key.sign(&pae(statement)).unwrap());
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": {
            "hint": BASE64.encode(key.subject_public_key_info()),
        } },
        "dsseEnvelope": envelope(statement, &signature),
    })
}

fn leaf_params(edit: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from(7u64));
    params.not_before = date_time_ymd(2025, 6, 1);
    params.not_after = date_time_ymd(2025, 6, 1) + Duration::from_secs(600);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params.subject_alt_names = vec![SanType::URI(SUBJECT.try_into().unwrap())];
    let issuer = der::asn1::Utf8StringRef::new(ISSUER).unwrap();
    params.custom_extensions = vec![CustomExtension::from_oid_content(
        &ISSUER_OID,
        issuer.to_der().unwrap(),
    )];
    edit(&mut params);
    (params, KeyPair::generate().unwrap())
}

pub fn envelope(statement: &[u8], signature_b64: &str) -> Value {
    json!({
        "payload": BASE64.encode(statement),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{ "sig": signature_b64 }],
    })
}

/// Rekor's record of an envelope (`dsse` 0.0.1); `verifier` is a certificate or a public key.
pub fn dsse_body(statement: &[u8], signature_b64: &str, verifier: &str) -> Value {
    let envelope = envelope(statement, signature_b64).to_string();
    let hash = |content: &[u8]| json!({ "algorithm": "sha256", "value": hex::encode(Sha256::digest(content)) });
    json!({
        "apiVersion": "0.0.1",
        "kind": "dsse",
        "spec": {
            "envelopeHash": hash(envelope.as_bytes()),
            "payloadHash": hash(statement),
            "signatures": [{
                "signature": signature_b64,
                "verifier": BASE64.encode(verifier),
            }],
        },
    })
}

/// Rekor's record of a signature over a file (`hashedrekord` 0.0.1).
pub fn record_body(content: &[u8], signature_b64: &str, verifier: &str) -> Value {
    json!({
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": { "hash": {
                "algorithm": "sha256",
                "value": hex::encode(Sha256::digest(content)),
            } },
            "signature": {
                "content": signature_b64,
                "publicKey": { "content": BASE64.encode(verifier) },
            },
        },
    })
}
