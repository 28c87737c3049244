//! An appraisal for people and for programs: host and container, each check by name, the verdict.

use crate::report::{Ending, Report, Style};
use serde_json::{Value, json};
use std::fmt::Write as _;
use verify::{
    appraise::{Appraisal, Verdict},
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
        appraisal.findings.iter().filter(move |f: &&Finding| f.subject == subject)
    };
    let mut out = String::new();
    let host = appraisal.host.to_string();
    let container = appraisal.container.to_string();
    out.push_str(&style.bold(&format!("host {host}")));
    out.push('\n');
    for finding in of(Subject::Host) {
        line(&mut out, "│ ", finding, style);
    }
    out.push_str(&format!("└─ {}\n", style.bold(&format!("container {container}"))));
    for finding in of(Subject::Container) {
        line(&mut out, "     ", finding, style);
    }
    let (word, waived) = (appraisal.verdict.word(), waived(appraisal));
    let count = |f: fn(&Outcome) -> bool| {
        appraisal.findings.iter().filter(|finding| f(&finding.outcome)).count()
    };
    let summary = format!(
        "{} ok, {} waived{}, {} unknown, {} refused",
        count(|o| matches!(o, Outcome::Ok)),
        count(|o| matches!(o, Outcome::Waived { .. })),
        if waived.is_empty() { String::new() } else { format!(" ({})", waived.join(", ")) },
        count(|o| matches!(o, Outcome::Unknown { .. })),
        count(|o| matches!(o, Outcome::Refused { .. })),
    );
    let word = match appraisal.verdict {
        Verdict::Accepted(_) => style.good(word),
        Verdict::Refused => style.bad(word),
        Verdict::Unknown => style.doubtful(word),
    };
    // Writing to a String cannot fail.
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
    // Evidence is foreign text: nothing in it may move the cursor.
    let detail: String =
        finding.detail.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let _ = writeln!(out, "{indent}{:<11}{word} {by}{detail}", finding.check.name());
}
