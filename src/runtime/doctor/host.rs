//! What every attested container rests on: configuration, policy, the host's key, the record of serials,
//! and that nobody but root can speak to the host TPM.

use super::{Examined, Finding};
use crate::{
    config::{self, Root},
    guard::serials,
    host,
};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};
use verify::{digest::PolicyDigest, policy::Policy};

pub fn configuration(examined: &Examined) -> Vec<Finding> {
    const NAME: &str = "configuration";
    let config = match &examined.config {
        Err(why) => {
            let remedy = format!(
                "put a correct {} there, see packaging/config.toml",
                config::PATH
            );
            return vec![Finding::refused(NAME, why, remedy)];
        }
        Ok(config) => config,
    };
    let root = match config.host_tpm.root {
        Root::Hardware => "a hardware root",
        Root::Software => "a software root, which proves nothing about this machine",
    };
    vec![Finding::ok(
        NAME,
        format!(
            "{}; host TPM {}, {root}",
            config::PATH,
            config.host_tpm.tcti
        ),
    )]
}

pub fn policy(_: &Examined) -> Vec<Finding> {
    const NAME: &str = "policy";
    let remedy = "attestctl policy check says what is wrong with a policy";
    let read = config::policy().map_err(|error| error.to_string());
    let judged = read.and_then(|text| match Policy::parse(&text) {
        Ok(_) => Ok(PolicyDigest::of(&text)),
        Err(error) => Err(format!("{}: {error}", config::POLICY)),
    });
    vec![match judged {
        Ok(digest) => Finding::ok(NAME, format!("{}, {digest}", config::POLICY)),
        Err(why) => Finding::refused(NAME, why, remedy),
    }]
}

/// How fast files are measured depends on it, nothing else.
pub fn sha256(_: &Examined) -> Vec<Finding> {
    vec![Finding::ok("sha256", content::sha::implementation())]
}

pub fn attestation_key(_: &Examined) -> Vec<Finding> {
    const NAME: &str = "host-key";
    vec![match host::has_key() {
        Ok(true) => Finding::ok(NAME, "this host has its attestation key"),
        Ok(false) => Finding::refused(
            NAME,
            "this host has no attestation key",
            "attestrun setup makes it, once",
        ),
        Err(error) => Finding::unknown(NAME, format!("{error:#}"), "run it as root"),
    }]
}

pub fn vtpm_ca(examined: &Examined) -> Vec<Finding> {
    const NAME: &str = "vtpm-ca";
    match &examined.config {
        Ok(config) if config.vtpm.ek_certificate => {}
        _ => return Vec::new(),
    }
    vec![match host::has_vtpm_ca() {
        Ok(true) => Finding::ok(NAME, "this host has a CA for its containers' vTPMs"),
        Ok(false) => Finding::refused(
            NAME,
            "vtpm.ek_certificate = true, and this host has no CA for its containers' vTPMs",
            "attestrun setup makes it, once, while the host service is stopped",
        ),
        Err(error) => Finding::unknown(NAME, format!("{error:#}"), "run it as root"),
    }]
}

pub fn serials(_: &Examined) -> Vec<Finding> {
    const NAME: &str = "serials";
    vec![match serials::readable() {
        Ok(()) => Finding::ok(NAME, "the record of the lists' serials is whole"),
        Err(error) => Finding::refused(
            NAME,
            format!("{error:#}"),
            "attestrun setup makes it on a new host; on another, put it back from a backup",
        ),
    }]
}

/// Whoever can open the host TPM can extend PCRs and use up its sessions, unseen by the host service.
pub fn tpm_devices(_: &Examined) -> Vec<Finding> {
    const NAME: &str = "tpm-device";
    let devices = match tpm_devices_of(Path::new("/dev")) {
        Ok(devices) => devices,
        Err(error) => {
            return vec![Finding::unknown(
                NAME,
                format!("/dev: {error}"),
                "run it as root",
            )];
        }
    };
    if devices.is_empty() {
        return vec![Finding::ok(NAME, "this machine has no TPM device")];
    }
    let one = |(path, open): (String, Option<String>)| match open {
        None => Finding::ok(NAME, format!("{path}: root's alone")),
        Some(whom) => Finding::refused(
            NAME,
            format!("{path} can be opened by {whom}"),
            "a udev rule: SUBSYSTEM==\"tpm*\", OWNER=\"root\", GROUP=\"root\", MODE=\"0600\"",
        ),
    };
    devices.into_iter().map(one).collect()
}

/// Each TPM device below `dev`, and who else than root can open it.
fn tpm_devices_of(dev: &Path) -> io::Result<Vec<(String, Option<String>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dev)? {
        let entry = entry?;
        let data = entry.metadata()?;
        let named = entry.file_name().to_string_lossy().starts_with("tpm");
        if named && data.file_type().is_char_device() {
            let open = open_to(data.mode(), data.uid(), data.gid());
            found.push((entry.path().display().to_string(), open));
        }
    }
    found.sort();
    Ok(found)
}

fn open_to(mode: u32, uid: u32, gid: u32) -> Option<String> {
    let mode_text = format!("mode {:04o}", mode & 0o7777);
    match () {
        () if mode & 0o006 != 0 => Some(format!("everybody ({mode_text})")),
        () if uid != 0 => Some(format!("uid {uid}, its owner ({mode_text})")),
        () if gid != 0 && mode & 0o060 != 0 => Some(format!("group {gid} ({mode_text})")),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_open_a_tpm() {
        assert_eq!(open_to(0o20600, 0, 0), None);
        assert_eq!(open_to(0o20660, 0, 0), None);
        assert_eq!(open_to(0o20600, 0, 104), None);
        for (mode, uid, gid) in [
            (0o660, 0, 104),
            (0o600, 104, 0),
            (0o666, 0, 0),
            (0o604, 0, 0),
        ] {
            assert!(open_to(mode, uid, gid).is_some(), "{mode:o} {uid} {gid}");
        }
        // other devices, and plain files of such a name, are not its business
        let names = tpm_devices_of(Path::new("/proc/self")).unwrap();
        assert!(names.is_empty(), "{names:?}");
    }
}
