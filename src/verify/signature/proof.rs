//! The proof: a signature's content, signer, log entry and times, each against the demand.

use super::bundle::{envelope, of_simple, of_statement};
use super::refusal::clip;
use super::simple::MAX_PAYLOAD;
use super::{
    Attested, Demand, Identity, KeyLog, Logged, Need, Proofs, PublicKey, SignatureRefusal, Signed,
    Signer, SimpleSignature, StoredSignature, TrustRoot, simple as payload, statement as stated,
};
use crate::digest::{ImageDigest, KeyDigest};
use crate::id::UnixTime;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sigstore_verify::types::{
    Artifact, Bundle, KindVersion, MediaType, PublicKeyIdentifier, Sha256Hash,
    bundle::VerificationMaterialContent,
};
use sigstore_verify::{
    CertificateError, Error, PublicKeyVerificationPolicy, VerificationPolicy, VerificationResult,
};

/// A demand that nothing could satisfy, or that asks for nothing, is named for what it is.
pub(super) fn demandable(demand: &Demand, want: &[ImageDigest]) -> Result<(), SignatureRefusal> {
    let lacks = |root: &TrustRoot, log: Need, timestamp: Need, sct: Need| {
        let asked = [
            (log, root.has.logs, "transparency log"),
            (
                timestamp,
                root.has.timestamp_authorities,
                "timestamp authority",
            ),
            (sct, root.has.certificate_logs, "certificate log"),
        ];
        asked
            .into_iter()
            .find(|(need, has, _)| *need == Need::Demanded && !has)
            .map(|(_, _, what)| SignatureRefusal::NoAuthority(what))
    };
    if want.is_empty() {
        return Err(SignatureRefusal::NoImage);
    }
    match demand {
        Demand::Key { keys, .. } if keys.is_empty() => Err(SignatureRefusal::NoKeys),
        Demand::Key {
            log: KeyLog::Demanded(root),
            ..
        } => lacks(root, Need::Demanded, Need::NotAsked, Need::NotAsked).map_or(Ok(()), Err),
        Demand::Key { .. } => Ok(()),
        Demand::Keyless { identities, .. } if identities.is_empty() => {
            Err(SignatureRefusal::NoIdentities)
        }
        Demand::Keyless { root, .. } if !root.has.authorities => {
            Err(SignatureRefusal::NoAuthority("certificate authority"))
        }
        Demand::Keyless { root, proofs, .. } => {
            lacks(root, proofs.log, proofs.timestamp, proofs.sct).map_or(Ok(()), Err)
        }
    }
}

/// A simple-signing signature.
pub(super) fn simple(
    demand: &Demand,
    stored: &SimpleSignature,
    want: &[ImageDigest],
    now: UnixTime,
) -> Result<Signed, SignatureRefusal> {
    if stored.payload.len() > MAX_PAYLOAD {
        return Err(SignatureRefusal::TooLong(stored.payload.len()));
    }
    let signature = BASE64
        .decode(&stored.signature_b64)
        .map_err(|_| SignatureRefusal::NotBase64)?;
    let artifact = || Artifact::from(stored.payload.as_slice());
    let (said, proved) = match demand {
        Demand::Key { keys, log } => {
            // The payload is read once it is known to be the key's.
            let key = maker(keys, &signature, &stored.payload)?;
            let said = payload::read(&stored.payload, want)?;
            let bundle = || of_simple(stored);
            (said, by_key(key, log, bundle, artifact(), now)?)
        }
        Demand::Keyless {
            root,
            identities,
            proofs,
        } => {
            let said = payload::read(&stored.payload, want)?;
            let bundle = of_simple(stored)?;
            (
                said,
                keyless(root, identities, *proofs, bundle, artifact(), now)?,
            )
        }
    };
    Ok(proved.about(said.image, Some(said.docker_reference)))
}

/// A statement in a bundle or an envelope.
pub(super) fn statement(
    demand: &Demand,
    stored: &StoredSignature,
    want: &[ImageDigest],
    predicate_type: &str,
    now: UnixTime,
) -> Result<Attested, SignatureRefusal> {
    let bundle = of_statement(stored)?;
    let dsse = envelope(&bundle)?;
    let (kind, statement) = (&dsse.payload_type, dsse.payload.as_bytes().to_vec());
    let artifact = |image: ImageDigest| Artifact::from(Sha256Hash::from(*image.as_bytes()));
    let (said, proved) = match demand {
        Demand::Key { keys, log } => {
            let key = maker(keys, dsse.signature.sig.as_bytes(), &dsse.pae())?;
            let said = stated::read(kind, &statement, want, predicate_type)?;
            let artifact = artifact(said.image);
            (
                said,
                by_key(key, log, || Ok(bundle.clone()), artifact, now)?,
            )
        }
        Demand::Keyless {
            root,
            identities,
            proofs,
        } => {
            let said = stated::read(kind, &statement, want, predicate_type)?;
            let artifact = artifact(said.image);
            (
                said,
                keyless(root, identities, *proofs, bundle, artifact, now)?,
            )
        }
    };
    Ok(Attested {
        signed: proved.about(said.image, None),
        statement,
        predicate: said.predicate,
    })
}

/// Signer and times, proved; not yet said about what.
struct Proved {
    signer: Signer,
    log: Option<Logged>,
    timestamps: Vec<UnixTime>,
}

impl Proved {
    fn about(self, image: ImageDigest, docker_reference: Option<String>) -> Signed {
        Signed {
            signer: self.signer,
            image,
            docker_reference,
            log: self.log,
            timestamps: self.timestamps,
        }
    }
}

/// The key that made `signature` over `message`.
fn maker<'k>(
    keys: &'k [PublicKey],
    signature: &[u8],
    message: &[u8],
) -> Result<&'k PublicKey, SignatureRefusal> {
    keys.iter()
        .find(|key| key.made(signature, message))
        .ok_or_else(|| {
            SignatureRefusal::WrongKey(keys.iter().map(PublicKey::fingerprint).collect())
        })
}

/// `key` made the signature; is it in a log, where that is demanded?
fn by_key(
    key: &PublicKey,
    log: &KeyLog,
    bundle: impl FnOnce() -> Result<Bundle, SignatureRefusal>,
    artifact: Artifact<'_>,
    now: UnixTime,
) -> Result<Proved, SignatureRefusal> {
    let signer = Signer::Key(key.fingerprint());
    let KeyLog::Demanded(root) = log else {
        return Ok(Proved {
            signer,
            log: None,
            timestamps: Vec::new(),
        });
    };
    let mut bundle = bundle()?;
    logged(&bundle)?;
    let material = &mut bundle.verification_material;
    // The key is the demand's; a certificate that lies beside it proves nothing here.
    material.content = VerificationMaterialContent::PublicKey(PublicKeyIdentifier::new(""));
    if !root.has.timestamp_authorities {
        material.timestamp_verification_data = Default::default();
    }
    let policy = PublicKeyVerificationPolicy::new(key.der().clone());
    let result = root
        .verifier()
        .verify(artifact, &bundle, &policy)
        .map_err(refusal)?;
    if !result.tlog_verified() {
        return Err(SignatureRefusal::NotLogged);
    }
    Ok(Proved {
        signer,
        log: place(&bundle),
        timestamps: times(&result, now)?,
    })
}

/// The signature was made by a certificate for one of `identities` under `root`, and stands where it is
/// demanded to stand.
fn keyless(
    root: &TrustRoot,
    identities: &[Identity],
    proofs: Proofs,
    mut bundle: Bundle,
    artifact: Artifact<'_>,
    now: UnixTime,
) -> Result<Proved, SignatureRefusal> {
    let certificate = match bundle.signing_certificate() {
        Some(der) => KeyDigest::of(der.as_bytes()),
        None => return Err(SignatureRefusal::NotKeyless),
    };
    if proofs.log == Need::Demanded {
        logged(&bundle)?;
    }
    let material = &mut bundle.verification_material;
    let stamps = &mut material.timestamp_verification_data;
    if proofs.timestamp == Need::Demanded && stamps.rfc3161_timestamps.is_empty() {
        return Err(SignatureRefusal::NotTimestamped);
    }
    // What the root has nobody to judge by is left out; it proves nothing then.
    if !root.has.timestamp_authorities {
        *stamps = Default::default();
    }
    if !root.has.logs {
        material.tlog_entries.clear();
        if bundle.media_type == MediaType::Bundle0_1 {
            bundle.media_type = MediaType::Bundle0_2;
        }
    }
    let mut policy = VerificationPolicy::any_identity();
    let material = &bundle.verification_material;
    let in_log = !material.tlog_entries.is_empty();
    if !in_log
        && material
            .timestamp_verification_data
            .rfc3161_timestamps
            .is_empty()
    {
        let why = "it has neither log entry nor timestamp by anybody whom the trusted root names";
        return Err(SignatureRefusal::Time(why.to_owned()));
    }
    if in_log {
        logged(&bundle)?;
    } else {
        policy = policy.skip_tlog_unsafe();
    }
    if proofs.sct == Need::NotAsked {
        policy = policy.skip_sct();
    }
    let result = root
        .verifier()
        .verify(artifact, &bundle, &policy)
        .map_err(refusal)?;
    // The verifier says what it has checked; what it has not does not count.
    if !result.certificate_verified() {
        return Err(SignatureRefusal::Certificate(
            "it was not checked".to_owned(),
        ));
    }
    if proofs.sct == Need::Demanded && !result.sct_verified() {
        return Err(SignatureRefusal::Sct("it was not checked".to_owned()));
    }
    if in_log && !result.tlog_verified() {
        return Err(SignatureRefusal::NotLogged);
    }
    let timestamps = times(&result, now)?;
    if timestamps.is_empty() {
        return Err(SignatureRefusal::Time("nothing says when".to_owned()));
    }
    Ok(Proved {
        signer: identified(&result, identities, certificate)?,
        log: if in_log { place(&bundle) } else { None },
        timestamps,
    })
}

/// The certificate's names are those of one of `identities`.
fn identified(
    result: &VerificationResult,
    identities: &[Identity],
    certificate: KeyDigest,
) -> Result<Signer, SignatureRefusal> {
    let subject = result.identity().ok_or(SignatureRefusal::Nameless(
        "neither an email address nor a URI",
    ))?;
    let issuer = result
        .issuer()
        .ok_or(SignatureRefusal::Nameless("no issuer"))?;
    if !identities.iter().any(|wanted| wanted.fits(issuer, subject)) {
        return Err(SignatureRefusal::WrongIdentity {
            subject: clip(subject),
            issuer: clip(issuer),
        });
    }
    Ok(Signer::Identity {
        subject: subject.to_string(),
        issuer: issuer.to_owned(),
        certificate,
    })
}

/// There is a log entry, and each has something that the log signed: the verifier looks at what is
/// there and misses nothing.
fn logged(bundle: &Bundle) -> Result<(), SignatureRefusal> {
    let entries = &bundle.verification_material.tlog_entries;
    if entries.is_empty() {
        return Err(SignatureRefusal::NotLogged);
    }
    for entry in entries {
        let proved = entry
            .inclusion_proof
            .as_ref()
            .is_some_and(|proof| !proof.checkpoint.is_empty());
        if entry.inclusion_promise.is_none() && !proved {
            let why = "an entry has neither the log's promise nor a proof with its checkpoint";
            return Err(SignatureRefusal::Log(why.to_owned()));
        }
    }
    Ok(())
}

/// The first entry's place, as far as the log signed it.
fn place(bundle: &Bundle) -> Option<Logged> {
    let entry = bundle.verification_material.tlog_entries.first()?;
    // A promise covers index and time; a proof of Rekor 1 has the index within its own tree.
    let version_2 = entry.kind_version == KindVersion::HashedRekordV002;
    match (&entry.inclusion_promise, &entry.inclusion_proof) {
        (Some(_), _) => Some(Logged {
            index: entry.log_index.get(),
            at: entry
                .integrated_time
                .map(|time| UnixTime::from_secs(time.as_second())),
        }),
        (None, Some(_)) if version_2 => Some(Logged {
            index: entry.log_index.get(),
            at: None,
        }),
        (None, Some(proof)) => Some(Logged {
            index: proof.log_index.get(),
            at: None,
        }),
        (None, None) => None,
    }
}

/// All proved times; none may be later than `now`.
fn times(result: &VerificationResult, now: UnixTime) -> Result<Vec<UnixTime>, SignatureRefusal> {
    let times: Vec<_> = result
        .verified_timestamps()
        .iter()
        .map(|time| UnixTime::from_secs(time.as_second()))
        .collect();
    match times.iter().find(|time| **time > now) {
        Some(future) => Err(SignatureRefusal::Future(*future)),
        None => Ok(times),
    }
}

/// The verifier's reasons in our words.
fn refusal(error: Error) -> SignatureRefusal {
    match error {
        Error::Certificate(CertificateError::Sct(why)) => SignatureRefusal::Sct(clip(why)),
        Error::Certificate(why) => {
            let text = clip(why);
            // webpki says it within its own words, by the names of its variants.
            match ["CertExpired", "CertNotValidYet"]
                .iter()
                .any(|name| text.contains(name))
            {
                true => SignatureRefusal::NotInForce(text),
                false => SignatureRefusal::Certificate(text),
            }
        }
        Error::TransparencyLog(why) => SignatureRefusal::Log(clip(why)),
        Error::Timestamp(why) => SignatureRefusal::Time(clip(why)),
        Error::SignatureInvalid(why) | Error::ArtifactMismatch(why) => {
            SignatureRefusal::Altered(clip(why))
        }
        other => SignatureRefusal::Malformed(clip(other)),
    }
}
