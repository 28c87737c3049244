//! The JSON of containers-policy.json(5), field by field.

use super::{
    ContainersPolicy, Data, NotAContainersPolicy, Requirement, SignedName, Signers, SigstoreSigned,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileWire {
    default: Vec<RequirementWire>,
    #[serde(default)]
    transports: Once<Once<Vec<RequirementWire>>>,
}

/// A JSON object whose keys are names of their own; each may occur once.
struct Once<V>(Vec<(String, V)>);

impl<V> Default for Once<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Once<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Names<V> {
            type Value = Once<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once<V>, A::Error> {
                let mut found: Vec<(String, V)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    if found.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format!("`{name}` occurs twice")));
                    }
                    found.push((name, value));
                }
                Ok(Once(found))
            }
        }
        from.deserialize_map(Names(PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum RequirementWire {
    #[serde(rename = "insecureAcceptAnything")]
    InsecureAcceptAnything {},
    #[serde(rename = "reject")]
    Reject {},
    /// GPG; its fields are not looked at, since nothing under it is accepted.
    #[serde(rename = "signedBy")]
    SignedBy(serde::de::IgnoredAny),
    #[serde(rename = "sigstoreSigned")]
    SigstoreSigned(Box<SigstoreWire>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SigstoreWire {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<FulcioWire>,
    pki: Option<serde::de::IgnoredAny>,
    rekor_public_key_path: Option<PathBuf>,
    rekor_public_key_paths: Option<Vec<PathBuf>>,
    rekor_public_key_data: Option<String>,
    rekor_public_key_datas: Option<Vec<String>>,
    signed_identity: Option<SignedName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FulcioWire {
    ca_path: Option<PathBuf>,
    ca_data: Option<String>,
    oidc_issuer: String,
    subject_email: String,
}

pub(super) fn parse(bytes: &[u8]) -> Result<ContainersPolicy, NotAContainersPolicy> {
    let wire: FileWire =
        serde_json::from_slice(bytes).map_err(|e| NotAContainersPolicy(e.to_string()))?;
    let mut docker = Vec::new();
    for (transport, scopes) in wire.transports.0 {
        for (scope, requirements) in scopes.0 {
            let place = format!("transports.{transport}.\"{scope}\"");
            let requirements = all(&place, requirements)?;
            if transport == "docker" {
                docker.push((scope, requirements));
            }
        }
    }
    Ok(ContainersPolicy {
        default: all("default", wire.default)?,
        docker,
    })
}

fn all(place: &str, wires: Vec<RequirementWire>) -> Result<Vec<Requirement>, NotAContainersPolicy> {
    let wrong = |why: String| NotAContainersPolicy(format!("{place}: {why}"));
    if wires.is_empty() {
        return Err(wrong(
            "there is no requirement, so nothing could be accepted".to_owned(),
        ));
    }
    let each = wires.into_iter().map(|wire| match wire {
        RequirementWire::InsecureAcceptAnything {} => Ok(Requirement::InsecureAcceptAnything),
        RequirementWire::Reject {} => Ok(Requirement::Reject),
        RequirementWire::SignedBy(_) => Ok(Requirement::Unsupported("signedBy")),
        RequirementWire::SigstoreSigned(wire) => sigstore(*wire).map_err(wrong),
    });
    each.collect()
}

fn sigstore(wire: SigstoreWire) -> Result<Requirement, String> {
    let files = |paths: Vec<PathBuf>| paths.into_iter().map(Data::File).collect::<Vec<_>>();
    let mut by: Vec<Signers> = Vec::new();
    if let Some(path) = wire.key_path {
        by.push(Signers::Keys(vec![Data::File(path)]));
    }
    if let Some(paths) = wire.key_paths {
        by.push(Signers::Keys(files(some("keyPaths", paths)?)));
    }
    if let Some(data) = wire.key_data {
        by.push(Signers::Keys(vec![inline("keyData", &data)?]));
    }
    if let Some(datas) = wire.key_datas {
        by.push(Signers::Keys(inlines("keyDatas", datas)?));
    }
    if let Some(fulcio) = wire.fulcio {
        by.push(signed_by_fulcio(fulcio)?);
    }
    let mut rekor: Vec<Vec<Data>> = Vec::new();
    if let Some(path) = wire.rekor_public_key_path {
        rekor.push(vec![Data::File(path)]);
    }
    if let Some(paths) = wire.rekor_public_key_paths {
        rekor.push(files(some("rekorPublicKeyPaths", paths)?));
    }
    if let Some(data) = wire.rekor_public_key_data {
        rekor.push(vec![inline("rekorPublicKeyData", &data)?]);
    }
    if let Some(datas) = wire.rekor_public_key_datas {
        rekor.push(inlines("rekorPublicKeyDatas", datas)?);
    }
    let signers = by.pop();
    match (signers, by.is_empty(), wire.pki) {
        (None, _, Some(_)) => Ok(Requirement::Unsupported("pki")),
        (Some(by), true, None) if rekor.len() <= 1 => {
            let rekor = rekor.pop().unwrap_or_default();
            if matches!(by, Signers::Fulcio { .. }) && rekor.is_empty() {
                return Err("`fulcio` needs one of rekorPublicKeyPath, rekorPublicKeyPaths, rekorPublicKeyData, rekorPublicKeyDatas".to_owned());
            }
            Ok(Requirement::SigstoreSigned(Box::new(SigstoreSigned {
                by,
                rekor,
                identity: wire
                    .signed_identity
                    .unwrap_or(SignedName::MatchRepoDigestOrExact {}),
            })))
        }
        (Some(_), true, None) => Err("more than one rekorPublicKey* is given".to_owned()),
        _ => Err(
            "exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki must be given"
                .to_owned(),
        ),
    }
}

fn signed_by_fulcio(wire: FulcioWire) -> Result<Signers, String> {
    let ca = match (wire.ca_path, wire.ca_data) {
        (Some(path), None) => Data::File(path),
        (None, Some(data)) => inline("caData", &data)?,
        _ => return Err("`fulcio` needs exactly one of caPath and caData".to_owned()),
    };
    for (field, text) in [
        ("oidcIssuer", &wire.oidc_issuer),
        ("subjectEmail", &wire.subject_email),
    ] {
        if text.is_empty() {
            return Err(format!("`{field}` is empty"));
        }
    }
    Ok(Signers::Fulcio {
        ca,
        oidc_issuer: wire.oidc_issuer,
        subject_email: wire.subject_email,
    })
}

fn some<T>(field: &str, values: Vec<T>) -> Result<Vec<T>, String> {
    match values.is_empty() {
        true => Err(format!("`{field}` is empty")),
        false => Ok(values),
    }
}

fn inline(field: &str, text: &str) -> Result<Data, String> {
    STANDARD
        .decode(text)
        .map(Data::Inline)
        .map_err(|e| format!("`{field}` is not base64: {e}"))
}

fn inlines(field: &str, texts: Vec<String>) -> Result<Vec<Data>, String> {
    some(field, texts)?
        .iter()
        .map(|text| inline(field, text))
        .collect()
}
