//! A list of a million files, on a host: judged, kept and shown in bounded time and memory.

use super::*;
use crate::{deaths, spawn::Cmd};
use std::{fmt::Write as _, time::Instant};

/// What the issue of such a list promises; a machine under load is given more.
const MILLION: usize = 1_000_000;
/// For judging: the list's text, what is made of it, and a vTPM. The slice's limit is twice that.
const MAX_PEAK_KIB: u64 = 400 << 10;
/// For the container's life: paths and digests.
const MAX_KEPT_KIB: u64 = 160 << 10;

/// A list about `image` of its own programs and of as many files as make it a million.
pub fn of_a_million(owner: &Publisher, image: &Image, serial: u64) -> Result<PathBuf> {
    let small = fs::read_to_string(owner.list(image, serial)?)?;
    let mark = "\"files\":{";
    let (head, tail) = small.split_once(mark).context("files")?;
    let own = tail.matches("\":[\"").count();
    let mut text = String::with_capacity(128 << 20);
    text.push_str(head);
    text.push_str(mark);
    for number in own..MILLION {
        write!(
            text,
            "\"/a/million/files/{number:08}\":[\"{number:064x}\"],"
        )?;
    }
    text.push_str(tail);
    // all of them may be started
    let value: Value = serde_json::from_str(&small)?;
    if !value["predicate"]["exec"].is_null() {
        let exec = format!("\"exec\":{},", value["predicate"]["exec"]);
        ensure!(text.contains(&exec), "exec is not spelt as it was");
        text = text.replacen(&exec, "", 1);
    }
    let path = owner.at("million.json");
    fs::write(&path, text)?;
    Ok(path)
}

fn status_kib(pid: i32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    let number = line.and_then(|l| l.trim_start_matches(':').split_whitespace().next());
    Ok(number.context("status")?.parse()?)
}

/// Refused, since the image has no such files; under mode `audit` it runs, is shown, and enters.
pub fn a_million_files_are_judged_and_kept(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
    let signed = || -> Result<()> {
        let list = of_a_million(owner, demo, 1)?;
        let size = fs::metadata(&list)?.len();
        ensure!(size > 95_000_000, "{size} bytes");
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        owner.import(
            &list,
            &owner.sign_with_openssl(&list, "user.pem", "user.key")?,
        )
    };
    restoring(STORE, || {
        signed()?;
        refusal(
            &rt.run(&bundle)?,
            "in the list, but no regular file of the image",
        )?;
        restoring(POLICY, || {
            fs::write(POLICY, policy("audit"))?;
            let began = Instant::now();
            let guards = deaths::new_processes("guard", || rt.up(&bundle))?;
            println!("create and start took {} ms", began.elapsed().as_millis());
            let [guard] = guards[..] else {
                anyhow::bail!("guards: {guards:?}")
            };
            let kept = || -> Result<()> {
                let (peak, now) = (status_kib(guard, "VmHWM")?, status_kib(guard, "VmRSS")?);
                println!("guard: at most {peak} KiB, now {now} KiB");
                ensure!(peak < MAX_PEAK_KIB, "peak {peak} KiB");
                ensure!(now < MAX_KEPT_KIB, "kept {now} KiB");
                Ok(())
            };
            kept()?;
            let exec = |program: &str| -> Cmd { rt.cmd("exec").arg(&bundle.id).arg(program) };
            exec("/bin/true").ok()?;
            let expectations =
                world.expectations(&["no-ima", "tier-fanotify", "software-root", "audit"])?;
            let verdict = world.challenge(&bundle.id, &expectations)?;
            let verdict: Value =
                serde_json::from_str(&verdict.stdout).with_context(|| format!("{verdict}"))?;
            let siglist = verdict["findings"].as_array().context("findings")?;
            let siglist = siglist.iter().find(|c| c["check"] == "P-SIGLIST");
            ensure!(
                siglist.is_some_and(|c| c["outcome"] == "ok"
                    && c["detail"]
                        .as_str()
                        .is_some_and(|d| d.contains("1000000 files"))),
                "{siglist:?}"
            );
            kept()?;
            rt.down(&bundle)
        })
    })
}
