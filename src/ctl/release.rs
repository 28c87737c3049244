//! `attestctl release`: a challenge, and for a container that is accepted a secret that only it can open,
//! while it is as it was found.
//!
//! Trusts: what the challenge trusts, and this machine's random numbers. What is not accepted gets nothing:
//! [`release`] needs the witness.

use crate::{
    challenge::{self, Challenge, now},
    disk, key,
    report::{Refused, Report, Style, Usage},
};
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};
use verify::{
    appraise::Trusted,
    release::{MAX_SECRET, Release, ReleaseError, ReleaseRandom, release},
    tpm2::{MAX_SEALED, SealingRandom},
};

#[derive(clap::Args)]
pub struct Args {
    /// The secret's file; - is standard input
    secret: PathBuf,
    /// The host that must answer, by the name under which its key is pinned
    #[arg(long, value_name = "HOST")]
    to: String,
    /// The file to write; with `--format tpm2-tools`, FILE.pub, FILE.dup and FILE.seed
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// For whom: `attestctl unseal`, or tpm2-tools
    #[arg(long, value_enum, default_value = "attestctl")]
    format: Format,
    #[command(flatten)]
    challenge: Challenge,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One file
    Attestctl,
    /// Three, for tpm2_import(1); up to 128 bytes
    #[value(name = "tpm2-tools")]
    Tpm2Tools,
}

pub fn run(args: &Args, style: Style) -> anyhow::Result<Report> {
    // Whatever is wrong on this side is found before somebody is asked.
    let secret = read(&args.secret)?;
    if secret.is_empty() {
        bail!("reading the secret {}: it is empty", args.secret.display());
    }
    if args.format == Format::Tpm2Tools && secret.len() > MAX_SEALED {
        return Err(Usage(format!(
            "--format tpm2-tools: a TPM seals up to {MAX_SEALED} bytes, the secret has {}",
            secret.len()
        ))
        .into());
    }
    let (mut report, accepted) = challenge::asked(&args.challenge, style)?;
    let Some(accepted) = accepted else {
        report.text.push_str("\nnothing was released");
        return Ok(report);
    };
    if accepted.host() != args.to {
        return Err(Refused(format!(
            "it is host `{}` that answered, the secret is for `{}`: nothing was released",
            accepted.host(),
            args.to
        ))
        .into());
    }
    let release = sealed(&accepted, &secret)?;
    for (path, bytes) in args.files(&release)? {
        disk::replace(&path, "the released secret", &bytes)?;
    }
    report.text.push_str(&format!(
        "\nreleased to {} on {}: {}",
        accepted.container(),
        accepted.host(),
        args.output.display()
    ));
    report.add("released", args.output.display().to_string());
    report.add("object", release.object.name().to_string());
    Ok(report)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let max = MAX_SECRET as u64;
    if path != Path::new("-") {
        return disk::read(path, "the secret", max);
    }
    let mut secret = Vec::new();
    let mut input = io::stdin().lock().take(max + 1);
    input
        .read_to_end(&mut secret)
        .context("reading the secret from standard input")?;
    if secret.len() > MAX_SECRET {
        bail!("reading the secret from standard input: longer than {max} bytes");
    }
    Ok(secret)
}

fn sealed(to: &Trusted, secret: &[u8]) -> anyhow::Result<Release> {
    // One number in four thousand million is no scalar of P-256: the next one is.
    for _ in 0..4 {
        let random = ReleaseRandom {
            sealing: SealingRandom {
                obfuscation: key::random()?,
                ephemeral: key::random()?,
            },
            key: key::random()?,
        };
        match release(to, secret, now(), &random) {
            Err(ReleaseError::NoScalar(_)) => {}
            Err(ReleaseError::Faults) => {
                return Err(Refused(format!(
                    "{}, and audit mode's waiver is none for a secret: nothing was released",
                    ReleaseError::Faults
                ))
                .into());
            }
            done => return done.context("sealing the secret"),
        }
    }
    bail!("sealing the secret: the random numbers of this machine are none")
}

impl Args {
    fn files(&self, release: &Release) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
        if self.format == Format::Attestctl {
            return Ok(vec![(self.output.clone(), release.encode()?)]);
        }
        let parts = release.object.to_2b().into_iter();
        let named = |(part, ending): (Vec<u8>, &str)| {
            let mut path = self.output.as_os_str().to_owned();
            path.push(ending);
            (path.into(), part)
        };
        Ok(parts.zip([".pub", ".dup", ".seed"]).map(named).collect())
    }
}
