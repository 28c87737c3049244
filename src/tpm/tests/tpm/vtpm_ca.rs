//! A host's CA of vTPMs: what it certifies, who believes it, and what is in the vTPM then.

use crate::Raw;
use crate::spawn::{Swtpm, TempDir, tool};
use std::path::Path;
use tpm::filter::EK_CERTIFICATE;
use tpm::host::{AikBlob, BlobError, HostError, HostTpm, HostTpmConfig, VtpmCaBlob};
use tpm::vtpm::Vtpm;
use tpm::wire::{Code, Command, RH_OWNER, Writer};
use verify::id::{ContainerId, UnixTime};
use verify::tpm2::{AttestationKey, EkRefusal, EndorsementKey, Public, certify};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// A host with a loaded CA, its certificate, and the software root behind it.
struct Host {
    _swtpm: Swtpm,
    tpm: HostTpm,
    ca: Vec<u8>,
}

impl Host {
    fn new() -> Self {
        let (swtpm, port) = Swtpm::host();
        let tcti = format!("swtpm:host=127.0.0.1,port={port}");
        let mut tpm = HostTpm::open(&HostTpmConfig { tcti }).unwrap();
        let aik = tpm.create_aik().unwrap();
        tpm.load_aik(&aik).unwrap();
        let blob = tpm.create_vtpm_ca().unwrap();
        tpm.load_vtpm_ca(&VtpmCaBlob::parse(&blob.encode()).unwrap())
            .unwrap();
        let ca = tpm.vtpm_ca_certificate(NOW).unwrap();
        Self {
            _swtpm: swtpm,
            tpm,
            ca,
        }
    }

    fn certify(&mut self, ek: &EndorsementKey, make: &tpm::Make) -> Vec<u8> {
        let id = ContainerId::parse("c1").unwrap();
        self.tpm.certify_vtpm(ek, &id, make, NOW).unwrap()
    }
}

fn ek_of(vtpm: &mut Vtpm) -> EndorsementKey {
    let ek = vtpm.create_ek().unwrap();
    vtpm.flush(ek.clone()).unwrap();
    EndorsementKey::check(&Public::parse(&ek.public).unwrap()).unwrap()
}

fn openssl(arguments: &[&str], dir: &Path) -> String {
    let output = tool("openssl", arguments, dir);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    text.into_owned()
}

#[test]
fn a_vtpms_key_is_certified() {
    let mut host = Host::new();
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    vtpm.lock_down().unwrap();
    let ek = ek_of(&mut vtpm);
    let make = vtpm.make().unwrap();
    assert_eq!(make.manufacturer.to_be_bytes(), *b"IBM\0");
    let certificate = host.certify(&ek, &make);

    let judged = |ek: &EndorsementKey, ca: &[u8], now| {
        certify(ek.clone(), &certificate, &[], &[ca.to_vec()], now)
    };
    let good = judged(&ek, &host.ca, NOW).unwrap();
    assert!(good.issuer().contains("software root"), "{}", good.issuer());
    let (_another, stream) = Swtpm::vtpm();
    let another = ek_of(&mut Vtpm::new(stream));
    assert_eq!(judged(&another, &host.ca, NOW), Err(EkRefusal::OtherKey));
    let stranger = Host::new();
    assert!(matches!(
        judged(&ek, &stranger.ca, NOW),
        Err(EkRefusal::Untrusted(_))
    ));
    let before = UnixTime::from_secs(NOW.secs() - 1);
    assert!(matches!(
        judged(&ek, &host.ca, before),
        Err(EkRefusal::Untrusted(_))
    ));

    // a stranger's judgement, and the fields of the profile
    let dir = TempDir::new();
    for (name, der) in [("ca", &host.ca), ("ek", &certificate)] {
        std::fs::write(dir.path().join(name), der).unwrap();
        let pem = format!("{name}.pem");
        openssl(
            &["x509", "-inform", "DER", "-in", name, "-out", &pem],
            dir.path(),
        );
    }
    let verify = ["verify", "-x509_strict", "-attime", "1800000000"];
    let said = openssl(
        &[&verify[..], &["-CAfile", "ca.pem", "ek.pem"]].concat(),
        dir.path(),
    );
    assert!(said.contains("OK"), "{said}");
    let text = openssl(&["x509", "-noout", "-text", "-in", "ek.pem"], dir.path());
    for words in [
        "CN = c1",
        "2.23.133.2.1=id:49424D00",
        "2.23.133.2.2=swtpm",
        "2.23.133.2.3=id:",
        "Key Agreement",
        "2.23.133.8.1",
        "CA:FALSE",
        "Subject Directory Attributes",
        "Not After : Dec 31 23:59:59 9999 GMT",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = openssl(&["x509", "-noout", "-text", "-in", "ca.pem"], dir.path());
    for words in ["CA:TRUE, pathlen:0", "Certificate Sign", "2.23.133.8.1"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// It is where a maker leaves it, for everybody to read, and it stays what it is.
#[test]
fn the_certificate_is_written_once() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut raw = Raw(stream.try_clone().unwrap());
    let mut vtpm = Vtpm::new(stream);
    vtpm.lock_down().unwrap();
    // longer than what is written at once
    let certificate: Vec<u8> = (0..900u32).map(|n| n as u8).collect();
    vtpm.deliver(&certificate).unwrap();
    let on_index = |code| {
        Command::new(code)
            .handle(EK_CERTIFICATE)
            .handle(EK_CERTIFICATE)
    };
    let read = on_index(Code::NV_READ)
        .password(b"")
        .parameters(Writer::default().u16(900).u16(0));
    assert_eq!(raw.send(&read).unwrap().parameters[2..], certificate);
    let again = vtpm.deliver(b"another").unwrap_err().to_string();
    assert!(again.contains("exists already"), "{again}");
    let write = Command::new(Code::NV_WRITE)
        .handle(RH_OWNER)
        .handle(EK_CERTIFICATE)
        .password(b"")
        .parameters(Writer::default().sized(b"another").u16(0));
    assert_eq!(raw.send(&write).unwrap_err().name(), Some("NV_LOCKED"));
}

/// The key signs whatever it is given, so it must never be taken for one that attests.
#[test]
fn the_cas_key_attests_nothing() {
    let (_swtpm, port) = Swtpm::host();
    let tcti = format!("swtpm:host=127.0.0.1,port={port}");
    let mut tpm = HostTpm::open(&HostTpmConfig { tcti }).unwrap();
    let blob = tpm.create_vtpm_ca().unwrap();
    assert_eq!(AikBlob::parse(&blob.encode()), Err(BlobError::Magic));
    let public = Public::parse(blob.public()).unwrap();
    assert!(AttestationKey::check(&public).is_err());
    assert!(matches!(tpm.vtpm_ca_certificate(NOW), Err(HostError::NoCa)));
    // another TPM's, or a guess at the authorization value
    let (_other, port) = Swtpm::host();
    let tcti = format!("swtpm:host=127.0.0.1,port={port}");
    let mut other = HostTpm::open(&HostTpmConfig { tcti }).unwrap();
    let error = other.load_vtpm_ca(&blob).unwrap_err();
    assert!(matches!(error, HostError::ForeignKey { .. }), "{error}");
    let mut guess = blob.encode();
    let at = guess.len() - 32;
    guess[at..].copy_from_slice(&[0; 32]);
    tpm.load_vtpm_ca(&VtpmCaBlob::parse(&guess).unwrap())
        .unwrap();
    let error = tpm.vtpm_ca_certificate(NOW).unwrap_err();
    assert!(matches!(error, HostError::KeyAuth { .. }), "{error}");
}
