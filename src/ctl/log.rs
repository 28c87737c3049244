//! `attestctl log`: a container's event log in clear text.
//!
//! A log alone proves nothing: only a quote says that it is complete and true (`attestctl appraise`).
//! `verify` checks what a log can be checked for by itself, and prints the PCR values it explains.

use crate::{
    disk,
    report::{Refused, Report},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};
use verify::{
    event::Event,
    evidence::Evidence,
    imalog::{self, Entry, Replay, Template},
    pcr,
};

#[derive(Subcommand)]
pub enum Verb {
    /// Print the events
    Show(File),
    /// Check the log's form and print the PCR values that it explains
    Verify(File),
    /// Print the log in another form: a TCG canonical event log in JSON (RFC 7464), as systemd has it
    Render(File),
}

#[derive(Args)]
pub struct File {
    /// An event log (IMA binary runtime list), or evidence saved by `attestctl challenge`
    file: PathBuf,
}

pub fn run(verb: &Verb) -> anyhow::Result<Report> {
    match verb {
        Verb::Show(file) => show(&read(&file.file)?),
        Verb::Render(file) => render(&read(&file.file)?),
        Verb::Verify(file) => verify(&read(&file.file)?)
            .with_context(|| format!("verifying the log {}", file.file.display())),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let bytes = disk::read(path, "the log", disk::LARGE)?;
    let context = || format!("reading the log {}", path.display());
    // A list starts with a PCR index (a u32 below 24, little-endian), JSON with `{`.
    let log = match bytes.first() {
        Some(b'{') => {
            Evidence::parse(&bytes, bytes.len())
                .with_context(context)?
                .container_log
        }
        _ => bytes,
    };
    imalog::parse(&log)
        .map_err(|e| Refused(e.to_string()))
        .with_context(context)
}

/// One entry as JSON: contents when they are known events, bytes when not.
fn json_of(entry: &Entry) -> Value {
    let (name, content) = match entry.template() {
        Template::ImaNg { digest, path } => {
            ("file", json!({ "path": path.as_str(), "digest": digest }))
        }
        Template::ImaBuf { name, buf } => (
            name.as_str(),
            serde_json::from_slice(buf).unwrap_or_else(|_| json!({ "hex": hex::encode(buf) })),
        ),
        Template::Opaque { sha256, .. } => ("opaque", json!({ "sha256": hex::encode(sha256) })),
    };
    json!({ "pcr": entry.pcr().get(), "event": name, "content": content })
}

fn show(entries: &[Entry]) -> anyhow::Result<Report> {
    let events: Vec<Value> = entries.iter().map(json_of).collect();
    let mut text = String::new();
    for event in &events {
        let name = event["event"].as_str().unwrap_or_default();
        let pcr = event["pcr"].as_u64().unwrap_or_default();
        writeln!(text, "PCR {pcr:>2}  {name:<22} {}", event["content"])?;
    }
    Ok(Report::done(text.trim_end(), json!({ "events": events })))
}

fn render(entries: &[Entry]) -> anyhow::Result<Report> {
    let text = imalog::cel_json(entries);
    let records: Vec<Value> = text
        .split_terminator('\n')
        .map(|record| serde_json::from_str(record.trim_start_matches('\u{1e}')))
        .collect::<Result<_, _>>()?;
    Ok(Report::done(
        text.trim_end_matches('\n'),
        json!({ "records": records }),
    ))
}

fn verify(entries: &[Entry]) -> anyhow::Result<Report> {
    let mut files = 0usize;
    for (index, entry) in entries.iter().enumerate() {
        match entry.template() {
            Template::ImaNg { .. } => files += 1,
            Template::Opaque { .. } => {
                return Err(Refused(format!(
                    "entry {index} is opaque: this log was made for somebody who may not read it"
                ))
                .into());
            }
            Template::ImaBuf { .. } => {
                let event =
                    Event::from_entry(entry).map_err(|e| Refused(format!("entry {index}: {e}")))?;
                if index == 0 && !matches!(event, Event::HostLink(_)) {
                    return Err(Refused(format!(
                        "entry 0 is `{}`; a container's log starts with the host link",
                        event.name()
                    ))
                    .into());
                }
            }
        }
    }
    let replay = Replay::of(entries);
    let values = replay.sha256(&pcr::QUOTED);
    let mut text = format!(
        "{} entries ({files} files), well-formed; they explain these PCR values (sha256 bank):\n",
        entries.len()
    );
    let mut object = serde_json::Map::new();
    for (index, value) in pcr::QUOTED.iter().zip(values) {
        let value = hex::encode(value);
        writeln!(text, "  {:>2}  {value}", index.get())?;
        object.insert(index.get().to_string(), Value::String(value));
    }
    text.push_str(
        "whether a TPM holds these values, only a quote says: attestctl challenge, appraise",
    );
    Ok(Report::done(
        text,
        json!({ "entries": entries.len(), "files": files, "sha256": object }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use verify::{digest::FileDigest, event::HostLink, imalog::EncodedPath, tpm2::TpmName};

    fn entries() -> Vec<Entry> {
        let link = Event::HostLink(HostLink {
            host_ak_name: TpmName::of_public(b"x"),
            host_reset: 7,
            host_boot: "b".to_owned(),
        });
        let path = EncodedPath::of(b"/bin/a b").unwrap();
        vec![
            link.to_entry().unwrap(),
            Event::Start.to_entry().unwrap(),
            Entry::file(FileDigest::of(b"elf"), path),
        ]
    }

    fn bytes(entries: &[Entry]) -> Vec<u8> {
        entries.iter().flat_map(Entry::encode).collect()
    }

    #[test]
    fn accept_a_log_and_print_it() {
        let dir = Scratch::new();
        let file = dir.path().join("log");
        std::fs::write(&file, bytes(&entries())).unwrap();
        let entries = read(&file).unwrap();
        let shown = show(&entries).unwrap();
        assert!(
            shown.text.contains("PCR  0  attestrun.host-link"),
            "{}",
            shown.text
        );
        assert!(shown.text.contains("/bin/a%20b"), "{}", shown.text);
        assert_eq!(shown.json["events"][2]["event"], "file");
        let verified = verify(&entries).unwrap();
        assert_eq!(verified.json["files"], 1);
        let rendered = render(&entries).unwrap();
        assert_eq!(rendered.json["records"][2]["pcr"], 10);
        assert!(rendered.text.starts_with("\u{1e}{"), "{}", rendered.text);
        assert_eq!(verified.json["sha256"]["3"], "0".repeat(64));
        assert_ne!(verified.json["sha256"]["0"], "0".repeat(64));
    }

    #[test]
    fn refuse_altered_and_reordered_logs() {
        let dir = Scratch::new();
        let file = dir.path().join("log");
        let mut altered = bytes(&entries());
        *altered.last_mut().unwrap() ^= 1;
        std::fs::write(&file, altered).unwrap();
        assert!(read(&file).unwrap_err().is::<Refused>());
        let mut reordered = entries();
        reordered.swap(0, 1);
        assert!(verify(&reordered).unwrap_err().is::<Refused>());
        let unknown = Entry::buffer(pcr::RUNTIME, "attestrun.other", b"{}".to_vec()).unwrap();
        assert!(verify(&[unknown]).unwrap_err().is::<Refused>());
    }
}
