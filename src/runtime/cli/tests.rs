//! Command lines as engines send them, and one per way to be wrong.

use super::*;
use std::{ffi::OsString, time::Duration};

fn read(line: &str) -> Invocation {
    let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
    parse(&args, Path::new("/cwd"))
}

fn accept(line: &str) -> Request {
    read(line).request.unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).unwrap()
}

fn create(text: &str) -> Create {
    Create {
        id: id(text),
        bundle: "/cwd".into(),
        pid_file: None,
        console_socket: None,
        pidfd_socket: None,
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
    }
}

#[test]
fn accept_what_callers_send() {
    let table: &[(&str, Request)] = &[
        (
            // containerd's shim, through go-runc
            "--root /run/containerd/runc/default --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid c1",
            Request::Create(Create {
                bundle: "/b".into(),
                pid_file: Some("/b/init.pid".into()),
                ..create("c1")
            }),
        ),
        (
            // conmon
            "--systemd-cgroup --log-format=json --log=/l create --bundle /b --pid-file /p --console-socket /s --no-pivot c1",
            Request::Create(Create {
                bundle: "/b".into(),
                pid_file: Some("/p".into()),
                console_socket: Some("/s".into()),
                no_pivot: true,
                ..create("c1")
            }),
        ),
        ("start c1", Request::Start(id("c1"))),
        ("state c1", Request::State(id("c1"))),
        (
            "kill c1",
            Request::Kill {
                id: id("c1"),
                signal: "TERM".into(),
                all: false,
            },
        ),
        (
            "kill -a c1 9",
            Request::Kill {
                id: id("c1"),
                signal: "9".into(),
                all: true,
            },
        ),
        (
            "kill --all c1 KILL",
            Request::Kill {
                id: id("c1"),
                signal: "KILL".into(),
                all: true,
            },
        ),
        (
            "kill c1 KILL --all",
            Request::Kill {
                id: id("c1"),
                signal: "KILL".into(),
                all: true,
            },
        ),
        (
            "delete --force c1",
            Request::Delete {
                id: id("c1"),
                force: true,
            },
        ),
        (
            "delete c1 --force=true",
            Request::Delete {
                id: id("c1"),
                force: true,
            },
        ),
        (
            "-rootless=false -debug delete -f=0 c1",
            Request::Delete {
                id: id("c1"),
                force: false,
            },
        ),
        (
            "run -no-subreaper --keep -d c1",
            Request::Run(Run {
                create: create("c1"),
                detach: true,
                keep: true,
                no_subreaper: true,
            }),
        ),
        (
            "exec --process /p --detach --pid-file=rel c1",
            Request::Exec(
                id("c1"),
                Box::new(Exec {
                    process: Some("/p".into()),
                    detach: true,
                    pid_file: Some("/cwd/rel".into()),
                    ..Exec::default()
                }),
            ),
        ),
        (
            "exec -t -u 1000:100 -e A=1 --env B=2 -g 5 -c CAP_KILL c1 ls -l --all",
            Request::Exec(
                id("c1"),
                Box::new(Exec {
                    command: vec!["ls".into(), "-l".into(), "--all".into()],
                    tty: true,
                    user: Some((1000, Some(100))),
                    env: vec!["A=1".into(), "B=2".into()],
                    additional_gids: vec![5],
                    cap: vec!["CAP_KILL".into()],
                    ..Exec::default()
                }),
            ),
        ),
        (
            "ps --format json c1",
            Request::Ps {
                id: id("c1"),
                format: ListFormat::Json,
                options: vec![],
            },
        ),
        (
            "ps c1 -ef",
            Request::Ps {
                id: id("c1"),
                format: ListFormat::Table,
                options: vec!["-ef".into()],
            },
        ),
        (
            "list -q --format=json",
            Request::List {
                format: ListFormat::Json,
                quiet: true,
            },
        ),
        (
            "update --resources - c1",
            Request::Update(
                id("c1"),
                Box::new(Update {
                    resources: Some("-".into()),
                    ..Update::default()
                }),
            ),
        ),
        (
            "update --memory 64m --memory-swap -1 --pids-limit 20 c1",
            Request::Update(
                id("c1"),
                Box::new(Update {
                    memory: Some(64 << 20),
                    memory_swap: Some(-1),
                    pids_limit: Some(20),
                    ..Update::default()
                }),
            ),
        ),
        (
            "events --stats c1",
            Request::Events {
                id: id("c1"),
                stats: true,
                interval: Duration::from_secs(5),
            },
        ),
        (
            "events --interval 1m30s c1",
            Request::Events {
                id: id("c1"),
                stats: false,
                interval: Duration::from_secs(90),
            },
        ),
        ("--version", Request::Version),
        ("-v", Request::Version),
        ("features", Request::Features),
        (
            "checkpoint --image-path /i c1",
            Request::Unsupported("checkpoint"),
        ),
        ("restore --bundle /b c1", Request::Unsupported("restore")),
        ("", Request::Help(None)),
        ("create --help", Request::Help(Some("create"))),
    ];
    for (line, expected) in table {
        assert_eq!(&accept(line), expected, "{line}");
    }
}

#[test]
fn globals_are_read_even_if_the_rest_is_wrong() {
    let inv = read("--root rel/../root --log=/l --log-format json --systemd-cgroup create");
    assert!(inv.request.is_err());
    assert_eq!(inv.verb, "create");
    assert_eq!(inv.globals.root, Path::new("/cwd/root"));
    assert_eq!(inv.globals.report.log.as_deref(), Some(Path::new("/l")));
    assert_eq!(inv.globals.report.format, LogFormat::Json);
    assert!(inv.globals.systemd_cgroup);
    assert_eq!(read("state c1").globals.root, Path::new("/run/attestrun"));
}

#[test]
fn refuse_wrong_usage() {
    let table: &[(&str, UsageError)] = &[
        ("nosuch", UsageError::UnknownVerb("nosuch".into())),
        ("create --foo x", UsageError::Flag("foo".into())),
        ("create c1 --foo", UsageError::Flag("foo".into())),
        ("--foo create c1", UsageError::Flag("foo".into())),
        (
            "create",
            UsageError::Count {
                verb: "create",
                count: "exactly 1",
            },
        ),
        (
            "create a b",
            UsageError::Count {
                verb: "create",
                count: "exactly 1",
            },
        ),
        (
            "kill",
            UsageError::Count {
                verb: "kill",
                count: "a minimum of 1 and a maximum of 2",
            },
        ),
        ("create --bundle", UsageError::NoValue("bundle".into())),
        (
            "exec c1",
            UsageError::Combination("process args cannot be empty"),
        ),
    ];
    for (line, expected) in table {
        assert_eq!(&read(line).request.unwrap_err(), expected, "{line}");
    }
    for line in [
        "create a/b",
        "create ..",
        "--log-format xml create c1",
        "exec -u root c1 ls",
        "exec -g x c1 ls",
        "run --detach=maybe c1",
        "run --preserve-fds -1 c1",
        "update --memory 5x c1",
        "update --memory 99999999999g c1",
        "events --interval 5 c1",
        "events --interval 0s c1",
        "list --format yaml",
    ] {
        assert!(read(line).request.is_err(), "{line}");
    }
}

#[test]
fn refuse_arguments_that_are_no_text() {
    use std::os::unix::ffi::OsStringExt;
    let args = vec![OsString::from("state"), OsString::from_vec(vec![0xff])];
    assert_eq!(
        parse(&args, Path::new("/")).request,
        Err(UsageError::Encoding(2))
    );
}

#[test]
fn after_two_dashes_everything_is_an_argument() {
    assert_eq!(
        accept("kill -- c1 9"),
        Request::Kill {
            id: id("c1"),
            signal: "9".into(),
            all: false
        }
    );
    let Request::Exec(_, exec) = accept("exec c1 -- -x") else {
        panic!()
    };
    assert_eq!(exec.command, ["--", "-x"]);
}
