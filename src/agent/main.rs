//! `attestrun-agent`: the host's attestation service. It carries challenges to the host service
//! and evidence back, and keeps nothing.
//!
//! Input: HTTP/1.1 on a unix socket (`POST /v1/challenge`, `GET /v1/host`, `GET /healthz`).
//! Output: evidence as the host service made it; errors as RFC 9457 problem documents.
//! Exit status: 0 stopped by SIGTERM or SIGINT, 1 could not serve, 64 used wrongly.
//!
//! Trusts: nobody. It runs as an unprivileged user and opens no TPM; what passes through it proves
//! itself at the challenger. Deliberately absent: a cache, a log of challenges, a configuration file.

mod http;
mod listener;
mod problem;
mod relay;

use anyhow::{Context as _, bail};
use clap::Parser;
use std::{
    future::IntoFuture as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
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

async fn serve(args: &Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let timeout = Duration::from_secs(args.timeout_secs);
    // The connection lives a little longer than the challenge, so that its error can be told.
    let (listener, socket) = listener::bind(&args.socket, timeout + GRACE)?;
    let service = http::service(relay::HostService::new(&args.host_socket, timeout));
    announce(&args.socket, &args.host_socket);

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, service)
        .with_graceful_shutdown(async {
            // An error means that the sender is gone, which is the same wish.
            let _ = stopped.await;
        })
        .into_future();
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => ended.context("serving")?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // New challengers learn at once that nobody is here; answers under way are finished.
    drop(socket);
    drop(stop);
    match tokio::time::timeout(GRACE, server).await {
        Ok(ended) => ended.context("finishing the last answers"),
        Err(_) => Ok(()),
    }
}

fn announce(socket: &Path, host_socket: &Path) {
    eprintln!(
        "attestrun-agent: listening on {}, host service at {}",
        socket.display(),
        host_socket.display()
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
