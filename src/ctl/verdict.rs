//! An appraisal for people and for programs: host and container, each check by name, the verdict.

use crate::report::{Ending, Report, Style};
use serde_json::{Value, json};
use std::fmt::Write as _;
use verify::{
    appraise::{Appraisal, ContainerReport, HostReport, Verdict},
    check::{Finding, Outcome, Subject},
};

pub fn report(appraisal: &Appraisal, style: Style) -> Report {
    Report {
        ending: match appraisal.verdict {
            Verdict::Accepted(_) => Ending::Done,
            Verdict::Refused => Ending::Refused,
            Verdict::Unknown => Ending::Unknown,
        },
        text: text(appraisal, style),
        json: json(appraisal),
    }
}

fn json(appraisal: &Appraisal) -> Value {
    json!({
        "outcome": appraisal.verdict.word(),
        "waived": waived(appraisal),
        "host": appraisal.host,
        "container": appraisal.container,
        "findings": appraisal.findings,
    })
}

/// Names of the waivers that were used, each once.
fn waived(appraisal: &Appraisal) -> Vec<&'static str> {
    let mut names: Vec<_> = appraisal
        .findings
        .iter()
        .filter_map(|finding| match finding.outcome {
            Outcome::Waived { by, .. } => Some(by.name()),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn text(appraisal: &Appraisal, style: Style) -> String {
    let of = |subject| {
        appraisal
            .findings
            .iter()
            .filter(move |f: &&Finding| f.subject == subject)
    };
    // Writing to a String cannot fail.
    let mut out = String::new();
    let host = about(appraisal, Subject::Host);
    let container = about(appraisal, Subject::Container);
    let _ = writeln!(out, "{}", style.bold(&shown(&host.0)));
    for fact in &host.1 {
        let _ = writeln!(out, "│ {}", shown(fact));
    }
    for finding in of(Subject::Host) {
        line(&mut out, "│ ", finding, style);
    }
    let _ = writeln!(out, "└─ {}", style.bold(&shown(&container.0)));
    for fact in &container.1 {
        let _ = writeln!(out, "     {}", shown(fact));
    }
    for finding in of(Subject::Container) {
        line(&mut out, "     ", finding, style);
    }
    let (word, waived) = (appraisal.verdict.word(), waived(appraisal));
    let count = |f: fn(&Outcome) -> bool| {
        appraisal
            .findings
            .iter()
            .filter(|finding| f(&finding.outcome))
            .count()
    };
    let summary = format!(
        "{} ok, {} waived{}, {} unknown, {} refused",
        count(|o| matches!(o, Outcome::Ok)),
        count(|o| matches!(o, Outcome::Waived { .. })),
        if waived.is_empty() {
            String::new()
        } else {
            format!(" ({})", waived.join(", "))
        },
        count(|o| matches!(o, Outcome::Unknown { .. })),
        count(|o| matches!(o, Outcome::Refused { .. })),
    );
    let word = match appraisal.verdict {
        Verdict::Accepted(_) => style.good(word),
        Verdict::Refused => style.bad(word),
        Verdict::Unknown => style.doubtful(word),
    };
    let _ = write!(out, "verdict: {word} ({summary})");
    out
}

fn line(out: &mut String, indent: &str, finding: &Finding, style: Style) {
    let padded = format!("{:<7}", finding.outcome.word());
    let word = match &finding.outcome {
        Outcome::Ok => style.good(&padded),
        Outcome::Waived { .. } | Outcome::Unknown { .. } => style.doubtful(&padded),
        Outcome::Refused { .. } => style.bad(&padded),
    };
    let by = match &finding.outcome {
        Outcome::Waived { by, .. } => format!("[{by}] "),
        _ => String::new(),
    };
    let detail = shown(&finding.detail);
    let _ = writeln!(
        out,
        "{indent}{:<11}{word} {by}{detail}",
        finding.check.name()
    );
}

/// Evidence is foreign text: nothing in it may move the cursor or turn the reading direction
/// (Unicode Bidirectional Algorithm, UAX #9, section 2).
pub fn shown(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if hidden(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Title and facts of host or container.
pub fn about(appraisal: &Appraisal, subject: Subject) -> (String, Vec<String>) {
    let proved = matches!(appraisal.verdict, Verdict::Accepted(_));
    match subject {
        Subject::Host => host(&appraisal.host, proved),
        Subject::Container => container(&appraisal.container),
    }
}

/// The host's title and what it says of itself.
fn host(host: &HostReport, proved: bool) -> (String, Vec<String>) {
    let title = match &host.name {
        Some(name) => format!("host {name}"),
        None => "host (its key is not pinned)".to_owned(),
    };
    let claimed = if proved { "" } else { " (as it says)" };
    let mut facts = vec![format!("root of trust: {}{claimed}", host.root)];
    facts.extend(host.ak_name.map(|name| format!("attestation key {name}")));
    facts.extend(host.boot.as_ref().map(|boot| {
        format!(
            "boot {boot}{}",
            host.reset
                .map(|n| format!(", TPM reset count {n}"))
                .unwrap_or_default()
        )
    }));
    facts.extend(
        host.log_entries
            .map(|n| format!("binding log: {n} entries")),
    );
    (title, facts)
}

/// The container's title and what is said of it.
fn container(container: &ContainerReport) -> (String, Vec<String>) {
    let mut facts = vec![format!("record {}", container.record)];
    facts.extend(container.created.map(|time| format!("created {time}")));
    if let Some(image) = container.image {
        let name = container
            .measured
            .as_ref()
            .and_then(|m| m.image_name.as_deref())
            .unwrap_or("image");
        facts.push(format!("image {name} {image}"));
    }
    if let Some(measured) = &container.measured {
        if let (Some(name), Some(serial), Some(tenant)) =
            (&measured.list_name, measured.list_serial, &measured.tenant)
        {
            facts.push(format!("list {name}, serial {serial}, of {tenant}"));
        }
        let executed: Vec<_> = measured
            .executed
            .iter()
            .map(|file| file.path.as_str())
            .collect();
        facts.push(format!(
            "executed: {}",
            if executed.is_empty() {
                "nothing yet".to_owned()
            } else {
                executed.join(" ")
            }
        ));
    }
    let modes = [("mode", &container.mode), ("tier", &container.tier)];
    let modes: Vec<_> = modes
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name} {value}")))
        .collect();
    if !modes.is_empty() {
        facts.push(modes.join(", "));
    }
    (format!("container {}", container.id), facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_in_its_line() {
        assert_eq!(
            shown("a\x1b[2J\n\u{9b}b\u{202e}c ä"),
            "a\u{fffd}[2J\u{fffd}\u{fffd}b\u{fffd}c ä"
        );
    }
}
