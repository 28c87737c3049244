//! The host's programs: the administrator's list of them, and a host whose kernel measures what it runs,
//! by the policy of attestctl-list(1). Only `tests/qemu-host` has a kernel whose policy is ours to set.

use crate::{
    Module, Test,
    attestation::{Kept, answer, decode, ours, refused, up},
    cmd,
    machine::machine,
    namespace::{SOURCES, bind},
    publisher::Publisher,
    spawn::{Cmd, Output},
    world::{Skip, World},
};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "host_list",
    prepare: |world| {
        if is_ours_to_measure() {
            begin_to_measure(world)?;
            world.open_for_business()?;
            world.rootfs(0)?;
        }
        Ok(())
    },
    tests: &[Test::Once(
        "what_the_kernel_measured_is_listed",
        what_the_kernel_measured_is_listed,
    )],
};

pub const ADMINISTRATOR: &str = "spiffe://e2e.example/tenant/hosts";
const IMA: &str = "/sys/kernel/security/ima";
/// The evidence's item.
const ITEM: &str = "host/ima";
const WAIVERS: [&str; 2] = ["software-root", "tier-fanotify"];

// --- the administrator ---

/// A CA and a certificate of the administrator's.
pub fn administrator(owner: &Publisher) -> Result<()> {
    let ca = owner.at("admin-ca");
    owner
        .ctl(&["ca", "init", "--name", "administrator", "--dir"])
        .arg(&ca)
        .ok()?;
    let issue = owner.ctl(&[
        "ca",
        "issue",
        "--tenant",
        ADMINISTRATOR,
        "--name",
        "admin",
        "--dir",
    ]);
    let issue = issue.arg(&ca).arg("--out-cert").arg(owner.at("admin.pem"));
    issue.arg("--out-key").arg(owner.at("admin.key")).ok()?;
    Ok(())
}

/// A host list of the files that sha256sum said this of, for the class `e2e`, signed by the administrator.
pub fn host_list(world: &World, said: &str, serial: u64) -> Result<(PathBuf, PathBuf)> {
    let owner = &world.open_for_business()?.owner;
    let (sums, list) = (
        owner.at("host.sums"),
        owner.at(&format!("host-{serial}.json")),
    );
    fs::write(&sums, said)?;
    let import = owner.ctl(&[
        "list", "import", "--name", "hosts", "--days", "30", "--hosts", "e2e",
    ]);
    let import = import.args(["--serial", &serial.to_string(), "--sha256sum"]);
    import.arg(&sums).arg("--output").arg(&list).ok()?;
    let signature = list.with_extension("p7s");
    let sign = owner
        .ctl(&["list", "sign", "--cert"])
        .arg(owner.at("admin.pem"));
    let sign = sign.arg("--key").arg(owner.at("admin.key")).arg("--output");
    sign.arg(&signature).arg(&list).ok()?;
    Ok((list, signature))
}

/// `attestctl host-policy`, but for the class of hosts.
pub fn host_policy(world: &World, owner: &Publisher, list: &Path, signature: &Path) -> Cmd {
    let make = owner.ctl(&["host-policy", "--tenant", ADMINISTRATOR, "--name", "hosts"]);
    let make = make
        .arg("--unchecked-revocation")
        .arg("--output")
        .arg(world.work.join("host-policy.toml"));
    make.arg("--ca")
        .arg(owner.at("admin-ca/ca.pem"))
        .arg("--sig")
        .arg(signature)
        .arg(list)
}

/// What a challenger expects who has that policy.
pub fn with_host_policy(world: &World, waive: &[&str]) -> Result<PathBuf> {
    let expectations = world.expectations(waive)?;
    let text = fs::read_to_string(&expectations)?;
    let text = format!("host_policy = \"host-policy.toml\"\n{text}");
    fs::write(&expectations, text)?;
    Ok(expectations)
}

// --- a kernel that measures ---

fn is_ours_to_measure() -> bool {
    machine().tpm && Path::new(IMA).is_dir()
}

/// The lines that the man page gives after this word.
fn by_the_book(word: &str) -> Result<String> {
    let page = fs::read_to_string(Path::new(SOURCES).join("packaging/man/attestctl-list.1"))?;
    let lines = page.split_once(word).and_then(|(_, after)| {
        let (_, after) = after.split_once(".nf\n")?;
        Some(
            after
                .split_once(".fi")?
                .0
                .replace("\\-", "-")
                .replace("\\e", "\\"),
        )
    });
    lines.with_context(|| format!("attestctl-list(1) has no lines after {word}"))
}

/// What the man page has an administrator run on a host, here for these files of it.
fn sums(programs: &[PathBuf]) -> Result<String> {
    let lines = by_the_book(".SH HOSTS")?;
    let line = lines.lines().next().context("recipe")?;
    let (recipe, _) = line.split_once(" >").context("no output")?;
    let places: String = programs
        .iter()
        .map(|p| format!(" '.{}'", p.display()))
        .collect();
    let narrowed = recipe.replacen("find .", &format!("find{places}"), 1);
    ensure!(narrowed != recipe, "no find: {recipe}");
    let said = cmd!("sh", "-c", narrowed).ok()?.stdout;
    ensure!(said.lines().count() == programs.len(), "not all: {said}");
    Ok(said)
}

/// swtpm, the libraries that it and attestrun need, and the loader, by their true names.
fn of_the_distribution(world: &World) -> Result<Vec<PathBuf>> {
    let swtpm = Path::new("/usr/bin/swtpm");
    let mut found = vec![swtpm.to_owned()];
    for program in [swtpm, &world.program("attestrun")?] {
        let said = cmd!("ldd", program).ok()?.stdout;
        let paths = said.split_whitespace().filter(|word| word.starts_with('/'));
        for path in paths {
            found.push(fs::canonicalize(path)?);
        }
    }
    found.sort();
    found.dedup();
    ensure!(found.len() > 5, "swtpm's libraries: {found:?}");
    Ok(found)
}

/// This machine's root is an overlay itself, which the policy leaves out, as it does containers': what
/// other hosts have on a disk lies in memory here. Ours do already.
fn begin_to_measure(world: &World) -> Result<()> {
    let place = world.work.join("of the host"); // the kernel writes spaces in its own way
    fs::create_dir(&place)?;
    for program in of_the_distribution(world)? {
        let copy = place.join(program.file_name().context("name")?);
        fs::copy(&program, &copy)?;
        bind(&copy, &program)?;
    }
    fs::write(Path::new(IMA).join("policy"), by_the_book("ima\\-policy")?)
        .context("the kernel's IMA policy")
}

/// Of a binary_runtime_measurements: PCR and hash, then name and data, each after its length.
fn entries(list: &[u8]) -> Result<Vec<&[u8]>> {
    let mut entries = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let mut end = 24;
        for _ in 0..2 {
            let length = rest.get(end..end + 4).context("length")?;
            end += 4 + usize::try_from(u32::from_le_bytes(length.try_into()?))?;
        }
        let (entry, after) = rest.split_at_checked(end).context("a torn list")?;
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

fn the_host(answer: &Value) -> Result<&Value> {
    let findings = answer["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|f| f["check"] == "P-HOST");
    found.with_context(|| format!("no P-HOST: {answer:#}"))
}

/// Refused by P-HOST and by nothing else, in these words.
fn is_refused(output: &Output, words: &str) -> Result<()> {
    let answer = answer(output)?;
    let said = the_host(&answer)?;
    ensure!(
        output.code() == 1 && refused(&answer).into_iter().eq(["P-HOST".to_owned()]),
        "not P-HOST alone: {answer:#}"
    );
    ensure!(
        said.to_string().contains(words),
        "expected `{words}`: {said:#}"
    );
    Ok(())
}

fn what_the_kernel_measured_is_listed(world: &World) -> Result<()> {
    if !is_ours_to_measure() {
        let why = "this machine's kernel is not the tests' to tell what it measures";
        return Err(Skip(why.to_owned()).into());
    }
    let owner = &world.open_for_business()?.owner;
    administrator(owner)?;
    let mut programs = of_the_distribution(world)?;
    for name in [
        "attestrun",
        "attestrun-host",
        "attestrun-agent",
        "attestctl",
    ] {
        programs.push(world.program(name)?);
    }
    let (list, signature) = host_list(world, &sums(&programs)?, 1)?;
    let make = || host_policy(world, owner, &list, &signature);
    make().args(["--hosts", "e2e"]).ok()?;

    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let expectations = with_host_policy(world, &WAIVERS)?;
    let challenge = || world.challenge(&bundle.id, &expectations);
    let done = (|| {
        let output = challenge()?;
        let said = answer(&output)?;
        ensure!(output.code() == 0, "{said:#}");
        ensure!(the_host(&said)?["outcome"] == "ok", "{said:#}");
        let kept = Kept::of(world, &bundle.id, &said)?;
        let programs = programs.len();
        // boot_aggregate, swtpm and what it maps, and ours
        let measured = decode(&kept.evidence[ITEM])?;
        let count = entries(&measured)?.len();
        ensure!(
            count > 5 && count <= 1 + programs,
            "{count} entries of {programs} programs: {said:#}"
        );
        no_other_list_passes(world, &kept)?;

        let stranger = Path::new("/tmp/true"); // busybox goes by its name
        fs::copy("/bin/busybox", stranger)?;
        cmd!(stranger).ok()?;
        is_refused(&challenge()?, "/tmp/true (sha256:")?;
        fs::remove_file(stranger)?;
        let output = challenge()?;
        is_refused(&output, "/tmp/true (sha256:").context("once it is gone")?;
        hidden(world, &Kept::of(world, &bundle.id, &answer(&output)?)?)?;

        // a library that somebody may write to while it is mapped: what it holds is not known
        let libraries = of_the_distribution(world)?;
        let library = libraries.iter().map(|path| path.display().to_string());
        let mut library = library.filter(|path| path.contains("/libtpms.so"));
        let library = library.next().context("libtpms")?;
        let mapped = format!("exec 3<>{library}; LD_PRELOAD={library} exec /bin/true");
        cmd!("sh", "-c", mapped).ok()?;
        let said = format!("(violation), says the list of {library}");
        is_refused(&challenge()?, &said)
    })();
    rt.down(&bundle)?;
    done
}

/// The kernel's list, but shorter, altered, of fewer entries or none: the quote says otherwise.
fn no_other_list_passes(world: &World, kept: &Kept) -> Result<()> {
    let list = decode(&kept.evidence[ITEM])?;
    let all = entries(&list)?;
    let last = all.len() - 1;
    let mut altered = list.clone();
    let byte = altered.len() - 20; // in the last one's path
    altered[byte] ^= 1;
    let without = |n: usize| [&all[..n], &all[n + 1..]].concat().concat();
    let mut swapped = all.clone();
    swapped.swap(last - 1, last);
    for (what, list, words) in [
        ("torn", list[..list.len() - 1].to_vec(), "IMA list"),
        ("altered", altered, "IMA list"),
        ("without the last", without(last), "does not explain"),
        ("without the second", without(1), "does not explain"),
        ("without the first", without(0), "does not explain"),
        ("in another order", swapped.concat(), "does not explain"),
    ] {
        is_refused(&judged(world, kept, &list)?, words).context(what)?;
    }
    let none = judged(world, kept, b"")?;
    ensure!(none.code() == 2, "no list: {none}");
    let same = judged(world, kept, &list)?;
    ensure!(same.code() == 0, "the list itself: {same}");
    Ok(())
}

/// Root takes the last entry, which is the stranger's, out of the list.
fn hidden(world: &World, kept: &Kept) -> Result<()> {
    let list = decode(&kept.evidence[ITEM])?;
    let mut all = entries(&list)?;
    let is_it = |entry: &&[u8]| entry.windows(9).any(|bytes| bytes == b"/tmp/true");
    ensure!(
        all.iter().filter(|e| is_it(e)).count() == 1,
        "measured twice"
    );
    all.retain(|entry| !is_it(entry));
    is_refused(&judged(world, kept, &all.concat())?, "does not explain")
}

fn judged(world: &World, kept: &Kept, list: &[u8]) -> Result<Output> {
    let mut evidence = kept.evidence.clone();
    evidence[ITEM][1] = json!(BASE64URL.encode(list));
    kept.judge(world, &evidence)
}
