//! Places, wishes and what is taken back.

use super::*;
use std::{fs, os::fd::AsFd};
use verify::id::RunId;

fn spec(mounts: &str, rest: &str) -> Spec {
    let text = format!(
        r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"mounts":[{mounts}],
           "process":{{"user":{{"uid":0,"gid":0}},"cwd":"/","args":["sh"],"env":["A=1","TPM2TOOLS_TCTI=none"]}},
           "linux":{{{rest}}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

struct Rootfs(PathBuf);

impl Rootfs {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("attestrun-lending-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn lending(&self, spec: &Spec) -> Lending {
        let root = fs::File::open(&self.0).unwrap();
        Lending::of(spec, root.as_fd()).unwrap()
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A mount point that the image lacks is made by the container's root user.
#[test]
fn only_its_owner_makes_a_place_in_a_user_namespace() {
    let rootfs = Rootfs::new("mapped");
    let me = rustix::process::geteuid().as_raw();
    let with_root = |host: u32| {
        let map = format!(r#"[{{"containerID":0,"hostID":{host},"size":1000}}]"#);
        let linux =
            format!(r#""namespaces":[{{"type":"user"}}],"uidMappings":{map},"gidMappings":{map}"#);
        matches!(rootfs.lending(&spec("", &linux)), Lending::To { .. })
    };
    for made in ["", "run"] {
        fs::create_dir_all(rootfs.0.join(made)).unwrap();
        assert!(with_root(me), "{made}");
        assert!(!with_root(me + 1), "{made}");
    }
    fs::create_dir(rootfs.0.join("run/attestrun")).unwrap();
    assert!(with_root(me + 1));
}

#[test]
fn a_place_is_found_or_the_container_is_without() {
    let rootfs = Rootfs::new("place");
    let stubs = |mounts: &str| match rootfs.lending(&spec(mounts, "")) {
        Lending::To { stubs, .. } => Some(stubs.len()),
        Lending::Not(_) => None,
    };
    assert_eq!(stubs(""), Some(2));
    fs::create_dir(rootfs.0.join("run")).unwrap();
    assert_eq!(stubs(""), Some(1));
    for (mount, there) in [
        (r#"{"destination":"/run","type":"tmpfs"}"#, Some(0)),
        (
            r#"{"destination":"/run/","type":"tmpfs","options":["ro"]}"#,
            None,
        ),
        (
            r#"{"destination":"/run","type":"bind","source":"/srv"}"#,
            None,
        ),
        (r#"{"destination":"/run/attestrun","type":"tmpfs"}"#, None),
        (r#"{"destination":"/run/attestrun/x","type":"tmpfs"}"#, None),
        (r#"{"destination":"/run/lock","type":"tmpfs"}"#, Some(1)),
        (
            r#"{"destination":"/runner","type":"bind","source":"/srv"}"#,
            Some(1),
        ),
    ] {
        assert_eq!(stubs(mount), there, "{mount}");
    }
    fs::remove_dir(rootfs.0.join("run")).unwrap();
    std::os::unix::fs::symlink("/var/run", rootfs.0.join("run")).unwrap();
    assert_eq!(stubs(""), None);
    fs::create_dir_all(rootfs.0.join("var/run/attestrun")).unwrap();
    assert_eq!(stubs(""), Some(0));
    fs::remove_file(rootfs.0.join("run")).unwrap();
    fs::write(rootfs.0.join("run"), "").unwrap();
    assert_eq!(stubs(""), None);
}

fn wish(annotations: &str, resources: &str) -> Result<Wish> {
    let text = format!(
        r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"annotations":{{{annotations}}},"linux":{{"resources":{{{resources}}}}}}}"#
    );
    Wish::of(&serde_json::from_str(&text)?, &Vtpm::all(text.as_bytes())?)
}

#[test]
fn wishes_are_fulfilled_or_refused() {
    const NONE: &str = r#""dev.attestrun.vtpm":"none""#;
    let is = |annotations, resources| wish(annotations, resources).unwrap();
    assert_eq!(is("", ""), Wish::Unsaid);
    assert_eq!(is("", r#""vtpms":null"#), Wish::Unsaid);
    assert_eq!(is("", r#""vtpms":[]"#), Wish::Unsaid);
    assert_eq!(is(NONE, ""), Wish::Without);
    assert_eq!(is(r#""dev.attestrun.vtpm":"socket""#, ""), Wish::Demanded);
    assert_eq!(is("", r#""vtpms":[{}]"#), Wish::Demanded);
    let usual = r#""vtpms":[{"vtpmVersion":"2","pcrBanks":"sha1,sha256","createCerts":false}]"#;
    assert_eq!(is("", usual), Wish::Demanded);
    for (annotations, resources, word) in [
        (r#""dev.attestrun.vtpm":"yes""#, "", "neither"),
        (NONE, usual, "says `none`"),
        ("", r#""vtpms":[{},{}]"#, "not 2"),
        ("", r#""vtpms":[{"vtpmVersion":"1.2"}]"#, "vtpmVersion"),
        ("", r#""vtpms":[{"statePath":"/x"}]"#, "statePath"),
        (
            "",
            r#""vtpms":[{"encryptionPassword":"x"}]"#,
            "encryptionPassword",
        ),
        ("", r#""vtpms":[{"createCerts":true}]"#, "createCerts"),
        ("", r#""vtpms":[{"runAs":"tss"}]"#, "runAs"),
        ("", r#""vtpms":[{"vtpmName":"tpm0"}]"#, "vtpmName"),
        ("", r#""vtpms":[{"vtpmMajor":10}]"#, "vtpmMajor"),
        ("", r#""vtpms":[{"pcrBanks":"sha256,sm3"}]"#, "pcrBanks"),
        ("", r#""vtpms":[{"future":1}]"#, "vtpms"),
        ("", r#""vtpms":{}"#, "vtpms"),
    ] {
        let said = format!("{:#}", wish(annotations, resources).unwrap_err());
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn what_is_demanded_is_there_or_nothing_starts() {
    let rootfs = Rootfs::new("wish");
    let root = fs::File::open(&rootfs.0).unwrap();
    let choose = |mounts: &str, wish, allowed| {
        Lending::choose(&spec(mounts, ""), wish, root.as_fd(), allowed)
    };
    let lent = |lending: Result<Lending>| matches!(lending.unwrap(), Lending::To { .. });
    let taken = r#"{"destination":"/run","type":"bind","source":"/srv"}"#;
    assert!(lent(choose("", Wish::Unsaid, true)));
    assert!(lent(choose("", Wish::Demanded, true)));
    assert!(!lent(choose("", Wish::Without, true)));
    assert!(!lent(choose("", Wish::Unsaid, false)));
    assert!(!lent(choose(taken, Wish::Unsaid, true)));
    assert!(choose(taken, Wish::Demanded, true).is_err());
    assert!(choose("", Wish::Demanded, false).is_err());
}

#[test]
fn what_was_made_is_taken_back_if_it_is_empty() {
    let rootfs = Rootfs::new("stubs");
    let stubs = [PathBuf::from("run"), PathBuf::from("run/attestrun")];
    fs::create_dir_all(rootfs.0.join("run/attestrun")).unwrap();
    take_back(&rootfs.0, &stubs);
    assert!(!rootfs.0.join("run").exists());
    fs::create_dir_all(rootfs.0.join("run/attestrun")).unwrap();
    fs::write(rootfs.0.join("run/other"), "").unwrap();
    take_back(&rootfs.0, &stubs);
    assert!(rootfs.0.join("run/other").exists());
    assert!(!rootfs.0.join("run/attestrun").exists());
    take_back(Path::new("/nonexistent/rootfs"), &stubs);
}

#[test]
fn owner_is_the_containers_root() {
    let user = r#""namespaces":[{"type":"user"}]"#;
    let maps = r#","uidMappings":[{"containerID":0,"hostID":100000,"size":9}],"gidMappings":[{"containerID":0,"hostID":200000,"size":9}]"#;
    assert_eq!(owner(&spec("", "")), Ok(Owner { uid: 0, gid: 0 }));
    let mapped = Owner {
        uid: 100_000,
        gid: 200_000,
    };
    assert_eq!(owner(&spec("", &format!("{user}{maps}"))), Ok(mapped));
    assert!(owner(&spec("", user)).is_err());
}

#[test]
fn what_was_added_is_told_from_what_was_called_for() {
    let run_dir = RunDir::of(&RunId::parse("0123456789abcdef0123456789abcdef").unwrap());
    let called = spec(r#"{"destination":"/a","type":"tmpfs"}"#, "");
    assert_eq!(
        as_called(&called, &run_dir).unwrap(),
        (called.clone(), None)
    );
    let mut sealed = called.clone();
    let ours = mount(&run_dir, &called).unwrap();
    sealed.mounts_mut().as_mut().unwrap().push(ours.clone());
    name_in(sealed.process_mut().as_mut().unwrap());
    let env = sealed.process().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env[1], "TPM2TOOLS_TCTI=none");
    assert_eq!(env.len(), 4);
    let root = Owner { uid: 0, gid: 0 };
    assert_eq!(
        as_called(&sealed, &run_dir).unwrap(),
        (called.clone(), Some(root))
    );
    // another run's directory, or other options, are a mount like any other
    let other = RunDir::of(&RunId::parse("f123456789abcdef0123456789abcdef").unwrap());
    assert_eq!(as_called(&sealed, &other).unwrap(), (sealed.clone(), None));
    let mut writable = ours;
    writable.set_options(Some(vec!["bind".into(), "rw".into()]));
    sealed.set_mounts(Some(vec![writable]));
    assert_eq!(
        as_called(&sealed, &run_dir).unwrap(),
        (sealed.clone(), None)
    );
}
