//! What is known of each container of a fleet: its last verdict, and what changed.

use crate::{report::Style, verdict::shown};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use verify::{
    appraise::{Appraisal, Verdict},
    check::Outcome,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Accepted,
    Refused,
    /// Some check could not be made.
    Unknown,
    /// There is no answer to judge.
    Silent,
}

impl Word {
    pub const ALL: [Self; 4] = [Self::Accepted, Self::Refused, Self::Unknown, Self::Silent];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Silent => "silent",
        }
    }
    fn painted(self, style: Style) -> String {
        let padded = format!("{:<8}", self.name());
        match self {
            Self::Accepted => style.good(&padded),
            Self::Refused => style.bad(&padded),
            Self::Unknown | Self::Silent => style.doubtful(&padded),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub word: Word,
    /// Those that did not pass.
    pub checks: Vec<String>,
    /// Why there is no answer.
    pub why: String,
}

impl Row {
    pub fn of(appraisal: &Appraisal) -> Self {
        let failed = appraisal.findings.iter();
        let failed = failed
            .filter(|f| matches!(f.outcome, Outcome::Refused { .. } | Outcome::Unknown { .. }));
        Self {
            word: match appraisal.verdict {
                Verdict::Accepted(_) => Word::Accepted,
                Verdict::Refused => Word::Refused,
                Verdict::Unknown => Word::Unknown,
            },
            checks: failed.map(|f| f.check.name().to_owned()).collect(),
            why: String::new(),
        }
    }
    pub fn silent(error: &anyhow::Error) -> Self {
        Self {
            word: Word::Silent,
            checks: Vec::new(),
            why: format!("{error:#}"),
        }
    }
    pub fn line(&self, agent: &str, container: &str, style: Style) -> String {
        let why = match self.why.is_empty() {
            true => self.checks.join(" "),
            false => shown(&self.why),
        };
        format!("{} {agent} {container} {why}", self.word.painted(style))
            .trim_end()
            .to_owned()
    }
    pub fn json(&self, agent: &str, container: &str) -> Value {
        json!({
            "agent": agent,
            "container": container,
            "verdict": self.word.name(),
            "checks": self.checks,
            "why": self.why,
        })
    }
}

pub type Rows = BTreeMap<(String, String), Row>;

/// One container whose verdict is another one than before.
pub struct Change<'a> {
    pub agent: &'a str,
    pub container: &'a str,
    /// None: it was not there.
    pub before: Option<Word>,
    /// None: it is not there any more.
    pub now: Option<&'a Row>,
}

/// What became another one; a container that is new and accepted is none.
pub fn changes<'a>(before: &'a Rows, now: &'a Rows) -> Vec<Change<'a>> {
    let mut all = Vec::new();
    for ((agent, container), row) in now {
        let known = before.get(&(agent.clone(), container.clone()));
        let same = match known {
            Some(known) => (known.word, &known.checks) == (row.word, &row.checks),
            None => row.word == Word::Accepted,
        };
        if !same {
            all.push(Change {
                agent,
                container,
                before: known.map(|known| known.word),
                now: Some(row),
            });
        }
    }
    for ((agent, container), row) in before {
        if !now.contains_key(&(agent.clone(), container.clone())) {
            all.push(Change {
                agent,
                container,
                before: Some(row.word),
                now: None,
            });
        }
    }
    all
}

impl Change<'_> {
    pub fn line(&self, style: Style) -> String {
        let before = self.before.map_or("new", Word::name);
        match self.now {
            None => format!("{} {} is gone (was {before})", self.agent, self.container),
            Some(row) => format!(
                "{} (was {before})",
                row.line(self.agent, self.container, style)
            ),
        }
    }
    pub fn json(&self) -> Value {
        let mut object = match self.now {
            Some(row) => row.json(self.agent, self.container),
            None => json!({ "agent": self.agent, "container": self.container, "verdict": "gone" }),
        };
        if let Value::Object(fields) = &mut object {
            fields.insert("event".into(), json!("change"));
            fields.insert("was".into(), json!(self.before.map(Word::name)));
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_once() {
        let row = |word, checks: &[&str]| Row {
            word,
            checks: checks.iter().map(ToString::to_string).collect(),
            why: String::new(),
        };
        let rows = |all: &[(&str, Row)]| -> Rows {
            let all = all.iter().cloned();
            all.map(|(id, row)| (("a".to_owned(), id.to_owned()), row))
                .collect()
        };
        let first = rows(&[
            ("1", row(Word::Accepted, &[])),
            ("2", row(Word::Refused, &["L-CONT"])),
        ]);
        let told = |before: &Rows, now: &Rows| -> Vec<String> {
            let all = changes(before, now);
            all.iter().map(|change| change.line(Style::Plain)).collect()
        };
        assert_eq!(
            told(&Rows::new(), &first),
            ["refused  a 2 L-CONT (was new)"]
        );
        assert_eq!(told(&first, &first), [""; 0]);
        let next = rows(&[
            ("2", row(Word::Accepted, &[])),
            ("3", row(Word::Silent, &[])),
        ]);
        assert_eq!(
            told(&first, &next),
            [
                "accepted a 2 (was refused)",
                "silent   a 3 (was new)",
                "a 1 is gone (was accepted)"
            ]
        );
    }
}
