//! `/etc/attestrun/config.toml`: the one place that configures this host. No environment variable
//! and no flag relocates it (engines give a runtime neither), so a test mounts its own over it.

use anyhow::{Context, Result, anyhow, ensure};
use content::{read_trusted, store::Roots};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use verify::{pcr::HOST_BINDING_PCR, policy::MAX_POLICY};

pub const PATH: &str = "/etc/attestrun/config.toml";
/// Who may run what; its digest is measured.
pub const POLICY: &str = "/etc/attestrun/policy.toml";
/// Manifests, signatures and lists: an OCI layout without layers.
pub const SIGNATURES: &str = "/var/lib/attestrun/signatures";
/// The host AIK's blob and the binding log.
pub const HOST_STATE: &str = "/var/lib/attestrun/host";
/// Kept states of vTPMs, encrypted.
pub const VTPM_STATES: &str = "/var/lib/attestrun/vtpms";

/// The packaged file has 3 KiB.
const MAX_CONFIG: u64 = 1 << 20;

/// An event log must hold the events of a start, and fit the run directory's file system and one
/// evidence (`verify::wire::MAX_REPLY`): a larger cap would be a full disk before it is a cap.
const LOG_BYTES: std::ops::RangeInclusive<u64> = 65536..=64 << 20;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    version: u32,
    pub backend: BackendChoice,
    /// An external runtime (runc, crun, youki), absolute: engines call us without a PATH.
    pub runc: PathBuf,
    pub swtpm: PathBuf,
    /// The program of the host service, for the first create of a boot without a service manager.
    pub host_service: PathBuf,
    pub host_tpm: HostTpm,
    pub stores: Roots,
    pub vtpm: Vtpm,
    pub agent: Agent,
    /// Without it nobody says which programs this host should have, and `attestrun doctor` says that.
    pub host_list: Option<HostList>,
}

/// The administrator's list of this host's programs: see attestctl-list(1).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostList {
    pub list: PathBuf,
    /// CMS, or a Sigstore bundle without the list.
    pub signature: PathBuf,
    /// The administrator's CA (PEM).
    pub ca: PathBuf,
    /// Who must have signed: `spiffe://<domain>/tenant/<name>`.
    pub tenant: String,
    pub name: String,
    /// The class of hosts that this host is of.
    pub hosts: String,
    pub min_serial: u64,
    pub revocation: Revocation,
    #[serde(default)]
    pub crls: Vec<PathBuf>,
}

/// Whether the administrator's certificate is looked for in revocation lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revocation {
    Unchecked,
    Crl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// libcontainer where it gives what runc gives, else runc.
    Auto,
    Libcontainer,
    Runc,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTpm {
    /// A TCTI name and its configuration, as in tpm2-tools: `device:/dev/tpmrm0`.
    pub tcti: String,
    pub root: Root,
    /// The host PCR that the binding log is replayed against.
    pub binding_pcr: u8,
    /// Files of earlier versions do not have this key.
    #[serde(default)]
    pub binding_quote: BindingQuote,
}

/// When the host TPM signs that it holds a binding record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BindingQuote {
    /// With each challenge, whose quote covers it.
    #[default]
    Challenge,
    /// Once more by itself, as soon as the container exists.
    Create,
}

/// A software root is always named, here and in every evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Root {
    Hardware,
    Software,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vtpm {
    /// First and last uid of the range from which each vTPM takes one of its own.
    pub uid_range: [u32; 2],
    /// A container's event log ends here: then deny, and a fault in PCR 8.
    pub log_max_bytes: u64,
    /// Containers have a socket to their vTPM. Files of earlier versions do not have this key.
    #[serde(default = "yes")]
    pub in_containers: bool,
    /// Each vTPM has a certificate of its endorsement key, by this host's CA.
    #[serde(default)]
    pub ek_certificate: bool,
    /// The states of the vTPMs of containers that ask for it are kept.
    #[serde(default)]
    pub persistent: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The group that may ask the host service for evidence.
    pub group: String,
}

const fn yes() -> bool {
    true
}

impl Config {
    pub fn load() -> Result<Self> {
        Self::read(Path::new(PATH))
    }

    fn read(path: &Path) -> Result<Self> {
        let text = read_trusted(path, MAX_CONFIG).map_err(|why| {
            anyhow!(
                "cannot read the configuration {}: {why:#}; the package brings one, commented",
                path.display()
            )
        })?;
        let text =
            String::from_utf8(text).with_context(|| format!("configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("configuration {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        ensure!(
            config.version == 1,
            "version = {} is not known to this attestrun (it knows 1)",
            config.version
        );
        for (key, path) in [
            ("runc", &config.runc),
            ("swtpm", &config.swtpm),
            ("host_service", &config.host_service),
        ] {
            ensure!(
                path.is_absolute(),
                "{key} = {:?} must be an absolute path",
                path
            );
        }
        let stores = &config.stores;
        let containerd = stores.containerd.iter().flat_map(|c| [&c.address, &c.root]);
        for path in stores
            .containers_storage
            .iter()
            .chain(&stores.docker)
            .chain(containerd)
        {
            ensure!(
                path.is_absolute(),
                "stores: {path:?} must be an absolute path"
            );
        }
        ensure!(
            config.host_tpm.binding_pcr == HOST_BINDING_PCR.get(),
            "host_tpm.binding_pcr = {} is not {HOST_BINDING_PCR}, the only one that challengers replay",
            config.host_tpm.binding_pcr
        );
        let [first, last] = config.vtpm.uid_range;
        ensure!(
            first >= 1000 && last > first,
            "vtpm.uid_range = [{first}, {last}] must be two ascending uids above the system's own"
        );
        ensure!(
            LOG_BYTES.contains(&config.vtpm.log_max_bytes),
            "vtpm.log_max_bytes must be from {} to {}",
            LOG_BYTES.start(),
            LOG_BYTES.end()
        );
        Ok(config)
    }
}

/// The policy's bytes.
pub fn policy() -> Result<Vec<u8>> {
    read_trusted(Path::new(POLICY), MAX_POLICY as u64)
        .map_err(|why| anyhow!("cannot read the policy {POLICY}: {why:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../packaging/config.toml");

    #[test]
    fn accept_the_packaged_file() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.backend, BackendChoice::Auto);
        assert_eq!(config.host_tpm.root, Root::Hardware);
    }

    #[test]
    fn refuse_what_would_weaken_silently() {
        for (from, to) in [
            ("version = 1", "version = 2"),
            ("binding_pcr = 13", "binding_pcr = 16"),
            ("runc = \"/", "runc = \""),
            ("version = 1", "version = 1\nnonsense = 1"),
            ("root = \"hardware\"", ""),
            ("log_max_bytes = 67108864", "log_max_bytes = 67108865"),
            ("log_max_bytes = 67108864", "log_max_bytes = 0"),
            ("binding_quote = \"challenge\"", "binding_quote = \"never\""),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from} is not in the packaged file");
            assert!(Config::parse(&text).is_err(), "{from} -> {to}");
        }
    }
}
