//! What a verb says and how it ends: text for people, JSON for programs, one exit status for both.

use serde_json::{Value, json};
use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// How a verb ends when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Done, or accepted.
    Done,
    /// The answer is no.
    Refused,
    /// The answer could not be found out.
    Unknown,
}

impl Ending {
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Done => Self::SUCCESS,
            Ending::Refused => Self::from(1),
            Ending::Unknown => Self::from(2),
        }
    }
}

/// Exit status of a command line that makes no sense (sysexits.h, EX_USAGE).
pub const USED_WRONGLY: u8 = 64;

/// The result of a verb.
#[derive(Debug)]
pub struct Report {
    pub ending: Ending,
    /// Lines for people, without the final newline.
    pub text: String,
    /// An object; `outcome` is added when it is printed.
    pub json: Value,
}

impl Report {
    pub fn done(text: impl Into<String>, json: Value) -> Self {
        Self {
            ending: Ending::Done,
            text: text.into(),
            json,
        }
    }

    /// One field more for programs.
    pub fn add(&mut self, name: &str, value: impl Into<Value>) {
        if let Value::Object(fields) = &mut self.json {
            fields.insert(name.to_owned(), value.into());
        }
    }

    /// A line, unless there is nothing to say.
    pub fn print(&self, to: &mut impl Write, as_json: bool) -> io::Result<()> {
        match self.render(as_json) {
            nothing if nothing.is_empty() => Ok(()),
            text => writeln!(to, "{text}"),
        }
    }

    /// What goes to standard output.
    fn render(&self, as_json: bool) -> String {
        if !as_json {
            return self.text.clone();
        }
        let mut object = self.json.clone();
        if let Value::Object(fields) = &mut object {
            fields
                .entry("outcome")
                .or_insert_with(|| json!(self.ending.word()));
        }
        object.to_string()
    }
}

/// Colours on a terminal, plain text elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Coloured,
}

impl Style {
    /// SGR parameters (ECMA-48, section 8.3.117).
    fn paint(self, sgr: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\x1b[{sgr}m{text}\x1b[0m"),
        }
    }
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }
    pub fn doubtful(self, text: &str) -> String {
        self.paint("33", text)
    }
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// A check that said no: exit status 1, as opposed to an error (2).
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: {}", self.0)
    }
}
impl std::error::Error for Refused {}

/// Arguments that contradict each other in a way that the grammar cannot express: exit status 64.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Usage {}

/// The exit status of an error and its JSON form.
pub fn failure(error: &anyhow::Error) -> (u8, Value) {
    let text = format!("{error:#}");
    if error.chain().any(|e| e.is::<Usage>()) {
        (
            USED_WRONGLY,
            json!({ "outcome": "used-wrongly", "error": text }),
        )
    } else if error.chain().any(|e| e.is::<Refused>()) {
        (1, json!({ "outcome": "refused", "error": text }))
    } else {
        (2, json!({ "outcome": "unknown", "error": text }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_exit_status_survives_context() {
        let with = |e: anyhow::Error| failure(&Err::<(), _>(e).context("verifying x").unwrap_err());
        assert_eq!(with(Refused("no".to_owned()).into()).0, 1);
        assert_eq!(with(Usage("no".to_owned()).into()).0, 64);
        assert_eq!(with(anyhow::anyhow!("no")).0, 2);
        assert_eq!(
            with(Refused("no".to_owned()).into()).1["error"],
            "verifying x: refused: no"
        );
    }

    #[test]
    fn json_says_the_outcome() {
        let report = Report {
            ending: Ending::Refused,
            text: "t".to_owned(),
            json: json!({"a": 1}),
        };
        assert_eq!(report.render(true), r#"{"a":1,"outcome":"refused"}"#);
        assert_eq!(report.render(false), "t");
        let print = |text: &str| {
            let mut out = Vec::new();
            let report = Report::done(text, json!({}));
            report.print(&mut out, false).map(|()| out)
        };
        assert_eq!(print("t").unwrap(), b"t\n");
        assert_eq!(print("").unwrap(), b"");
    }
}
