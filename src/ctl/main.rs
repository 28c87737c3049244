//! `attestctl`: makes, signs and verifies images' signatures and lists; enrols and challenges hosts;
//! appraises evidence.
//!
//! Output: text for people, or one JSON object with `--json`. Exit status: 0 accepted or done,
//! 1 refused, 2 could not find out, 64 used wrongly.
//!
//! Trusts: the files that its arguments name. Deliberately absent: a configuration, a
//! connection to anything but the agent or registry that is named or, in a container, to its TPM, and any
//! process but its own.

mod agent; // the way to a host's agent
mod ca;
mod certificate; // X.509 files
mod challenge;
mod challenger; // one challenge, from nonce to verdict
mod disk; // reading and writing files
mod ear; // signed results
mod enroll;
mod evidence; // for other people's verifiers
mod fetch;
mod host_policy; // of a host list
mod image;
mod import;
mod key; // private keys of publishers
mod list;
mod log;
mod memory; // what earlier answers said
mod page; // a verdict as HTML
mod policy;
mod progress; // bars on terminals
mod release; // a secret for one container
mod report; // what a verb says and how it ends
mod source; // images in files
mod sys; // the environment, changed
mod unseal; // and what it does there
mod verdict; // an appraisal, shown
mod watch; // a fleet, round after round

#[cfg(test)]
mod scratch; // directories of tests
#[cfg(test)]
mod spawn; // openssl, for tests

use clap::{Parser, Subcommand};
use report::Style;
use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

/// Make and verify what attested containers need, and judge what they prove.
#[derive(Parser)]
#[command(name = "attestctl", version, infer_subcommands = false)]
struct Cli {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// A small certificate authority for owners of containers
    #[command(subcommand)]
    Ca(ca::Verb),
    /// Image signatures, and what an image holds
    #[command(subcommand)]
    Image(image::Verb),
    /// Signature lists: which programs may run in containers of an image
    #[command(subcommand)]
    List(list::Verb),
    /// Fill a host's signature store
    Import(import::Import),
    /// Fill it from a registry
    Fetch(fetch::Fetch),
    /// Pin a host's attestation key (trust on first use)
    Enroll(enroll::Enroll),
    /// Ask a host about a container, with a fresh nonce, and judge the answer
    Challenge(challenge::Challenge),
    /// Ask a fleet's hosts about their containers, round after round
    Watch(watch::Watch),
    /// Judge evidence that was kept
    Appraise(challenge::Appraise),
    /// Evidence for other people's verifiers
    #[command(subcommand)]
    Evidence(evidence::Verb),
    /// Seal a secret to a container that a challenge accepts
    Release(release::Args),
    /// In a container: open a secret that was released to it
    Unseal(unseal::Args),
    /// Make a challenger's host policy of the administrator's host list
    HostPolicy(host_policy::Make),
    /// Check policies
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Read event logs
    #[command(subcommand)]
    Log(log::Verb),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // A closed terminal changes nothing about the outcome.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() {
                report::USED_WRONGLY
            } else {
                0
            });
        }
    };
    let style = match io::stdout().is_terminal() {
        true => Style::Coloured,
        false => Style::Plain,
    };
    let result = match &cli.verb {
        Verb::Ca(verb) => ca::run(verb),
        Verb::Image(verb) => image::run(verb),
        Verb::List(verb) => list::run(verb),
        Verb::Import(args) => import::run(args),
        Verb::Fetch(args) => fetch::run(args),
        Verb::Enroll(args) => enroll::run(args),
        Verb::Challenge(args) => challenge::challenge(args, style),
        Verb::Watch(args) => watch::run(args, style, cli.json),
        Verb::Appraise(args) => challenge::appraise_file(args, style),
        Verb::Evidence(verb) => evidence::run(verb, style),
        Verb::Release(args) => release::run(args, style),
        Verb::Unseal(args) => unseal::run(args, cli.json),
        Verb::HostPolicy(args) => host_policy::run(args),
        Verb::Policy(verb) => policy::run(verb),
        Verb::Log(verb) => log::run(verb),
    };
    match result {
        Ok(report) => match report.print(&mut io::stdout(), cli.json) {
            Ok(()) => report.ending.into(),
            // Whoever wanted the answer did not get it.
            Err(e) => {
                eprintln!("attestctl: writing the result: {e}");
                ExitCode::from(2)
            }
        },
        Err(error) => {
            let (status, object) = report::failure(&error);
            eprintln!("attestctl: {error:#}");
            if cli.json {
                // The exit status says the same.
                let _ = writeln!(io::stdout(), "{object}");
            }
            ExitCode::from(status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One nonce in 64 begins with a hyphen in base64url.
    #[test]
    fn a_nonce_may_look_like_a_flag() {
        let nonce = "-CiTwwaUUyRGRER-zLL68cykB5c";
        let asked = ["--container", "-c", "--asked-at", "2026-11-23T15:00:00Z"];
        let words = [
            "attestctl",
            "appraise",
            "--nonce",
            nonce,
            "--policy",
            "p",
            "e",
        ];
        assert!(Cli::try_parse_from(words.iter().chain(&asked)).is_ok());
    }
}
