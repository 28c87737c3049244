//! What a watch counts, as Prometheus reads it (text exposition format 0.0.4): over HTTP, or in a file for
//! the node exporter.

use super::state::{Row, Word};
use crate::disk;
use anyhow::Context as _;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Of a request, as far as it is read.
const MAX_HEAD: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// All rounds until now.
#[derive(Default)]
pub struct Totals {
    pub rounds: u64,
    pub changes: u64,
    pub judging: Duration,
    pub last_round: Duration,
}

#[derive(Default)]
pub struct Metrics {
    text: Arc<Mutex<String>>,
    file: Option<PathBuf>,
}

impl Metrics {
    /// Serves from now on, if there is an address; until the first round there is nothing.
    pub fn new(listen: Option<SocketAddr>, file: Option<PathBuf>) -> anyhow::Result<Self> {
        let metrics = Self {
            file,
            ..Self::default()
        };
        if let Some(address) = listen {
            let listener = TcpListener::bind(address)
                .with_context(|| format!("listening on {address} for who reads metrics"))?;
            let text = metrics.text.clone();
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    // Who went away needs no answer.
                    let _ = serve(client, &text);
                }
            });
        }
        Ok(metrics)
    }

    pub fn update(
        &self,
        totals: &Totals,
        rows: &BTreeMap<(String, String), Row>,
    ) -> anyhow::Result<()> {
        let text = text(totals, rows);
        if let Some(file) = &self.file {
            disk::replace(file, "the metrics", text.as_bytes())?;
        }
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
        Ok(())
    }
}

/// One client at a time, who may take five seconds.
fn serve(mut client: TcpStream, text: &Mutex<String>) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let (status, body) = match head.starts_with(b"GET /metrics ") {
        true => {
            let text = text.lock().unwrap_or_else(PoisonError::into_inner);
            ("200 OK", text.clone())
        }
        false => ("404 Not Found", "there is /metrics alone\n".to_owned()),
    };
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn text(totals: &Totals, rows: &BTreeMap<(String, String), Row>) -> String {
    let mut out = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP attestrun_watch_{name} {help}");
        let _ = writeln!(out, "# TYPE attestrun_watch_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "attestrun_watch_{name}{labels} {value}");
        }
    };
    let one = |value: String| [(String::new(), value)];
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    metric(
        "rounds_total",
        "counter",
        "Rounds that are over.",
        &one(totals.rounds.to_string()),
    );
    metric(
        "changes_total",
        "counter",
        "Verdicts that changed.",
        &one(totals.changes.to_string()),
    );
    metric(
        "judging_seconds_total",
        "counter",
        "Processor time that reading and judging evidence took.",
        &one(totals.judging.as_secs_f64().to_string()),
    );
    metric(
        "round_seconds",
        "gauge",
        "How long the last round took.",
        &one(totals.last_round.as_secs_f64().to_string()),
    );
    metric(
        "last_round_timestamp_seconds",
        "gauge",
        "When the last round ended.",
        &one(now.unwrap_or_default().as_secs().to_string()),
    );
    let count = |word: Word| {
        rows.values()
            .filter(|row| row.word == word)
            .count()
            .to_string()
    };
    let samples = Word::ALL.map(|word| (format!("{{verdict=\"{}\"}}", word.name()), count(word)));
    metric(
        "containers",
        "gauge",
        "Containers by their last verdict.",
        &samples,
    );
    let mut checks: BTreeMap<&str, u64> = BTreeMap::new();
    for check in rows.values().flat_map(|row| &row.checks) {
        *checks.entry(check).or_default() += 1;
    }
    let samples: Vec<_> = checks
        .iter()
        .map(|(check, n)| (format!("{{check=\"{check}\"}}"), n.to_string()))
        .collect();
    metric(
        "failed_checks",
        "gauge",
        "Containers whose last answer fails this check.",
        &samples,
    );
    let samples: Vec<_> = rows
        .iter()
        .map(|((agent, container), row)| {
            let labels = format!(
                "{{agent=\"{}\",container=\"{}\"}}",
                escaped(agent),
                escaped(container)
            );
            (labels, u8::from(row.word == Word::Accepted).to_string())
        })
        .collect();
    metric(
        "accepted",
        "gauge",
        "1: the last answer was accepted.",
        &samples,
    );
    out
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_verdicts_counted() {
        let row = |word, checks: &[&str]| Row {
            word,
            checks: checks.iter().map(ToString::to_string).collect(),
            why: String::new(),
        };
        let rows = BTreeMap::from([
            (
                ("a\"\\\n".to_owned(), "c1".to_owned()),
                row(Word::Accepted, &[]),
            ),
            (
                ("a".to_owned(), "c2".to_owned()),
                row(Word::Refused, &["L-CONT", "P-FAULT"]),
            ),
            (
                ("a".to_owned(), "c3".to_owned()),
                row(Word::Refused, &["L-CONT"]),
            ),
        ]);
        let metrics = Metrics::new(Some(([127, 0, 0, 1], 0).into()), None).unwrap();
        metrics.update(&Totals::default(), &rows).unwrap();
        let text = metrics.text.lock().unwrap().clone();
        for line in [
            "attestrun_watch_accepted{agent=\"a\\\"\\\\\\n\",container=\"c1\"} 1",
            "attestrun_watch_accepted{agent=\"a\",container=\"c2\"} 0",
            "attestrun_watch_containers{verdict=\"refused\"} 2",
            "attestrun_watch_containers{verdict=\"silent\"} 0",
            "attestrun_watch_failed_checks{check=\"L-CONT\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
