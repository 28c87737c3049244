//! `attestctl unseal`: in a container, opens what was released to it. The container's own TPM decides; what
//! the file says about whom it is for is only words.

use crate::{
    disk,
    report::{Refused, Report},
};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::json;
use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};
use tpm::vtpm::{UnsealError, Vtpm};
use verify::{
    pcr::SEALED,
    release::{MAX_RELEASE, Release, ReleaseError},
};

#[derive(clap::Args)]
pub struct Args {
    /// What `attestctl release` wrote
    file: PathBuf,
    /// Write the secret to this new file, which only its owner can read [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The container's TPM
    #[arg(long, value_name = "SOCKET", default_value = "/run/attestrun/tpm.sock")]
    tpm: PathBuf,
}

pub fn run(args: &Args, as_json: bool) -> anyhow::Result<Report> {
    let reading = || format!("reading the released secret {}", args.file.display());
    let bytes = disk::read(&args.file, "the released secret", MAX_RELEASE as u64)?;
    let release = Release::parse(&bytes).with_context(reading)?;
    let mut tpm = connect(&args.tpm)?;
    let unsealed = tpm
        .unseal(&release.object, &SEALED)
        .map_err(|why| refusal(why, &release))?;
    let secret = release.open(unsealed).map_err(|why| match why {
        ReleaseError::Changed => Refused(why.to_string()).into(),
        why => anyhow::Error::from(why),
    })?;
    match &args.output {
        Some(path) => {
            disk::create_secret(path, "the secret", &secret)?;
            let text = format!("{}: {} bytes", path.display(), secret.len());
            Ok(Report::done(text, json!({ "secret_file": path })))
        }
        None if as_json => {
            let secret = BASE64.encode(secret);
            Ok(Report::done("", json!({ "secret": secret })))
        }
        None => {
            let mut out = io::stdout().lock();
            out.write_all(&secret)
                .and_then(|()| out.flush())
                .context("writing the secret")?;
            Ok(Report::done("", json!({})))
        }
    }
}

fn connect(socket: &Path) -> anyhow::Result<Vtpm> {
    let stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "connecting to the container's TPM {}; a container whose configuration has no place for it has none \
             (attestrun-vtpm(7))",
            socket.display()
        )
    })?;
    Ok(Vtpm::new(stream))
}

fn refusal(why: UnsealError, release: &Release) -> anyhow::Error {
    let whom = format!(
        "it was released to container {} on {}",
        release.container, release.host
    );
    match why {
        UnsealError::OtherTpm => Refused(format!("{why}: {whom}")).into(),
        UnsealError::OtherState => Refused(format!(
            "{why}: {whom}; /run/attestrun/event.log has what was recorded since (PCR 8: faults)"
        ))
        .into(),
        UnsealError::Tpm(error) => {
            anyhow::Error::from(error).context("asking the container's TPM to unseal the secret")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_is_missing_is_named() {
        let dir = Scratch::new();
        let args = Args {
            file: dir.path().join("none"),
            output: None,
            tpm: dir.path().join("tpm.sock"),
        };
        let error = run(&args, false).unwrap_err();
        assert!(format!("{error:#}").contains("none"), "{error:#}");
        std::fs::write(&args.file, b"{}").unwrap();
        let error = format!("{:#}", run(&args, false).unwrap_err());
        assert!(error.contains("not a released secret"), "{error}");
        let error = format!("{:#}", connect(&args.tpm).map(drop).unwrap_err());
        assert!(error.contains("tpm.sock"), "{error}");
    }
}
