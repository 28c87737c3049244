//! What will watch executions inside containers (the event `attestrun.tier`), and how to get more.

use super::{Examined, Finding};
use crate::guard::gate::Group;
use std::fs;
use verify::event::TierName;

pub fn tier(_: &Examined) -> Vec<Finding> {
    const NAME: &str = "tier";
    const GROUPS: &str = "fs.fanotify.max_user_groups";
    vec![match Group::open() {
        Ok(Group::Open(_)) => {
            let most = fs::read_to_string("/proc/sys/fs/fanotify/max_user_groups");
            let most = most.map_or_else(
                |_| "as many as the kernel lets it".to_owned(),
                |most| format!("at most {} ({GROUPS})", most.trim()),
            );
            Finding::ok(
                NAME,
                format!(
                    "{}: execve inside containers is judged, in {most} at once; this attestrun has no stricter tier",
                    TierName::Fanotify
                ),
            )
        }
        Ok(Group::Lacking(why)) => Finding::refused(
            NAME,
            format!("{}: {why}", TierName::None),
            format!(
                "tier {} needs Linux 5.0 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and CAP_SYS_ADMIN",
                TierName::Fanotify
            ),
        ),
        Err(error) => Finding::unknown(
            NAME,
            format!("{error:#}"),
            format!("let {GROUPS} be more than there are containers"),
        ),
    }]
}
