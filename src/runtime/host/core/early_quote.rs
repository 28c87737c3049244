//! `host_tpm.binding_quote = "create"`: a quote over each binding record as soon as the container exists,
//! beside the one that every challenge gets. Appraisal never asks for it: it is there for who looks into a
//! container's past when it can no longer be challenged.
//!
//! One file for each boot, beside the binding log: a line of JSON for each quote.

use super::{Core, HostHalf};
use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use std::{
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use verify::{binding::Record, id::RunId, qualify};

pub struct EarlyQuotes {
    file: Mutex<File>,
    path: PathBuf,
}

impl EarlyQuotes {
    pub fn open(dir: &Path, era: &str) -> Result<Self> {
        let path = dir.join(format!("binding-{era}.quotes"));
        let mut options = File::options();
        let file = options.create(true).append(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            file: Mutex::new(file),
            path,
        })
    }

    /// `pcrs` are the values that the quote covers.
    fn append(&self, record: &Record, half: &HostHalf) -> Result<()> {
        let line = serde_json::json!({
            "record": record.digest()?.hex(),
            "container": record.claim.container,
            "attest": BASE64.encode(&half.quote.attest),
            "signature": BASE64.encode(&half.quote.signature),
            "pcrs": half.pcrs.0.map(hex::encode),
        });
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("cannot append to {}", self.path.display()))
    }
}

impl Core {
    /// Quotes and keeps the record of a bound container, if the configuration wants it.
    pub fn quote_early(&self, run_id: &RunId) {
        let bound = self.by_run().get(run_id).cloned();
        let (Some(quotes), Some(bound)) = (&self.early_quotes, bound) else {
            return;
        };
        let quoted = self
            .quote(&qualify::binding_quote(&bound.r))
            .and_then(|half| quotes.append(&bound.record, &half));
        if let Err(error) = quoted {
            eprintln!("attestrun host: the quote over run {run_id}'s record: {error:#}");
        }
    }
}
