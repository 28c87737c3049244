//! `list`: the containers of one state root, as runc prints them.

use super::say;
use crate::{
    cli::{Globals, ListFormat},
    state::State,
};
use anyhow::Result;

pub fn run(format: ListFormat, quiet: bool, globals: &Globals) -> Result<()> {
    let states = State::all(&globals.root)?;
    if quiet {
        return say(&states.iter().map(|s| format!("{}\n", s.id)).collect::<String>());
    }
    let mut rows = Vec::new();
    for state in &states {
        let mut row = state.to_oci()?;
        row["owner"] = owner(state.owner).into();
        rows.push(row);
    }
    match format {
        // Go's nil slice
        ListFormat::Json if rows.is_empty() => say("null"),
        ListFormat::Json => say(&serde_json::to_string(&rows)?),
        ListFormat::Table => say(&table(&rows)),
    }
}

fn owner(uid: u32) -> String {
    if uid == 0 { "root".to_owned() } else { format!("#{uid}") }
}

/// Columns as wide as their widest cell and a gap, at least 12 (Go's tabwriter as runc sets it).
fn table(rows: &[serde_json::Value]) -> String {
    let cell = |row: &serde_json::Value, key: &str| match &row[key] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let keys = ["id", "pid", "status", "bundle", "created", "owner"];
    let mut lines = vec![keys.map(|k| k.to_uppercase())];
    lines.extend(rows.iter().map(|row| keys.map(|k| cell(row, k))));
    let width = |i: usize| lines.iter().map(|l| l[i].len() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..keys.len()).map(width).collect();
    let line = |l: &[String; 6]| {
        let cells: String = l.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
        format!("{}\n", cells.trim_end())
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_runcs_columns() {
        let row = serde_json::json!({"id": "a-long-container-id", "pid": 7, "status": "running", "bundle": "/b",
                                     "created": "t", "owner": "root"});
        let text = table(&[row]);
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("ID                    PID"), "{text}");
        assert_eq!(table(&[]).trim(), "ID          PID         STATUS      BUNDLE      CREATED     OWNER");
    }
}
