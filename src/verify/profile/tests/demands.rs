//! Variables that load code, and what a rule may demand of a launch.

use super::*;

#[test]
fn refuse_variables_that_load_code() {
    for name in [
        "LD_PRELOAD",
        "LD_AUDIT",
        "LD_LIBRARY_PATH",
        "GLIBC_TUNABLES",
        "GCONV_PATH",
        "LOCPATH",
    ] {
        let mut spec = usual();
        spec["process"]["env"] = json!(["PATH=/bin", format!("{name}=x")]);
        let judged = |allow: &[String]| {
            let allow = allow
                .iter()
                .map(|n| Relaxation::parse(n).unwrap())
                .collect();
            judge(
                &profile(&spec),
                &LaunchRules {
                    allow,
                    ..LaunchRules::default()
                },
            )
        };
        let objections = judged(&[]).unwrap_err();
        assert_eq!(
            (objections.len(), objections[0].area),
            (1, Area::Env),
            "{name}"
        );
        assert!(judged(&[format!("env:{name}")]).is_ok());
        assert!(judged(&["env:*".to_owned()]).is_ok());
        assert!(judged(&["env:LD_DEBUG".to_owned()]).is_err());
    }
    let mut spec = usual();
    spec["process"]["env"] = json!(["OLD_PRELOAD=x", "PATH=LD_PRELOAD"]);
    assert!(judge(&profile(&spec), &LaunchRules::default()).is_ok());
}

#[test]
fn refuse_what_a_rule_does_not_demand() {
    let profile = profile(&usual());
    let rules = |text: &str| -> LaunchRules {
        toml::from_str(&format!("allow = []\n[demand]\n{text}")).unwrap()
    };
    let caps: Vec<String> = profile
        .process
        .capabilities
        .all()
        .iter()
        .map(|c| format!("{c:?}"))
        .collect();
    let caps = format!("capabilities = [{}]", caps.join(", "));
    let shared: Vec<String> = profile
        .namespaces
        .iter()
        .filter(|n| n.how != How::New)
        .map(|n| format!("{:?}", n.kind))
        .collect();
    let shared = format!("shared_namespaces = [{}]", shared.join(", "));
    for accepted in [
        "",
        "args = \"any\"",
        "args = [[\"/bin/x\"], [\"/usr/bin/app\", \"-v\"]]",
        &format!("uids = [{}]", profile.process.user.uid),
        &caps,
        &shared,
    ] {
        assert!(judge(&profile, &rules(accepted)).is_ok(), "{accepted}");
    }
    for (refused, why) in [
        ("args = []", "`args`"),
        ("args = [[\"/usr/bin/app\"]]", "`args`"),
        ("uids = [4711]", "`uids`"),
        ("capabilities = []", "`capabilities`"),
        (
            "seccomp = [\"sha256:0000000000000000000000000000000000000000000000000000000000000000\"]",
            "`seccomp`",
        ),
    ] {
        let objections = judge(&profile, &rules(refused)).unwrap_err();
        assert!(
            objections[0].to_string().contains(why),
            "{refused}: {}",
            objections[0]
        );
        assert_eq!(objections[0].relaxation, None);
    }
    let mut bare = profile.clone();
    bare.seccomp = "none".into();
    bare.launcher = Launcher::Other;
    assert!(judge(&bare, &rules("seccomp = \"filtered\"")).is_err());
    assert!(judge(&bare, &rules("seccomp = \"any\"")).is_ok());
    bare.namespaces[0].how = How::Host;
    let objections = judge(&bare, &rules("shared_namespaces = []")).unwrap_err();
    assert!(
        objections
            .iter()
            .any(|o| o.text.contains("`shared_namespaces`"))
    );
    // An exec's arguments are its own; its user and capabilities are not.
    assert!(judge_process(&profile.process, &profile, &rules("args = []")).is_ok());
    assert!(judge_process(&profile.process, &profile, &rules("uids = [4711]")).is_err());
}
