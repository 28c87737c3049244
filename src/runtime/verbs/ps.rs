//! `ps`: the container's processes as host pids, or the lines of the host's ps about them.

use super::say;
use crate::{
    cli::{Globals, ListFormat},
    spawn,
    state::State,
};
use anyhow::{Context, Result};
use verify::id::ContainerId;

pub fn run(
    id: &ContainerId,
    format: ListFormat,
    options: &[String],
    globals: &Globals,
) -> Result<()> {
    let state = State::find(&globals.root, id)?;
    let pids = state.cgroup.pids()?;
    match format {
        ListFormat::Json => say(&format!("{}\n", serde_json::to_string(&pids)?)),
        ListFormat::Table => {
            let default = ["-ef".to_owned()];
            let table = spawn::ps(if options.is_empty() {
                &default
            } else {
                options
            })?;
            say(&rows_of(&table, &pids)?)
        }
    }
}

/// The header and the rows whose PID column names one of `pids`.
fn rows_of(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let header = lines.next().context("ps printed nothing")?;
    let column = header
        .split_ascii_whitespace()
        .position(|c| c == "PID")
        .context("couldn't find PID field in ps output")?;
    let mut text = format!("{header}\n");
    for line in lines {
        let pid = line
            .split_ascii_whitespace()
            .nth(column)
            .and_then(|c| c.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_rows() {
        let table = "UID  PID PPID CMD\nroot   1    0 init\nroot  42    1 sh\n";
        assert_eq!(
            rows_of(table, &[42]).unwrap(),
            "UID  PID PPID CMD\nroot  42    1 sh\n"
        );
        assert!(rows_of("UID CMD\n", &[1]).is_err());
        assert!(rows_of("", &[1]).is_err());
    }
}
