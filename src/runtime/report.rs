//! How a failure reaches the caller: one line in `--log`, the same words on standard error, and
//! runc's exit codes (runtime contract, section 1.3).

use crate::{cli::UsageError, ipc::Refused};
use anyhow::{Context, Result};
use std::{
    fs::{File, OpenOptions},
    io::{Write, stderr},
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Words of a failed backend that has written them to standard error itself: it has ours, since that
/// is the container's too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Said(pub String);

/// Where errors go, from the global flags.
#[derive(Debug, Clone)]
pub struct Report {
    pub log: Option<PathBuf>,
    pub format: LogFormat,
}

impl Report {
    /// A log that cannot be written is an error at once, and one that was not there is there (runc).
    pub fn open(&self) -> Result<()> {
        if let Some(path) = &self.log {
            self.appending(path)
                .with_context(|| format!("cannot open the log {}", path.display()))?;
        }
        Ok(())
    }

    fn appending(&self, path: &Path) -> std::io::Result<File> {
        OpenOptions::new().append(true).create(true).open(path)
    }

    /// Writes the one error line. Engines read the file as a sequence of JSON values and podman as
    /// exactly one, so nothing else is ever written there.
    pub fn error(&self, verb: &str, error: &anyhow::Error) {
        let message = &words(verb, error);
        let line = self.line("error", message, chrono::Utc::now());
        let written = self.log.as_ref().is_some_and(|path| {
            let file = self.appending(path);
            file.and_then(|mut f| f.write_all(line.as_bytes())).is_ok()
        });
        if error.chain().any(|cause| cause.is::<Said>()) {
            return; // once is enough
        }
        let mut stderr = stderr().lock();
        // with nobody to tell there is nothing left to do
        let _ = if written {
            writeln!(stderr, "{message}")
        } else {
            stderr.write_all(line.as_bytes())
        };
    }

    /// What a backend logged, as JSON lines, in our format and place.
    pub fn pass_on(&self, log: &str) {
        let lines = serde_json::Deserializer::from_str(log).into_iter::<serde_json::Value>();
        let text = |line: &serde_json::Value| match self.format {
            LogFormat::Json => format!("{line}\n"),
            LogFormat::Text => {
                let (time, level) = (line["time"].as_str(), line["level"].as_str());
                let (time, level) = (time.unwrap_or_default(), level.unwrap_or_default());
                format!("time=\"{time}\" level={level} msg={}\n", line["msg"])
            }
        };
        let text: String = lines.map_while(Result::ok).map(|l| text(&l)).collect();
        // for the eyes of who asked for it; no verdict depends on it
        let _ = match &self.log {
            Some(path) => self
                .appending(path)
                .and_then(|mut f| f.write_all(text.as_bytes())),
            None => stderr().lock().write_all(text.as_bytes()),
        };
    }

    /// As runc's: in the log if there is one, and the verb goes on.
    pub fn warning(&self, message: &str) {
        let line = self.line("warning", message, chrono::Utc::now());
        // with nobody to tell there is nothing left to do
        let _ = match &self.log {
            Some(path) => self
                .appending(path)
                .and_then(|mut f| f.write_all(line.as_bytes())),
            None => stderr().lock().write_all(line.as_bytes()),
        };
    }

    fn line(&self, level: &str, message: &str, now: chrono::DateTime<chrono::Utc>) -> String {
        let time = now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        match self.format {
            LogFormat::Json => {
                let line = serde_json::json!({ "level": level, "msg": message, "time": time });
                format!("{line}\n")
            }
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
        }
    }
}

/// The words for an error of `verb`: refusals keep their own, failures name the verb as runc does.
pub fn words(verb: &str, error: &anyhow::Error) -> String {
    if let Some(refused) = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Refused>())
    {
        return format!("attestrun: {verb}: {refused}");
    }
    match verb {
        _ if matches!(error.downcast_ref(), Some(usage) if !matches!(usage, UsageError::Id(_))) => {
            error.to_string()
        }
        "create" | "run" => format!("attestrun {verb} failed: {error:#}"),
        "exec" => format!("exec failed: {error:#}"),
        _ => format!("{error:#}"),
    }
}

/// runc's codes: 255 for `exec`, whose other codes are the process's; 3 for an unknown command.
pub fn exit_code(verb: &str, error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<UsageError>() {
        Some(UsageError::UnknownVerb(_)) => 3,
        // what runc finds out only after it has begun
        Some(UsageError::Combination(_) | UsageError::Id(_)) if verb == "exec" => 255,
        Some(UsageError::Value { flag, .. }) if verb == "exec" && flag == "user" => 255,
        Some(_) => 1,
        None if verb == "exec" => 255,
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use chrono::TimeZone;

    #[test]
    fn the_line_is_what_engines_parse() {
        let now = chrono::Utc
            .with_ymd_and_hms(2026, 11, 23, 15, 0, 0)
            .unwrap();
        let report = Report {
            log: None,
            format: LogFormat::Json,
        };
        let line = report.line("error", "a \"b\"\nc", now);
        assert_eq!(line.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["level"], "error");
        assert_eq!(json["msg"], "a \"b\"\nc");
        assert_eq!(json["time"], "2026-11-23T15:00:00Z");
        let text = Report {
            log: None,
            format: LogFormat::Text,
        }
        .line("error", "a \"b\"", now);
        assert_eq!(
            text,
            "time=\"2026-11-23T15:00:00Z\" level=error msg=\"a \\\"b\\\"\"\n"
        );
    }

    #[test]
    fn refused_is_not_failed() {
        let refused = anyhow::Error::from(Refused("refused: image x".into())).context("deciding");
        assert_eq!(
            words("create", &refused),
            "attestrun: create: refused: image x"
        );
        let failed = anyhow!("cause").context("doing");
        assert_eq!(
            words("create", &failed),
            "attestrun create failed: doing: cause"
        );
        assert_eq!(words("exec", &failed), "exec failed: doing: cause");
        assert_eq!(
            words("state", &anyhow!("container does not exist")),
            "container does not exist"
        );
        assert_eq!(
            words("create", &UsageError::NoValue("x".into()).into()),
            "flag needs an argument: -x"
        );
    }

    #[test]
    fn exit_codes_are_runcs() {
        assert_eq!(exit_code("exec", &anyhow!("x")), 255);
        assert_eq!(exit_code("create", &anyhow!("x")), 1);
        assert_eq!(
            exit_code("nosuch", &UsageError::UnknownVerb("nosuch".into()).into()),
            3
        );
        assert_eq!(exit_code("exec", &UsageError::Flag("x".into()).into()), 1);
    }
}
