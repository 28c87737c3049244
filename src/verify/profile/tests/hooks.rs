//! Hooks, and what they add to a container: each is allowed by its name alone.

use super::*;

#[test]
fn refuse_hooks() {
    let digest = FileDigest::of(b"hook");
    for stage in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        assert_eq!(
            objections(|v| v["hooks"] = json!({stage: [{"path": "/bin/hook", "args": ["hook"]}]})),
            [format!("hook:{digest}")]
        );
    }
    // a program of the container's: the name of a host's hook does not let it in, nor the other way
    assert_eq!(
        objections(|v| v["hooks"] = json!({"startContainer": [{"path": "/bin/hook"}]})),
        [format!("start-hook:{}", FileDigest::of(b"start-hook"))]
    );
}

#[test]
fn refuse_hooks_that_load_other_code() {
    let of_stage = |stage: &str| {
        objections(|v| {
            v["hooks"] = json!({stage: [{"path": "/bin/hook",
                "env": ["PATH=/bin", "LD_PRELOAD=/tmp/x.so", "GCONV_PATH=/tmp"]}]});
        })
    };
    let text = |name| {
        format!(
            "prestart hook /bin/hook with the environment variable {name}, by which programs load other code"
        )
    };
    assert_eq!(
        of_stage("prestart"),
        [
            format!("hook:{}", FileDigest::of(b"hook")),
            text("GCONV_PATH"),
            text("LD_PRELOAD")
        ]
    );
    assert_eq!(
        of_stage("startContainer"),
        [
            &*format!("start-hook:{}", FileDigest::of(b"start-hook")),
            "env:GCONV_PATH",
            "env:LD_PRELOAD"
        ]
    );
}

#[test]
fn refuse_what_hooks_added_unless_it_is_named() {
    let added = |mounts: &[&str], devices: &[&str]| HookAdditions {
        mounts: mounts.iter().map(ToString::to_string).collect(),
        devices: devices.iter().map(ToString::to_string).collect(),
    };
    let rules = LaunchRules {
        allow: ["hook-mount:/usr/lib/gpu", "hook-device:/dev/gpu0"]
            .map(|name| Relaxation::parse(name).unwrap())
            .to_vec(),
        ..LaunchRules::default()
    };
    let named = added(&["/usr/lib/gpu", "/usr/lib/gpu/1.so"], &["/dev/gpu0"]);
    assert_eq!(judge_added(&named, &rules), Ok(()));
    for (mounts, devices, name) in [
        (&["/usr/lib/gpu2"][..], &[][..], "hook-mount:/usr/lib/gpu2"),
        (&["/usr/lib"], &[], "hook-mount:/usr/lib"),
        (&[], &["/dev/gpu1"], "hook-device:/dev/gpu1"),
    ] {
        let objections = judge_added(&added(mounts, devices), &rules).unwrap_err();
        assert_eq!(objections.len(), 1);
        assert_eq!(objections[0].relaxation, Relaxation::parse(name).ok());
        assert!(judge_added(&added(mounts, devices), &LaunchRules::default()).is_err());
    }
    for everything in [
        "hook-mount:/",
        "hook-mount:",
        "hook-mount:usr",
        "hook-mount:/a/../b",
    ] {
        assert!(Relaxation::parse(everything).is_err(), "{everything}");
    }
}
