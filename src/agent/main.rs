//! `attestrun-agent`: the host's attestation service. It carries challenges to the host service
//! and evidence back, and keeps nothing.
//!
//! Input: HTTP/1.1 on a unix socket and, when told so, over TLS 1.3 with client certificates; what there
//! is, `openapi.json` says. Output: evidence as the host service made it, or with opaque entries for who
//! may not read them; errors as RFC 9457 problem documents.
//! Exit status: 0 stopped by SIGTERM or SIGINT, 1 could not serve, 64 used wrongly.
//!
//! Trusts: the challengers' CA for who asks. It runs as an unprivileged user and opens no TPM; what
//! passes through it proves itself at the challenger. Deliberately absent: a cache, a log of
//! challenges, a configuration file.

mod caller;
mod coding; // compressed answers
mod http;
mod listener;
mod metrics;
mod problem;
mod rate;
mod relay;
mod seats;
mod tls;

use crate::{
    caller::{Access, Caller, Peer},
    metrics::Metrics,
    rate::Rate,
    tls::{Revocation, Tls},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// Answers challenges about this host's containers.
#[derive(Parser)]
#[command(name = "attestrun-agent", version)]
struct Args {
    /// Where challengers connect; the directory must exist.
    #[arg(long, default_value = "/run/attestrun-agent/challenge.sock")]
    socket: PathBuf,
    /// Where the host service listens.
    #[arg(long, default_value = "/run/attestrun-host/agent.sock")]
    host_socket: PathBuf,
    /// How long one challenge may take, in seconds (a hardware TPM signs one quote at a time).
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout_secs: u64,
    /// Who looks after the fleet, beside root: `uid:<number>` of this machine, or the URI of a client
    /// certificate. They see every container and log; tenants see their own. May be given several times
    #[arg(long, value_name = "CHALLENGER")]
    fleet: Vec<Caller>,
    /// Questions that one challenger may ask per second; ten seconds' worth may come at once
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Serve other machines as well, by HTTPS (TLS 1.3) at this address
    #[arg(long, value_name = "ADDRESS:PORT", requires_all = ["tls_cert", "tls_key", "challengers", "revocation"])]
    listen: Option<SocketAddr>,
    /// The certificate chain to show there (PEM)
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<PathBuf>,
    /// The CA of challengers' certificates (PEM); nobody comes in without one
    #[arg(long, value_name = "FILE", requires = "listen")]
    challengers: Option<PathBuf>,
    /// Their revocation list (PEM), or the word `unchecked`
    #[arg(long, value_name = "FILE|unchecked", requires = "listen")]
    revocation: Option<Revocation>,
    /// Run although the effective user is root. The agent needs no privilege: avoid this.
    #[arg(long)]
    allow_root: bool,
}

/// After SIGTERM, answers that are under way get this long.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // A failed write to a closed terminal changes nothing about the outcome.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 64 } else { 0 });
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("attestrun-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    refuse_root(rustix::process::geteuid().is_root(), args.allow_root)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?
        .block_on(serve(args))
}

/// Whoever breaks into the network-facing process shall find nothing: not even root's files.
fn refuse_root(is_root: bool, allowed: bool) -> anyhow::Result<()> {
    if is_root && !allowed {
        bail!(
            "refusing to run as root: this process faces challengers and needs no privilege; \
             start it as the user `attestrun` (the packaged systemd unit does), or name --allow-root"
        );
    }
    Ok(())
}

impl Args {
    /// `None`: this machine alone. The grammar demands all four or none.
    fn tls(&self) -> Option<(SocketAddr, tls::Files<'_>)> {
        let files = tls::Files {
            cert: self.tls_cert.as_deref()?,
            key: self.tls_key.as_deref()?,
            challengers: self.challengers.as_deref()?,
            revocation: self.revocation.as_ref()?,
        };
        Some((self.listen?, files))
    }
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let timeout = Duration::from_secs(args.timeout_secs);
    // The connection lives a little longer than the challenge, so that its error can be told.
    let lifetime = timeout + GRACE;
    let metrics = Arc::new(Metrics::default());
    let (local, socket) = listener::bind(&args.socket, lifetime, metrics.clone())?;
    let remote = match args.tls() {
        Some((address, files)) => {
            let config = tls::config(&files)?;
            Some(Tls::bind(address, config, lifetime, metrics.clone()).await?)
        }
        None => None,
    };
    announce(args, remote.as_ref());
    let router = http::router(http::Service {
        host: relay::HostService::new(&args.host_socket, timeout),
        access: Access::new(&args.fleet),
        rate: Rate::new(args.rate),
        metrics,
    })
    .into_make_service_with_connect_info::<Peer>();

    let (stop, stopped) = tokio::sync::watch::channel(());
    // An error means that the sender is gone, which is the wish.
    let stopping = |mut stopped: tokio::sync::watch::Receiver<()>| async move {
        while stopped.changed().await.is_ok() {}
    };
    let local =
        axum::serve(local, router.clone()).with_graceful_shutdown(stopping(stopped.clone()));
    let remote =
        remote.map(|remote| axum::serve(remote, router).with_graceful_shutdown(stopping(stopped)));
    let serving = async {
        let remote = async {
            match remote {
                Some(remote) => remote.await,
                None => Ok(()),
            }
        };
        tokio::try_join!(async { local.await }, remote).map(drop)
    };
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => ended.context("serving")?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // New challengers learn at once that nobody is here; answers under way are finished.
    drop(socket);
    drop(stop);
    match tokio::time::timeout(GRACE, serving).await {
        Ok(ended) => ended.context("finishing the last answers"),
        Err(_) => Ok(()),
    }
}

fn announce(args: &Args, remote: Option<&Tls>) {
    let remote = match remote {
        Some(tls) => format!(" and https://{}", tls.address()),
        None => String::new(),
    };
    eprintln!(
        "attestrun-agent: listening on {}{remote}, host service at {}",
        args.socket.display(),
        args.host_socket.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuse_root_unless_named() {
        assert!(refuse_root(true, false).is_err());
        assert!(refuse_root(true, true).is_ok());
        assert!(refuse_root(false, false).is_ok());
    }
}
