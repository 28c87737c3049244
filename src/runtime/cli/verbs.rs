//! runc's verbs and their flags, as a table.

use super::grammar::{Flag, Order, Takes};

pub const fn switch(names: &'static [&'static str]) -> Flag {
    Flag {
        names,
        takes: Takes::Nothing,
    }
}
const fn value(names: &'static [&'static str]) -> Flag {
    Flag {
        names,
        takes: Takes::Value,
    }
}
const fn list(names: &'static [&'static str]) -> Flag {
    Flag {
        names,
        takes: Takes::Values,
    }
}

pub const GLOBAL: &[Flag] = &[
    value(&["root"]),
    value(&["log"]),
    value(&["log-format"]),
    value(&["rootless"]),
    value(&["criu"]),
    switch(&["systemd-cgroup"]),
    switch(&["debug"]),
    switch(&["version", "v"]),
    switch(&["help", "h"]),
];
const CREATE: &[Flag] = &[
    value(&["bundle", "b"]),
    value(&["pid-file"]),
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["preserve-fds"]),
    switch(&["no-pivot"]),
    switch(&["no-new-keyring"]),
];
const RUN: &[Flag] = &[
    switch(&["detach", "d"]),
    switch(&["keep"]),
    switch(&["no-subreaper"]),
];
const EXEC: &[Flag] = &[
    value(&["process", "p"]),
    value(&["pid-file"]),
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["preserve-fds"]),
    value(&["cwd"]),
    list(&["env", "e"]),
    value(&["user", "u"]),
    list(&["additional-gids", "g"]),
    value(&["process-label"]),
    value(&["apparmor"]),
    list(&["cap", "c"]),
    list(&["cgroup"]),
    switch(&["detach", "d"]),
    switch(&["tty", "t"]),
    switch(&["no-new-privs"]),
    switch(&["ignore-paused"]),
    switch(&["no-subreaper"]),
];
const UPDATE: &[Flag] = &[
    value(&["resources", "r"]),
    value(&["blkio-weight"]),
    value(&["cpu-period"]),
    value(&["cpu-quota"]),
    value(&["cpu-share"]),
    value(&["cpu-rt-period"]),
    value(&["cpu-rt-runtime"]),
    value(&["cpuset-cpus"]),
    value(&["cpuset-mems"]),
    value(&["memory"]),
    value(&["memory-reservation"]),
    value(&["memory-swap"]),
    value(&["pids-limit"]),
];
const FORMAT: Flag = value(&["format", "f"]);

/// Every verb of runc: name, flags, where flags may stand, usage.
pub struct Verb {
    pub name: &'static str,
    pub flags: &'static [&'static [Flag]],
    pub order: Order,
    pub usage: &'static str,
}
const fn verb(name: &'static str, flags: &'static [&'static [Flag]], usage: &'static str) -> Verb {
    Verb {
        name,
        flags,
        order: Order::Anywhere,
        usage,
    }
}
pub const VERBS: &[Verb] = &[
    verb(
        "create",
        &[CREATE],
        "[--bundle DIR] [--pid-file FILE] [--console-socket SOCKET] <container-id>",
    ),
    verb(
        "run",
        &[CREATE, RUN],
        "[--bundle DIR] [--detach] [--keep] [--pid-file FILE] <container-id>",
    ),
    verb("start", &[], "<container-id>"),
    verb("state", &[], "<container-id>"),
    verb(
        "kill",
        &[&[switch(&["all", "a"])]],
        "[--all] <container-id> [signal]",
    ),
    verb(
        "delete",
        &[&[switch(&["force", "f"])]],
        "[--force] <container-id>",
    ),
    Verb {
        name: "exec",
        flags: &[EXEC],
        order: Order::BeforeArguments,
        usage: "[--process FILE] [--tty] [--detach] [--user UID[:GID]] [--env K=V] <container-id> <command> [argument...]",
    },
    verb(
        "list",
        &[&[FORMAT, switch(&["quiet", "q"])]],
        "[--format table|json] [--quiet]",
    ),
    Verb {
        name: "ps",
        flags: &[&[FORMAT]],
        order: Order::BeforeArguments,
        usage: "[--format table|json] <container-id> [ps options]",
    },
    verb("pause", &[], "<container-id>"),
    verb("resume", &[], "<container-id>"),
    verb(
        "update",
        &[UPDATE],
        "[--resources FILE|-] [limits] <container-id>",
    ),
    verb(
        "events",
        &[&[switch(&["stats"]), value(&["interval"])]],
        "[--stats] [--interval 5s] <container-id>",
    ),
    verb("features", &[], ""),
    verb(
        "spec",
        &[&[value(&["bundle", "b"]), switch(&["rootless"])]],
        "[--bundle DIR] [--rootless]",
    ),
];
