//! `attestctl enroll`: pins a host's attestation key in an inventory: proved, if manufacturers are named whose
//! TPMs are trusted, else by trust on first use, and the output says so.
//!
//! A software root stays a software root, whoever certified it: expectations must waive it by name.

mod prove;

use crate::{
    agent::{self, AgentArgs},
    disk,
    report::{Refused, Report},
};
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use prove::{Manufacturers, Proved, prove};
use serde_json::json;
use std::{fmt::Write as _, path::PathBuf};
use verify::{
    tpm2::{AttestationKey, Public, TpmName},
    wire::{HostFacts, Root},
};

#[derive(Args)]
pub struct Enroll {
    #[command(flatten)]
    agent: AgentArgs,
    /// What to call this host
    #[arg(long)]
    name: String,
    /// File with [[hosts]] entries: expectations, or a file of their own; made if absent
    #[arg(long)]
    inventory: PathBuf,
    /// Have the host prove that its key is in a TPM of these manufacturers: a directory with their CAs
    /// (PEM or DER)
    #[arg(long, value_name = "DIR")]
    manufacturers: Option<PathBuf>,
}

#[cfg(test)]
impl Enroll {
    pub fn of(socket: &std::path::Path, name: &str, inventory: &std::path::Path) -> Self {
        Self {
            agent: AgentArgs::at(socket),
            name: name.to_owned(),
            inventory: inventory.into(),
            manufacturers: None,
        }
    }
}

/// What is written about a host.
#[derive(Debug, PartialEq, Eq)]
struct Pin {
    name: String,
    ak_name: String,
    root: &'static str,
    binding_pcr_start: String,
}

pub fn run(args: &Enroll) -> anyhow::Result<Report> {
    check_name(&args.name)?;
    let agent = args.agent.agent()?;
    let facts = agent::get(&agent, "/v1/host", "application/json")?;
    let facts = HostFacts::parse(&facts)
        .with_context(|| format!("reading what the host at {agent} says of itself"))?;
    let (pin, ak_name) = pin(&args.name, &facts)?;
    let proved = match &args.manufacturers {
        Some(directory) => Some(prove(&agent, &ak_name, &Manufacturers::read(directory)?)?),
        None => None,
    };
    let old = match args.inventory.exists() {
        true => disk::read_text(&args.inventory, "the inventory")?,
        false => String::new(),
    };
    let added = add(&old, &pin, proved.as_ref())
        .with_context(|| format!("adding host `{}` to {}", pin.name, args.inventory.display()))?;
    if let Some(text) = &added {
        disk::replace(&args.inventory, "the inventory", text.as_bytes())?;
    }
    Ok(Report::done(
        format!(
            "pinned host `{}` in {}{}\n  attestation key {}\n  root of trust: {} (as the host says)\n{}",
            pin.name,
            args.inventory.display(),
            if added.is_some() {
                ""
            } else {
                " (it was there already)"
            },
            pin.ak_name,
            pin.root,
            match &proved {
                Some(proved) => format!(
                    "Proved: the key is in the TPM whose endorsement key was certified by {}.",
                    proved.issuer()
                ),
                None => "Trust on first use: nothing proved that this key lives in a TPM of that host.\n\
                         Compare the key's name with `host_ak_name` that `attestrun setup` prints on the host's \
                         console, or name the manufacturers whose TPMs you trust (--manufacturers)."
                    .to_owned(),
            },
        ),
        json!({
            "host": pin.name,
            "ak_name": pin.ak_name,
            "root": pin.root,
            "binding_pcr_start": pin.binding_pcr_start,
            "trust": if proved.is_some() { "proved" } else { "pinned" },
            "manufacturer": proved.as_ref().map(Proved::issuer),
            "inventory": args.inventory,
            "changed": added.is_some(),
        }),
    ))
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if name.is_empty() || name.len() > 255 || !name.bytes().all(ok) {
        bail!(crate::report::Usage(format!(
            "`{name}` cannot name a host: use letters, digits, `-`, `.` and `_`"
        )));
    }
    Ok(())
}

/// Refuses keys that could sign what no TPM made: pinning one would make every later check vain.
fn pin(name: &str, facts: &HostFacts) -> anyhow::Result<(Pin, TpmName)> {
    let public = Public::parse_2b(&facts.ak).context("reading the host's attestation key")?;
    let key = AttestationKey::check(&public)
        .map_err(|e| Refused(format!("the host's key cannot attest: {e}")))?;
    let pin = Pin {
        name: name.to_owned(),
        ak_name: key.name().to_string(),
        root: match facts.root {
            Root::Software => "software",
            Root::Hardware => "hardware",
        },
        binding_pcr_start: hex::encode(facts.binding_pcr_start),
    };
    Ok((pin, key.name()))
}

/// The inventory's text with `pin` in it; `None` if exactly this is there already.
fn add(old: &str, pin: &Pin, proved: Option<&Proved>) -> anyhow::Result<Option<String>> {
    let table: toml::Table = toml::from_str(old).map_err(|e| anyhow!("it is not TOML: {e}"))?;
    let hosts = match table.get("hosts") {
        None => &[][..],
        Some(toml::Value::Array(hosts)) => hosts,
        Some(_) => bail!("its `hosts` is not a list of [[hosts]] tables"),
    };
    let text = |host: &toml::Value, key: &str| {
        host.get(key)
            .and_then(toml::Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    for host in hosts {
        let known = Pin {
            name: text(host, "name"),
            ak_name: text(host, "ak_name"),
            root: pin.root,
            binding_pcr_start: text(host, "binding_pcr_start"),
        };
        if known.name == pin.name && known == *pin && text(host, "root") == pin.root {
            return Ok(None);
        }
        if known.name == pin.name {
            bail!(Refused(format!(
                "another key is pinned for `{}` ({}); if the host was really enrolled anew, remove that \
                 [[hosts]] entry by hand first",
                pin.name, known.ak_name
            )));
        }
        if known.ak_name == pin.ak_name {
            bail!(Refused(format!(
                "this key is pinned as host `{}` already",
                known.name
            )));
        }
    }
    let mut text = old.to_owned();
    if !text.is_empty() && !text.ends_with("\n\n") {
        text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
    }
    let how = match proved {
        Some(proved) => format!("In the TPM that {} certified.", proved.issuer()),
        None => "Pinned by trust on first use; see attestctl enroll.".to_owned(),
    };
    // Names and hex digits: nothing in these needs TOML's escapes.
    write!(
        text,
        "# {}\n[[hosts]]\nname = \"{}\"\nak_name = \"{}\"\n\
         root = \"{}\"\nbinding_pcr_start = \"{}\"\n",
        how, pin.name, pin.ak_name, pin.root, pin.binding_pcr_start
    )
    .context("writing the entry")?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, key: char) -> Pin {
        Pin {
            name: name.to_owned(),
            ak_name: format!("000b{}", key.to_string().repeat(64)),
            root: "software",
            binding_pcr_start: "0".repeat(64),
        }
    }

    #[test]
    fn accept_new_hosts_and_keep_what_was_there() {
        let first = add("# mine\nmax_age_secs = 60\n", &host("a", '1'), None)
            .unwrap()
            .unwrap();
        assert!(
            first.starts_with("# mine\nmax_age_secs = 60\n\n"),
            "{first}"
        );
        let second = add(&first, &host("b", '2'), None).unwrap().unwrap();
        let table: toml::Table = toml::from_str(&second).unwrap();
        assert_eq!(table["hosts"].as_array().unwrap().len(), 2);
        assert_eq!(
            table["hosts"][1]["ak_name"].as_str().unwrap(),
            host("b", '2').ak_name
        );
        assert_eq!(add(&second, &host("a", '1'), None).unwrap(), None);
    }

    #[test]
    fn refuse_another_key_for_a_known_host() {
        let text = add("", &host("a", '1'), None).unwrap().unwrap();
        let refused = |pin| add(&text, &pin, None).unwrap_err().is::<Refused>();
        assert!(refused(host("a", '2')));
        assert!(refused(host("b", '1')));
        let mut other_start = host("a", '1');
        other_start.binding_pcr_start = "1".repeat(64);
        assert!(refused(other_start));
        let hardware = text.replace("software", "hardware");
        assert!(
            add(&hardware, &host("a", '1'), None)
                .unwrap_err()
                .is::<Refused>()
        );
    }

    #[test]
    fn refuse_names_that_toml_would_read_otherwise() {
        for bad in ["", "a\"b", "a\nb", "a b", "ä"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("host-1.example").is_ok());
    }
}
