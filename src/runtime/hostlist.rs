//! The administrator's list of this host's programs, and whether those that containers' trust rests on are
//! in it: attestrun, the host service, swtpm, the external backend, the engines' shims.

use crate::{
    config::{self, BackendChoice, Config, HostList},
    executables,
};
use anyhow::{Context, Result, anyhow, bail};
use content::{MAX_TRUST_FILE, read_trusted};
use std::{
    fs,
    path::{Path, PathBuf},
};
use verify::{
    cms::{Revocation, certificates_from_pem, revocation_list},
    digest::FileDigest,
    hostlist::host_class,
    id::UnixTime,
    siglist::{ListRule, VerifiedList, verify_list},
};

/// What engines put between themselves and a runtime, where distributions and engines install it.
const SHIMS: [&str; 6] = [
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/local/bin/containerd-shim-runc-v2",
    "/usr/bin/conmon",
    "/usr/local/bin/conmon",
    "/usr/libexec/podman/conmon",
    "/usr/libexec/crio/conmon",
];

/// The list, by its signature and as of now.
pub fn verified(named: &HostList) -> Result<VerifiedList> {
    let read = |what: &str, path: &Path| {
        read_trusted(path, MAX_TRUST_FILE)
            .map_err(|why| anyhow!("cannot read {what} {}: {why:#}", path.display()))
    };
    let roots = read("the administrator's CA", &named.ca)?;
    let roots = certificates_from_pem(&roots).with_context(|| named.ca.display().to_string())?;
    let revocation = match named.revocation {
        config::Revocation::Unchecked => Revocation::Unchecked,
        config::Revocation::Crl => {
            let lists = named.crls.iter();
            let lists = lists.map(|path| {
                let list = read("the revocation list", path)?;
                revocation_list(&list).with_context(|| path.display().to_string())
            });
            Revocation::Crls(lists.collect::<Result<_>>()?)
        }
    };
    let class = host_class(&named.hosts).with_context(|| {
        format!(
            "host_list.hosts = {:?} is no name of a class of hosts",
            named.hosts
        )
    })?;
    let rule = ListRule {
        roots: &roots,
        tenant: &named.tenant,
        name: &named.name,
        min_serial: named.min_serial,
        revocation: &revocation,
    };
    let statement = read("the host list", &named.list)?;
    let signature = read("the host list's signature", &named.signature)?;
    let now = UnixTime::from_secs(chrono::Utc::now().timestamp());
    verify_list(&statement, &signature, &rule, &[class], now)
        .map_err(|why| anyhow!("the host list {} is refused: {why}", named.list.display()))
}

/// A program of this host, and its content or why that is not known.
#[derive(Debug)]
pub struct Program {
    pub path: PathBuf,
    pub digest: Result<FileDigest>,
}

/// Those that are installed.
pub fn programs(config: &Config) -> Vec<Program> {
    let myself = fs::read_link("/proc/self/exe").unwrap_or_else(|_| "/proc/self/exe".into());
    let mut paths = vec![myself, config.host_service.clone(), config.swtpm.clone()];
    let backend = match config.backend {
        BackendChoice::Libcontainer => false,
        // where there is none, the embedded one has to do
        BackendChoice::Auto => config.runc.exists(),
        BackendChoice::Runc => true,
    };
    paths.extend(backend.then(|| config.runc.clone()));
    paths.extend(
        SHIMS
            .map(PathBuf::from)
            .into_iter()
            .filter(|path| path.exists()),
    );
    let program = |path: PathBuf| Program {
        digest: executables::digest(&path),
        path,
    };
    paths.into_iter().map(program).collect()
}

/// A copy of a listed program is that program.
pub fn is_listed(list: &VerifiedList, digest: &FileDigest) -> bool {
    list.allows_digest(digest).is_ok()
}

/// For `attestrun setup`: the list's digest, once all of the programs are in it; `None` if the
/// configuration names no list.
pub fn demand(config: &Config) -> Result<Option<VerifiedList>> {
    let Some(named) = &config.host_list else {
        return Ok(None);
    };
    let list = verified(named)?;
    for Program { path, digest } in programs(config) {
        let digest = digest?;
        if !is_listed(&list, &digest) {
            bail!(
                "refused: {} ({digest}) is not in the host list {} serial {}; add it there with a higher \
                 serial, or install the listed one (attestrun doctor shows all programs)",
                path.display(),
                list.name(),
                list.serial()
            );
        }
    }
    Ok(Some(list))
}
