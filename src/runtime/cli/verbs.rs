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
/// Known, so that their usage can be asked for; the verbs are refused whatever the flags.
const CHECKPOINT: &[Flag] = &[
    value(&["image-path"]),
    value(&["work-path"]),
    value(&["parent-path"]),
    value(&["page-server"]),
    value(&["status-fd"]),
    value(&["manage-cgroups-mode"]),
    list(&["empty-ns"]),
    switch(&["leave-running"]),
    switch(&["tcp-established"]),
    switch(&["ext-unix-sk"]),
    switch(&["shell-job"]),
    switch(&["lazy-pages"]),
    switch(&["file-locks"]),
    switch(&["pre-dump"]),
    switch(&["auto-dedup"]),
    switch(&["link-remap"]),
];
const RESTORE: &[Flag] = &[value(&["lsm-profile"]), value(&["lsm-mount-context"])];
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
    value(&["kernel-memory"]),
    value(&["kernel-memory-tcp"]),
    value(&["l3-cache-schema"]),
    value(&["mem-bw-schema"]),
    value(&["pids-limit"]),
];
const FORMAT: Flag = value(&["format", "f"]);

/// Every verb of runc: name, flags, where flags may stand, usage, what it does.
pub struct Verb {
    pub name: &'static str,
    pub flags: &'static [&'static [Flag]],
    pub order: Order,
    pub usage: &'static str,
    pub does: &'static str,
}
const fn verb(
    name: &'static str,
    flags: &'static [&'static [Flag]],
    usage: &'static str,
    does: &'static str,
) -> Verb {
    Verb {
        name,
        flags,
        order: Order::Anywhere,
        usage,
        does,
    }
}
/// What follows the first argument belongs to another program.
const fn before_arguments(verb: Verb) -> Verb {
    Verb {
        order: Order::BeforeArguments,
        ..verb
    }
}
pub const VERBS: &[Verb] = &[
    verb(
        "checkpoint",
        &[CHECKPOINT],
        "<container-id>",
        "is refused: memory kept on disk could come back under measurements not its own",
    ),
    verb(
        "create",
        &[CREATE],
        "<container-id>",
        "creates a container that waits for its start",
    ),
    verb(
        "delete",
        &[&[switch(&["force", "f"])]],
        "<container-id>",
        "removes all that is left of a container",
    ),
    verb(
        "events",
        &[&[switch(&["stats"]), value(&["interval"])]],
        "<container-id>",
        "prints counters every 5 seconds, and when memory ran out",
    ),
    before_arguments(verb(
        "exec",
        &[EXEC],
        "<container-id> <command> [argument...]",
        "starts a further process in a container",
    )),
    verb("features", &[], "", "prints what this runtime can do"),
    verb(
        "kill",
        &[&[switch(&["all", "a"])]],
        "<container-id> [signal]",
        "sends a signal (default: SIGTERM) to the container's init process",
    ),
    verb(
        "list",
        &[&[FORMAT, switch(&["quiet", "q"])]],
        "",
        "lists the containers of a state root",
    ),
    verb(
        "pause",
        &[],
        "<container-id>",
        "stops all processes of a container for a while",
    ),
    before_arguments(verb(
        "ps",
        &[&[FORMAT]],
        "<container-id> [ps options]",
        "lists the processes of a container",
    )),
    verb(
        "restore",
        &[CHECKPOINT, CREATE, RUN, RESTORE],
        "<container-id>",
        "is refused: see checkpoint",
    ),
    verb(
        "resume",
        &[],
        "<container-id>",
        "lets the processes of a paused container go on",
    ),
    verb(
        "run",
        &[CREATE, RUN],
        "<container-id>",
        "creates and starts a container",
    ),
    verb(
        "spec",
        &[&[value(&["bundle", "b"]), switch(&["rootless"])]],
        "",
        "writes a config.json to begin with",
    ),
    verb(
        "start",
        &[],
        "<container-id>",
        "executes the program of a created container",
    ),
    verb(
        "state",
        &[],
        "<container-id>",
        "prints the state of a container",
    ),
    verb(
        "update",
        &[UPDATE],
        "<container-id>",
        "sets other limits for a container",
    ),
];
