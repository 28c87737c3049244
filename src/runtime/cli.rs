//! What was typed: runc's command line as plain values, before any file is opened.
//!
//! Unknown flags are refused, never passed on: the backend gets an argv rendered anew from what is
//! parsed here, so nobody can read the command line differently from us.

mod grammar;
mod verbs;

use crate::{
    bundle::plain,
    report::{LogFormat, Report},
};
use grammar::{Flag, Order, Parsed};
use std::path::{Path, PathBuf};
use verbs::{GLOBAL, VERBS, Verb, switch};
use verify::id::ContainerId;

/// Used wrongly: the message and the usage text are for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("No help topic for '{0}'")]
    UnknownVerb(String),
    #[error("flag provided but not defined: -{0}")]
    Flag(String),
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    #[error("invalid value {value:?} for flag -{flag}: {why}")]
    Value {
        flag: String,
        value: String,
        why: String,
    },
    #[error("attestrun: {verb:?} requires {count} argument(s)")]
    Count {
        verb: &'static str,
        count: &'static str,
    },
    #[error(transparent)]
    Id(#[from] verify::id::IdError),
    #[error("argument {0} is not valid UTF-8")]
    Encoding(usize),
    #[error("{0}")]
    Combination(&'static str),
}

type Result<T> = std::result::Result<T, UsageError>;

/// Flags before the verb.
#[derive(Debug, Clone)]
pub struct Globals {
    /// Where the engine keeps this runtime's state: for us a name, ours lies in /run/attestrun.
    pub root: PathBuf,
    pub report: Report,
    pub systemd_cgroup: bool,
    pub debug: bool,
}

impl Default for Globals {
    fn default() -> Self {
        let report = Report {
            log: None,
            format: LogFormat::Text,
        };
        Self {
            root: "/run/attestrun".into(),
            report,
            systemd_cgroup: false,
            debug: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    pub id: ContainerId,
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserve_fds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub create: Create,
    pub detach: bool,
    pub keep: bool,
    pub no_subreaper: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exec {
    pub command: Vec<String>,
    pub process: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub detach: bool,
    pub tty: bool,
    pub cwd: Option<String>,
    pub env: Vec<String>,
    pub user: Option<(u32, Option<u32>)>,
    pub additional_gids: Vec<u32>,
    pub process_label: Option<String>,
    pub apparmor: Option<String>,
    pub no_new_privs: bool,
    pub cap: Vec<String>,
    pub cgroup: Vec<String>,
    pub ignore_paused: bool,
    pub preserve_fds: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// A file, or `-` for standard input; then all other limits are ignored, as in runc.
    pub resources: Option<String>,
    pub blkio_weight: Option<u16>,
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpu_share: Option<u64>,
    pub cpu_rt_period: Option<u64>,
    pub cpu_rt_runtime: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub memory: Option<i64>,
    pub memory_reservation: Option<i64>,
    pub memory_swap: Option<i64>,
    pub pids_limit: Option<i64>,
    /// A schema of Intel RDT.
    pub rdt: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    Table,
    Json,
}

/// One command, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Create(Create),
    Run(Run),
    Start(ContainerId),
    State(ContainerId),
    Kill {
        id: ContainerId,
        signal: String,
        all: bool,
    },
    Delete {
        id: ContainerId,
        force: bool,
    },
    Exec(ContainerId, Box<Exec>),
    List {
        format: ListFormat,
        quiet: bool,
    },
    Ps {
        id: ContainerId,
        format: ListFormat,
        options: Vec<String>,
    },
    Pause(ContainerId),
    Resume(ContainerId),
    Update(ContainerId, Box<Update>),
    Events {
        id: ContainerId,
        stats: bool,
        interval: std::time::Duration,
    },
    Features,
    Spec {
        bundle: PathBuf,
        rootless: bool,
    },
    Version,
    Help(Option<&'static str>),
    /// A verb of runc that attestrun refuses by name.
    Unsupported(&'static str),
}

/// Parsed far enough to know where an error is to be reported.
pub struct Invocation {
    pub globals: Globals,
    /// Empty if no verb was found.
    pub verb: &'static str,
    pub request: Result<Request>,
}

/// Reads `args` (without the program's name); relative paths are taken from `cwd`.
pub fn parse(args: &[std::ffi::OsString], cwd: &Path) -> Invocation {
    let mut globals = Globals::default();
    let mut verb = "";
    let request = utf8(args).and_then(|args| request(&args, cwd, &mut globals, &mut verb));
    Invocation {
        globals,
        verb,
        request,
    }
}

fn utf8(args: &[std::ffi::OsString]) -> Result<Vec<String>> {
    let one = |(i, a): (usize, &std::ffi::OsString)| {
        a.to_str()
            .map(str::to_owned)
            .ok_or(UsageError::Encoding(i + 1))
    };
    args.iter().enumerate().map(one).collect()
}

fn request(
    args: &[String],
    cwd: &Path,
    globals: &mut Globals,
    name: &mut &'static str,
) -> Result<Request> {
    let parsed = grammar::parse(&[GLOBAL], Order::BeforeArguments, args)?;
    let path = |p: Option<&str>| p.filter(|p| !p.is_empty()).map(|p| absolute(cwd, p));
    if let Some(root) = path(parsed.one("root")) {
        globals.root = root;
    }
    globals.report.log = path(parsed.one("log"));
    globals.report.format = match parsed.one("log-format") {
        None | Some("" | "text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => return Err(bad("log-format", other, "text or json")),
    };
    globals.systemd_cgroup = parsed.is_set("systemd-cgroup")?;
    globals.debug = parsed.is_set("debug")?;
    if parsed.is_set("version")? {
        return Ok(Request::Version);
    }
    let Some((first, rest)) = parsed.arguments.split_first() else {
        return Ok(Request::Help(None));
    };
    if first == "help" {
        let verb = rest.first().map(|name| find_verb(name)).transpose()?;
        return Ok(Request::Help(verb.map(|v| v.name)));
    }
    if parsed.is_set("help")? {
        return Ok(Request::Help(None));
    }
    let verb = find_verb(first)?;
    *name = verb.name;
    let mut flags = verb.flags.to_vec();
    flags.push(const { &[switch(&["help", "h"])] });
    let parsed = grammar::parse(&flags, verb.order, rest)?;
    if parsed.is_set("help")? {
        return Ok(Request::Help(Some(verb.name)));
    }
    build(verb.name, &parsed, cwd)
}

fn find_verb(name: &str) -> Result<&'static Verb> {
    let verb = VERBS.iter().find(|v| v.name == name);
    verb.ok_or_else(|| UsageError::UnknownVerb(name.to_owned()))
}

fn build(verb: &'static str, p: &Parsed, cwd: &Path) -> Result<Request> {
    let path = |name| {
        p.one(name)
            .filter(|v: &&str| !v.is_empty())
            .map(|v| absolute(cwd, v))
    };
    let create = || -> Result<Create> {
        Ok(Create {
            id: only_id(verb, p)?,
            bundle: path("bundle").unwrap_or_else(|| cwd.to_owned()),
            pid_file: path("pid-file"),
            console_socket: path("console-socket"),
            pidfd_socket: path("pidfd-socket"),
            no_pivot: p.is_set("no-pivot")?,
            no_new_keyring: p.is_set("no-new-keyring")?,
            preserve_fds: p.number("preserve-fds")?.unwrap_or(0),
        })
    };
    let format = || match p.one("format") {
        None | Some("table") => Ok(ListFormat::Table),
        Some("json") => Ok(ListFormat::Json),
        Some(other) => Err(bad("format", other, "table or json")),
    };
    if matches!(verb, "list" | "features" | "spec") && !p.arguments.is_empty() {
        let count = "exactly 0";
        return Err(UsageError::Count { verb, count });
    }
    Ok(match verb {
        "create" => Request::Create(create()?),
        "run" => Request::Run(Run {
            create: create()?,
            detach: p.is_set("detach")?,
            keep: p.is_set("keep")?,
            no_subreaper: p.is_set("no-subreaper")?,
        }),
        "start" => Request::Start(only_id(verb, p)?),
        "state" => Request::State(only_id(verb, p)?),
        "kill" => match p.arguments.as_slice() {
            [id] => Request::Kill {
                id: ContainerId::parse(id)?,
                signal: "TERM".into(),
                all: p.is_set("all")?,
            },
            [id, signal] => Request::Kill {
                id: ContainerId::parse(id)?,
                signal: signal.clone(),
                all: p.is_set("all")?,
            },
            _ => {
                return Err(UsageError::Count {
                    verb,
                    count: "a minimum of 1 and a maximum of 2",
                });
            }
        },
        "delete" => Request::Delete {
            id: only_id(verb, p)?,
            force: p.is_set("force")?,
        },
        "exec" => exec(p, path)?,
        "list" => Request::List {
            format: format()?,
            quiet: p.is_set("quiet")?,
        },
        "ps" => {
            let (id, options) = first_id(verb, p)?;
            Request::Ps {
                id,
                format: format()?,
                options,
            }
        }
        "pause" => Request::Pause(only_id(verb, p)?),
        "resume" => Request::Resume(only_id(verb, p)?),
        "update" => Request::Update(only_id(verb, p)?, Box::new(update(p)?)),
        "events" => Request::Events {
            id: only_id(verb, p)?,
            stats: p.is_set("stats")?,
            interval: grammar::duration("interval", p.one("interval").unwrap_or("5s"))?,
        },
        "features" => Request::Features,
        "checkpoint" | "restore" => Request::Unsupported(verb),
        _ => Request::Spec {
            bundle: path("bundle").unwrap_or_else(|| cwd.to_owned()),
            rootless: p.is_set("rootless")?,
        },
    })
}

fn exec(p: &Parsed, path: impl Fn(&'static str) -> Option<PathBuf>) -> Result<Request> {
    let (id, command) = first_id("exec", p)?;
    if command.is_empty() && p.one("process").is_none() {
        return Err(UsageError::Combination("process args cannot be empty"));
    }
    let user = p.one("user").filter(|u| !u.is_empty()).map(|user| {
        let (uid, gid) = user
            .split_once(':')
            .map_or((user, None), |(u, g)| (u, Some(g)));
        let number = |text: &str| {
            text.parse()
                .map_err(|_| bad("user", user, "UID or UID:GID in decimal"))
        };
        Result::Ok((number(uid)?, gid.map(number).transpose()?))
    });
    let gids = p.all("additional-gids").map(|g| {
        g.parse()
            .map_err(|_| bad("additional-gids", g, "a decimal gid"))
    });
    let text = |name| p.one(name).filter(|v| !v.is_empty()).map(str::to_owned);
    let exec = Exec {
        command,
        process: path("process"),
        pid_file: path("pid-file"),
        console_socket: path("console-socket"),
        pidfd_socket: path("pidfd-socket"),
        detach: p.is_set("detach")?,
        tty: p.is_set("tty")?,
        cwd: text("cwd"),
        env: p.all("env").map(str::to_owned).collect(),
        user: user.transpose()?,
        additional_gids: gids.collect::<Result<_>>()?,
        process_label: text("process-label"),
        apparmor: text("apparmor"),
        no_new_privs: p.is_set("no-new-privs")?,
        cap: p.all("cap").map(str::to_owned).collect(),
        cgroup: p.all("cgroup").map(str::to_owned).collect(),
        ignore_paused: p.is_set("ignore-paused")?,
        preserve_fds: p.number("preserve-fds")?.unwrap_or(0),
    };
    Ok(Request::Exec(id, Box::new(exec)))
}

fn update(p: &Parsed) -> Result<Update> {
    let text = |name| p.one(name).filter(|v| !v.is_empty()).map(str::to_owned);
    Ok(Update {
        resources: text("resources"),
        blkio_weight: p.number("blkio-weight")?,
        cpu_period: p.number("cpu-period")?,
        cpu_quota: p.number("cpu-quota")?,
        cpu_share: p.number("cpu-share")?,
        cpu_rt_period: p.number("cpu-rt-period")?,
        cpu_rt_runtime: p.number("cpu-rt-runtime")?,
        cpuset_cpus: text("cpuset-cpus"),
        cpuset_mems: text("cpuset-mems"),
        memory: p.bytes("memory")?,
        memory_reservation: p.bytes("memory-reservation")?,
        memory_swap: p.bytes("memory-swap")?,
        pids_limit: p.number("pids-limit")?,
        rdt: text("l3-cache-schema").or_else(|| text("mem-bw-schema")),
    })
}

fn only_id(verb: &'static str, p: &Parsed) -> Result<ContainerId> {
    match p.arguments.as_slice() {
        [id] => Ok(ContainerId::parse(id)?),
        _ => Err(UsageError::Count {
            verb,
            count: "exactly 1",
        }),
    }
}

fn first_id(verb: &'static str, p: &Parsed) -> Result<(ContainerId, Vec<String>)> {
    match p.arguments.split_first() {
        Some((id, rest)) => Ok((ContainerId::parse(id)?, rest.to_vec())),
        None => Err(UsageError::Count {
            verb,
            count: "a minimum of 1",
        }),
    }
}

fn bad(flag: &str, value: &str, why: &str) -> UsageError {
    UsageError::Value {
        flag: flag.into(),
        value: value.into(),
        why: format!("must be {why}"),
    }
}

/// Joined to `cwd`; see [`plain`].
fn absolute(cwd: &Path, path: &str) -> PathBuf {
    plain(&cwd.join(path))
}

/// The usage text, for `--help` and for errors of usage; `called` is the program's name.
pub fn usage(called: &str, verb: &str) -> String {
    let list = |flags: &[&[Flag]]| {
        let lines = flags.iter().flat_map(|f| f.iter()).map(Flag::describe);
        lines.map(|l| format!("   {l}\n")).collect::<String>()
    };
    if let Some(v) = VERBS.iter().find(|v| v.name == verb) {
        let (name, does, arguments, flags) = (v.name, v.does, v.usage, list(v.flags));
        let (options, heading) = if flags.is_empty() {
            ("", "")
        } else {
            ("[command options] ", "\nOPTIONS:\n")
        };
        return format!(
            "NAME:\n   {called} {name} - {does}\n\nUSAGE:\n   {called} {name} {options}{arguments}\n{heading}{flags}"
        );
    }
    let verbs: String = VERBS
        .iter()
        .map(|v| format!("   {:<12}{}\n", v.name, v.does))
        .collect();
    format!(
        "NAME:\n   {called} - Open Container Initiative runtime, which makes containers provable\n\n\
         USAGE:\n   {called} [global options] command [command options] [arguments...]\n\n\
         COMMANDS:\n{verbs}\nGLOBAL OPTIONS:\n{}",
        list(&[GLOBAL])
    )
}

#[cfg(test)]
mod tests;
