//! `attestctl host-policy`: what a challenger expects of a host's programs, made of the administrator's
//! host list, which is verified here and once.

use crate::{
    disk,
    list::verify::Demands,
    report::{Report, Usage},
};
use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use std::{collections::BTreeSet, path::PathBuf};
use verify::{digest::FileDigest, hostlist::HostPolicy};

#[derive(Args)]
pub struct Make {
    #[command(flatten)]
    demands: Demands,
    /// Where the host policy goes; the challenger's policy names it as `host_policy`
    #[arg(short, long)]
    output: PathBuf,
}

pub fn run(args: &Make) -> anyhow::Result<Report> {
    let Some(class) = &args.demands.hosts else {
        bail!(Usage(
            "a host policy is made of a host list: say --hosts".to_owned()
        ));
    };
    let list = args.demands.verified()?;
    let context = || format!("making a host policy of {}", args.demands.list.display());
    let policy = HostPolicy::of(&list, class).with_context(context)?;
    let (runtimes, swtpms) = (policy.ending_in("/attestrun"), policy.ending_in("/swtpm"));
    let head = format!(
        "# Made by attestctl host-policy of the {}, signed by {}.\n\
         # The challenger's policy names this file as host_policy, and its programs:\n\
         # runtimes = {}\n# swtpms = {}\n",
        policy.title(),
        list.signer().tenant(),
        quoted(&runtimes),
        quoted(&swtpms)
    );
    let text = head.clone() + &policy.to_toml().with_context(context)?;
    disk::replace(&args.output, "the host policy", text.as_bytes())?;
    Ok(Report::done(
        format!("{head}# written to {}", args.output.display()),
        json!({
            "list": list.digest(),
            "serial": list.serial(),
            "files": list.list().files().len(),
            "runtimes": runtimes,
            "swtpms": swtpms,
            "output": args.output,
        }),
    ))
}

fn quoted(digests: &BTreeSet<FileDigest>) -> String {
    let each: Vec<_> = digests
        .iter()
        .map(|digest| format!("\"{digest}\""))
        .collect();
    format!("[{}]", each.join(", "))
}
