//! `list`: the containers of one state root, as runc prints them.

use super::say;
use crate::{
    cli::{Globals, ListFormat},
    state::{OciState, State},
};
use anyhow::Result;

pub fn run(format: ListFormat, quiet: bool, globals: &Globals) -> Result<()> {
    let mut states = State::all(&globals.root)?;
    states.sort_by(|a, b| a.id.cmp(&b.id));
    if quiet {
        return say(&states
            .iter()
            .map(|s| format!("{}\n", s.id))
            .collect::<String>());
    }
    let rows = states
        .iter()
        .map(|s| s.to_oci(&owner(s.owner)))
        .collect::<Result<Vec<_>>>()?;
    match format {
        // Go's nil slice
        ListFormat::Json if rows.is_empty() => say("null\n"),
        ListFormat::Json => say(&format!("{}\n", serde_json::to_string(&rows)?)),
        ListFormat::Table => say(&table(&rows)),
    }
}

fn owner(uid: u32) -> String {
    if uid == 0 {
        "root".to_owned()
    } else {
        format!("#{uid}")
    }
}

/// Columns as wide as their widest cell and a gap, at least 12 (Go's tabwriter as runc sets it).
fn table(rows: &[OciState<'_>]) -> String {
    let cells = |s: &OciState<'_>| {
        [
            s.id.to_string(),
            s.pid.to_string(),
            s.status.to_string(),
            s.bundle.display().to_string(),
            s.created.to_owned(),
            s.owner.clone(),
        ]
    };
    lines(rows.iter().map(cells).collect())
}

fn lines(mut rows: Vec<[String; 6]>) -> String {
    rows.insert(
        0,
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned),
    );
    let width = |i: usize| {
        rows.iter()
            .map(|r| r[i].len() + 3)
            .max()
            .unwrap_or(0)
            .max(12)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells: String = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_runcs_columns() {
        let row = ["a-long-container-id", "7", "running", "/b", "t", "root"].map(str::to_owned);
        let text = lines(vec![row]);
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("ID                    PID"), "{text}");
        assert_eq!(
            lines(vec![]).trim(),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER"
        );
    }
}
