//! Golden vectors of the contract: bytes that other programs, and later versions, rely on.
//!
//! A failing test here means that old logs, records or policies would be read differently. Add
//! vectors for what is new; do not change these. The digests were computed with other tools
//! (`sha256sum`, Python's hashlib) from the texts.

use crate::binding::{self, Claim, HostPart, Kind, LogEntry, Record};
use crate::check::{Check, Finding, Outcome, Subject, Waiver};
use crate::digest::*;
use crate::event::Event;
use crate::id::{ContainerId, Nonce, UnixTime};
use crate::imalog::{EncodedPath, Entry};
use crate::pcr::{self, PcrIndex};
use crate::qualify;
use crate::tpm2::{TpmName, aik_template, ek_template};

mod events;

const TIME: UnixTime = UnixTime::from_secs(1_795_446_000);
const BOOT: &str = "01234567-89ab-cdef-0123-456789abcdef";

fn hex_of(byte: u8) -> String {
    hex::encode([byte; 32])
}
fn name(byte: u8) -> TpmName {
    TpmName::parse(&format!("000b{}", hex_of(byte))).unwrap()
}
macro_rules! digest {
    ($type:ident, $byte:literal) => {
        $type::from_bytes([$byte; 32])
    };
}
use digest;

/// `@1` stands for `sha256:` and 32 bytes of that value.
fn spelled(text: &str) -> String {
    (1..=9).fold(text.to_owned(), |t, n| {
        t.replace(&format!("@{n}"), &format!("sha256:{}", hex_of(n)))
    })
}

fn record() -> Record {
    let claim = Claim {
        container: ContainerId::parse("web-1").unwrap(),
        created: TIME,
        vtpm_ak_name: name(1),
        vtpm_ek_name: name(2),
        vtpm_reset: 1,
        vtpm_restart: 0,
        image: digest!(ImageDigest, 1).into(),
        image_config: digest!(ConfigDigest, 2).into(),
        bundle_config: digest!(BundleDigest, 3),
        profile: digest!(ProfileDigest, 4),
        siglist: digest!(ListDigest, 5).into(),
        user_cert: digest!(KeyDigest, 6).into(),
        policy: digest!(PolicyDigest, 7),
        mode: "enforce".into(),
        tier: "none".into(),
        runtime: digest!(FileDigest, 8),
        swtpm: digest!(FileDigest, 9),
        peers: vec![],
    };
    let host = HostPart {
        seq: 3,
        prev: hex_of(0),
        host_boot: BOOT.into(),
        host_reset: 7,
        host_ak_name: name(3),
    };
    Record::new(claim, host).unwrap()
}

#[test]
fn binding_record_has_these_bytes() {
    let text = spelled(&format!(
        concat!(
            r#"{{"bundle_config":"@3","container":"web-1","created":"2026-11-23T15:00:00Z","#,
            r#""host_ak_name":"000b{}","host_boot":"{}","host_reset":7,"image":"@1","image_config":"@2","#,
            r#""mode":"enforce","peers":[],"policy":"@7","prev":"{}","profile":"@4","runtime":"@8","seq":3,"#,
            r#""siglist":"@5","swtpm":"@9","tier":"none","user_cert":"@6","v":1,"vtpm_ak_name":"000b{}","#,
            r#""vtpm_ek_name":"000b{}","vtpm_reset":1,"vtpm_restart":0}}"#
        ),
        hex_of(3),
        BOOT,
        hex_of(0),
        hex_of(1),
        hex_of(2),
    ));
    let record = record();
    assert_eq!(String::from_utf8_lossy(&record.canonical().unwrap()), text);
    assert_eq!(Record::parse(text.as_bytes()), Ok(record.clone()));
    assert_eq!(record.digest().unwrap().hex(), RECORD_DIGEST);
}

#[test]
fn a_record_without_image_and_list_says_so() {
    let mut record = record();
    record.claim.image = OrNone::None;
    record.claim.siglist = OrNone::None;
    assert!(Record::parse(&record.canonical().unwrap()).is_err());
    record.claim.image_config = OrNone::None;
    record.claim.user_cert = OrNone::None;
    let bytes = record.canonical().unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for said in [
        r#""image":"none","image_config":"none","#,
        r#""siglist":"none""#,
        r#""user_cert":"none""#,
    ] {
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(Record::parse(&bytes), Ok(record));
    for other in ["null", "\"\"", "\"None\""] {
        let text = text.replacen("\"none\"", other, 1);
        assert!(Record::parse(text.as_bytes()).is_err(), "{other}");
    }
}

const RECORD_DIGEST: &str = "a7f799c2ffce36f16a1b1ea5f9921449a9f7f2d1f0ff8e49760c959322b5b7e6";

#[test]
fn binding_log_has_these_bytes() {
    let r = RecordDigest::from_bytes(hex::decode(RECORD_DIGEST).unwrap().try_into().unwrap());
    let bind = LogEntry::new(Kind::Bind, &name(1), r);
    let line = format!("{{\"ak\":\"{AK}\",\"kind\":\"bind\",\"r\":\"sha256:{RECORD_DIGEST}\"}}\n");
    assert_eq!(String::from_utf8_lossy(&bind.line().unwrap()), line);
    let entry = |kind| LogEntry::new(kind, &name(1), r);
    let values =
        [Kind::Bind, Kind::Unbind, Kind::Void].map(|kind| hex::encode(entry(kind).value()));
    assert_eq!(values, LOG_VALUES);
    let words = [Kind::Bind, Kind::Unbind, Kind::Void].map(|kind| kind.to_string());
    assert_eq!(words, ["bind", "unbind", "void"]);
    let log = [entry(Kind::Bind), entry(Kind::Unbind)];
    assert_eq!(hex::encode(binding::replay([0; 32], &log)), PCR_13);
}

const AK: &str = "14bb15c01c1667c550aee735795d59151ca556543c00500e6569220003b30ebe";
const LOG_VALUES: [&str; 3] = [
    "8988240cfafaa0b60502c06faf4c615c1162c272382b20eea91024aff5f0e51e",
    "297ddfc82d64d89140094b9f057fdac8728b054d71c391a61da230c44964c8b9",
    "6cb5be508681c623f681122fa4e0af563596aad13f7a3a389d2581874bea1d70",
];
const PCR_13: &str = "d31844fa2646d97638f2dfcc305c8bb8e615a7b0ae808af39694fbe30180cce5";

#[test]
fn qualifying_data_has_these_bytes() {
    let nonce = Nonce::new((0..20).collect()).unwrap();
    let id = ContainerId::parse("web-1").unwrap();
    let channel = qualify::NO_CHANNEL_BINDING;
    assert_eq!(channel, b"none");
    let r = digest!(RecordDigest, 1);
    let digest = qualify::vtpm_quote_digest(b"attest", b"signature");
    assert_eq!(
        hex::encode(digest),
        "017caa5769e5b74b150ea2e815c3c958edcd2d49eac257d2bcdc9b882e7f673a"
    );
    assert_eq!(
        hex::encode(qualify::vtpm(&nonce, &id, channel)),
        "85d4b218d8d1f0a905b9702ea85906929f41e5246cdd3de7fedbb886cd5e9eae"
    );
    assert_eq!(
        hex::encode(qualify::host_leaf(&nonce, &id, channel, &digest, &r)),
        "bb5fbc2992425e22b7932ac73286455c9fbe9b3ac762590d84170701ff390de4"
    );
    assert_eq!(
        hex::encode(qualify::host_only(&nonce, &id, channel)),
        "c5bd0ac13b6b84be86121b6c80bf1077c927456101f6f70ca85fe88953cda768"
    );
    assert_eq!(
        hex::encode(qualify::batch_node(&digest, &[0; 32])),
        "f403d00f009cf15cd6051fbee64254f3e6757f15f52d40094a8d18c1bed67fae"
    );
    assert_eq!(
        hex::encode(qualify::binding_quote(&r)),
        "2b97e80adbe395a2c4ad4997ab8985469bd2f1cef437b3c359f84c5b980f0690"
    );
}

#[test]
fn log_entries_have_these_bytes() {
    let path = EncodedPath::of(b"/bin/a b").unwrap();
    let file = Entry::file(FileDigest::of(b"abc"), path);
    assert_eq!(
        hex::encode(file.encode()),
        "0a000000592939fd6c3219c5b835bdf18d7b7845b45c34d706000000696d612d6e673b000000280000007368613235363a00ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad0b0000002f62696e2f612532306200"
    );
    assert_eq!(
        hex::encode(file.extend_values().1),
        "ecc2331c38822c937e73de33800b292c8c9e2af40e6ec99ecc6a0b781ddbda84"
    );
    let start = Event::Start.to_entry().unwrap();
    assert_eq!(
        hex::encode(start.encode()),
        "0b000000e78ba576cae8fd031a20da1ec280d2afab4318be07000000696d612d62756646000000280000007368613235363a0044136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a1000000061747465737472756e2e737461727400020000007b7d"
    );
    assert_eq!(
        hex::encode(start.extend_values().1),
        "ba73fccd1990f383f55c4c44f422f8cfe4ce23fc01f29b879d68041880db7987"
    );
}

#[test]
fn key_templates_have_these_bytes() {
    let ek = concat!(
        "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa",
        "0006008000430010000300100020",
    );
    let ek = format!("{ek}{}0020{}", hex_of(0), hex_of(0));
    assert_eq!(hex::encode(ek_template()), ek);
    assert_eq!(
        hex::encode(aik_template()),
        "0023000b00050472000000100018000b0003001000000000"
    );
}

#[test]
fn pcrs_have_these_uses() {
    let map = [
        pcr::RUNTIME,
        pcr::LAUNCH,
        pcr::IMAGE,
        pcr::ROOTFS,
        pcr::POLICY,
        pcr::LIST,
        pcr::FAULTS,
        pcr::FILES,
        pcr::LIFE,
        pcr::HOST_BINDING_PCR,
    ];
    assert_eq!(map.map(PcrIndex::get), [0, 1, 2, 4, 5, 7, 8, 10, 11, 13]);
}

#[test]
fn checks_have_these_names() {
    let names: Vec<&str> = Check::ALL.iter().map(|check| check.name()).collect();
    let expected = "Q-PARSE Q-MAGIC Q-TYPE Q-SIG Q-QD Q-SIGNER Q-AKATTR Q-SEL Q-PCRDIG Q-CLOCK Q-FW K-HAK K-VAK K-DISTINCT \
        H-ROOT B-HASH B-ID B-IMG B-EPOCH B-LIVE B-ORDER L-PARSE L-TMPL L-CONT L-REPLAY L-FIRST L-PATH L-VIOL P-OPAQUE P-UNLISTED P-MISSING P-HASH \
        P-FAULT P-HOST P-CERT P-SIGLIST P-KEYS P-MODE P-POLICY P-RUNTIME P-ROOTFS P-ORIGIN \
        P-PROGRAMS P-MOUNTS T-AGE T-SKEW T-TIER C-ARGS C-ENV C-CAPS C-NS \
        C-MOUNT C-DEV C-HOOK C-PEER";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn outcomes_have_these_spellings() {
    let waived = Outcome::Waived {
        by: Waiver::SoftwareRoot,
        what: "w".into(),
    };
    for (outcome, text, json) in [
        (Outcome::Ok, "ok", r#"{"outcome":"ok"}"#),
        (
            Outcome::Refused { why: "w".into() },
            "refused: w",
            r#"{"outcome":"refused","why":"w"}"#,
        ),
        (
            Outcome::Unknown { why: "w".into() },
            "unknown: w",
            r#"{"outcome":"unknown","why":"w"}"#,
        ),
        (
            waived.clone(),
            "waived by software-root: w",
            r#"{"outcome":"waived","by":"software-root","what":"w"}"#,
        ),
    ] {
        assert_eq!(outcome.to_string(), text);
        assert_eq!(serde_json::to_string(&outcome).unwrap(), json);
        assert_eq!(text.split([':', ' ']).next(), Some(outcome.word()));
    }
    let waivers = [
        Waiver::SoftwareRoot,
        Waiver::NoIma,
        Waiver::TierNone,
        Waiver::TierFanotify,
        Waiver::Audit,
        Waiver::UnsignedImage,
        Waiver::Sandbox,
        Waiver::Build,
        Waiver::NoImage,
        Waiver::NoList,
        Waiver::AnyProgram,
        Waiver::AnyMounts,
        Waiver::RootfsBoot,
        Waiver::RootfsWatched,
        Waiver::RootfsStat,
        Waiver::KernelKeys,
    ];
    let names = [
        "software-root",
        "no-ima",
        "tier-none",
        "tier-fanotify",
        "audit",
        "unsigned-image",
        "sandbox",
        "build",
        "no-image",
        "no-list",
        "any-program",
        "any-mounts",
        "rootfs-boot",
        "rootfs-watched",
        "rootfs-stat",
        "kernel-keys",
    ];
    assert_eq!(waivers.map(Waiver::name), names);
    assert_eq!(
        serde_json::to_string(&waivers).unwrap(),
        serde_json::to_string(&names).unwrap()
    );
    let finding = Finding {
        check: Check::HRoot,
        subject: Subject::Host,
        outcome: waived,
        detail: "d".into(),
    };
    assert_eq!(
        serde_json::to_string(&finding).unwrap(),
        r#"{"check":"H-ROOT","subject":"host","outcome":"waived","by":"software-root","what":"w","detail":"d"}"#
    );
}
