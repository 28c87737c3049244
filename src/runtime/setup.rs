//! `attestrun setup`: makes this host able to attest. Enrols the host TPM once and prints what a
//! challenger needs to expect of this host; a second call changes nothing and prints the same.

use crate::{
    config::{self, Config},
    executables,
    guard::serials,
    host, hostlist,
};
use anyhow::{Context, Result};
use std::path::Path;
use verify::{digest::PolicyDigest, policy::Policy};

pub fn run() -> Result<()> {
    let config = Config::load()?;
    let text = config::policy()?;
    Policy::parse(&text).with_context(|| format!("policy {}", config::POLICY))?;
    let host_list = hostlist::demand(&config)?;
    // before the key: a host with a key and without this record has lost it
    serials::set_up(host::has_key()?)?;
    let enrolled = host::enroll(&config)?;
    let root = if enrolled.software {
        "software"
    } else {
        "hardware"
    };
    let facts = serde_json::json!({
        "host_ak_name": enrolled.aik_name,
        "root": root,
        "fresh": enrolled.fresh,
        "policy": PolicyDigest::of(&text),
        "runtime": executables::digest(Path::new("/proc/self/exe"))?,
        "swtpm": executables::digest(&config.swtpm)?,
        "vtpm_ca": enrolled.vtpm_ca,
        "host_list": host_list.map(|list| list.digest()),
    });
    println!("{}", serde_json::to_string_pretty(&facts)?);
    if enrolled.software {
        eprintln!(
            "attestrun setup: the host TPM {} is a software root: it proves nothing about this machine, and every \
             evidence says so",
            config.host_tpm.tcti
        );
    }
    Ok(())
}
