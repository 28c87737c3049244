//! libcontainer tells the causes of its errors only in its trace events, and those of init in another
//! process: error events are kept in a memory file that all processes of a launch share.

use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fmt::{Debug, Write as _},
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt,
    sync::OnceLock,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

static EVENTS: OnceLock<Option<File>> = OnceLock::new();

/// Starts keeping error events, once per process.
pub fn keep() {
    EVENTS.get_or_init(|| {
        let file = memfd_create("errors", MemfdFlags::CLOEXEC)
            .ok()
            .map(File::from)?;
        tracing::subscriber::set_global_default(Keep).ok()?;
        Some(file)
    });
}

/// The first error, which is the deepest cause; empty if there was none.
pub fn first_error() -> String {
    let mut bytes = vec![0; 4096];
    let read = EVENTS
        .get()
        .and_then(|f| f.as_ref()?.read_at(&mut bytes, 0).ok())
        .unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

struct Keep;

impl Subscriber for Keep {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if let Some(mut file) = EVENTS.get().and_then(|f| f.as_ref()) {
            let text = format!("{}{}", line.message, line.fields).replace('\n', " ");
            // nobody to tell: the error itself is reported anyhow
            let _ = file.write_all(format!("{text}\n").as_bytes());
        }
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
