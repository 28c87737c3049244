//! The container's own TPM as the container sees it: tools of others work, what is not the workload's is
//! refused, and nobody in there can keep the guard from its work.

mod certificate;
mod kept; // a vTPM whose state outlives its container // what the host's TPM certifies and quotes by itself

use crate::{
    Module, Test,
    admission::restoring,
    attestation::{accepted, ours},
    cmd,
    engines::{podman, userns::with_shared_mounts},
    host::{CONFIG, POLICY, TRUST, policy},
    image::{File, Image, Plan},
    machine::patient,
    publisher,
    runtime::{Bundle, Runtime},
    spawn::Output,
    world::{Rootfs, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub const MODULE: Module = Module {
    name: "vtpm",
    prepare: |world| {
        let image = image(world)?;
        world.open_for_business()?.owner.publish(&image, 1)?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Ours("tools_do_what_a_workload_does", tools),
        Test::Ours("tools_in_a_user_namespace", tools_in_a_user_namespace),
        Test::Once("the_guard_works_on", the_guard_works_on),
        Test::Ours("the_rootfs_is_as_before", the_rootfs_is_as_before),
        Test::Once(
            "without_a_place_there_is_none",
            without_a_place_there_is_none,
        ),
        Test::Once("its_share_of_memory", its_share_of_memory),
        Test::Once("its_certificate_is_the_hosts", certificate::is_the_hosts),
        Test::Once(
            "a_record_is_quoted_at_once",
            certificate::a_record_is_quoted_at_once,
        ),
        Test::Once(
            "a_state_that_is_kept_is_the_last_one",
            kept::is_the_last_one,
        ),
    ],
};

const IMAGE: &str = "localhost/e2e/tpm-tools";

/// An image with the demo's programs and tpm2-tools.
fn image(world: &World) -> Result<Image> {
    let files = tool_files(&[])?;
    let plan = Plan {
        name: &format!("{IMAGE}:v1"),
        text: "an image that uses its TPM\n",
    };
    Image::with_files(&world.work.join("images"), &plan, &as_files(&files))
}

/// What tpm2-tools, which are one program, and `more` programs need, and where it has its place.
pub fn tool_files(more: &[&Path]) -> Result<Vec<(String, Vec<u8>)>> {
    const TOOLS: &str = "/usr/bin/tpm2";
    const TCTI: &str = "/usr/lib/x86_64-linux-gnu/libtss2-tcti-swtpm.so.0";
    let programs = [&[Path::new(TOOLS)], more].concat();
    let mut libraries: BTreeSet<PathBuf> = [PathBuf::from(TCTI)].into();
    for program in programs.iter().chain([&Path::new(TCTI)]) {
        let text = cmd!("ldd", program).ok()?.stdout;
        let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
        libraries.extend(paths.map(PathBuf::from));
    }
    let mut files = Vec::new();
    let places = programs.iter().map(|path| ("bin", *path));
    let libraries = libraries
        .iter()
        .map(|library| match library.starts_with("/lib64") {
            true => ("lib64", library.as_path()),
            false => ("lib", library.as_path()),
        });
    for (place, path) in places.chain(libraries) {
        let name = path.file_name().context("a file's name")?;
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        files.push((format!("{place}/{}", name.to_string_lossy()), bytes));
    }
    Ok(files)
}

pub fn as_files(files: &[(String, Vec<u8>)]) -> Vec<File<'_>> {
    let files = files.iter();
    files
        .map(|(path, bytes)| (path.as_str(), 0o755, bytes.as_slice()))
        .collect()
}

/// A waiting container of that image, with a tmpfs at /tmp.
fn with_tools(world: &World, rt: &Runtime, body: impl Fn(&Bundle) -> Result<()>) -> Result<()> {
    with_bundle(world, |bundle| {
        rt.up(bundle)?;
        body(bundle)?;
        rt.down(bundle)
    })
}

/// Its bundle.
fn with_bundle(world: &World, body: impl Fn(&mut Bundle) -> Result<()>) -> Result<()> {
    let image = image(world)?;
    let rule = publisher::rule("tpm", IMAGE, Path::new(TRUST));
    restoring(POLICY, || {
        fs::write(POLICY, format!("{}{rule}", policy("enforce")))?;
        world.with_rootfs(&image, |rootfs| {
            let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sleep", "1000"])?;
            let mounts = bundle.config["mounts"].as_array_mut().context("mounts")?;
            let tmpfs = json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] });
            mounts.push(tmpfs);
            bundle.config["process"]["env"] = json!(["PATH=/bin"]);
            bundle.write()?;
            body(&mut bundle)
        })
    })
}

/// What a shell in the container says to `script`.
fn inside(rt: &Runtime, bundle: &Bundle, script: &str) -> Result<Output> {
    let script = format!("set -e; cd /tmp; {script}");
    let exec = rt.cmd("exec").args([bundle.id.as_str(), "/bin/sh", "-c"]);
    exec.arg(script).output()
}

const WORKLOAD: &str = "
    test $(tpm2 getrandom --hex 16 | tr -d '\\n' | wc -c) = 32
    tpm2 createprimary -Q -C o -G ecc -c parent.ctx
    tpm2 create -Q -C parent.ctx -G ecc -u key.pub -r key.priv
    tpm2 load -Q -C parent.ctx -u key.pub -r key.priv -c key.ctx
    echo hello > text
    tpm2 sign -Q -c key.ctx -g sha256 -o text.sig text
    tpm2 verifysignature -Q -c key.ctx -g sha256 -m text -s text.sig
    tpm2 pcrextend 12:sha256=ababababababababababababababababababababababababababababababab01
    tpm2 createek -Q -G ecc -c ek.ctx
    tpm2 createak -Q -C ek.ctx -G ecc -g sha256 -s ecdsa -c ak.ctx
    tpm2 readpublic -Q -c ak.ctx -f pem -o ak.pem
    tpm2 quote -Q -c ak.ctx -l sha256:0,10,12 -q abcdef -m q.msg -s q.sig -o q.pcrs
    tpm2 checkquote -Q -u ak.pem -m q.msg -s q.sig -f q.pcrs -g sha256 -q abcdef
    tpm2 startauthsession -Q --policy-session -S session.ctx
    tpm2 policypcr -Q -S session.ctx -l sha256:12 -L policy
    tpm2 flushcontext session.ctx
    echo secret | tpm2 create -Q -C parent.ctx -i- -L policy -u s.pub -r s.priv
    tpm2 load -Q -C parent.ctx -u s.pub -r s.priv -c s.ctx
    test $(tpm2 unseal -c s.ctx -p pcr:sha256:12) = secret
    tpm2 pcrextend 12:sha256=ababababababababababababababababababababababababababababababab02
    if tpm2 unseal -c s.ctx -p pcr:sha256:12 2> /dev/null; then echo unsealed to another PCR; exit 1; fi
    tpm2 nvdefine -Q -s 8 -a 'ownerread|ownerwrite|authread|authwrite' 0x1800001
    echo -n 12345678 | tpm2 nvwrite -Q -i- 0x1800001
    test $(tpm2 nvread 0x1800001) = 12345678
    tpm2 nvundefine -Q 0x1800001
    tpm2 evictcontrol -Q -C o -c parent.ctx 0x81000001
    tpm2 readpublic -Q -c 0x81000001
    test -z \"$(tpm2 getcap handles-transient)\"
    tpm2 pcrread sha256:0,10,12
    echo all done";

/// What each of these is refused with; tpm2-tools spell the code out.
const REFUSED: [(&str, &str); 13] = [
    ("tpm2 clear", "0xB0143"),
    ("tpm2 pcrreset 16", "0xB0143"),
    ("tpm2 pcrreset 23", "0xB0143"),
    (
        "tpm2 pcrextend 10:sha256=ababababababababababababababababababababababababababababababab01",
        "0xB0907",
    ),
    (
        "tpm2 pcrextend 0:sha256=ababababababababababababababababababababababababababababababab01",
        "0xB0907",
    ),
    ("tpm2 changeauth -c o new", "0xB0143"),
    ("tpm2 changeauth -c e new", "0xB0143"),
    ("tpm2 shutdown", "0xB0143"),
    ("tpm2 startup -c", "0xB0143"),
    ("tpm2 dictionarylockout -s -n 5 -t 5 -l 5", "0xB0143"),
    ("tpm2 hierarchycontrol -C p shEnable clear", "0xB0143"),
    ("tpm2 nvdefine -s 8 0x1000001", "0xB0146"),
    (
        "tpm2 createprimary -C e -G ecc:ecdsa-sha256 -c x.ctx -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign'",
        "0xB0085",
    ),
];

fn tools(world: &World, rt: &Runtime) -> Result<()> {
    with_tools(world, rt, |bundle| {
        works(rt, bundle)?;
        for (command, code) in REFUSED {
            let output = inside(rt, bundle, command)?;
            ensure!(!output.status.success(), "{command}: {output}");
            let said = output.stderr.to_ascii_lowercase();
            ensure!(
                said.contains(&code.to_ascii_lowercase()),
                "{command}, not {code}: {output}"
            );
        }
        // any user of the container's
        let exec = rt.cmd("exec").args(["--user", "1000:1000", &bundle.id]);
        exec.args(["/bin/tpm2", "getrandom", "--hex", "8"]).ok()?;
        shows(world, rt, bundle)
    })
}

fn works(rt: &Runtime, bundle: &Bundle) -> Result<()> {
    let output = inside(rt, bundle, WORKLOAD)?;
    ensure!(output.status.success(), "{output}");
    output.says("all done")?;
    let first = |key: &str| format!("tr '\\0' '\\n' < /proc/1/environ | grep ^{key}=");
    for key in ["TPM2TOOLS_TCTI", "TPM2OPENSSL_TCTI", "TPM2_PKCS11_TCTI"] {
        let output = inside(rt, bundle, &first(key))?;
        output.says("swtpm:path=/run/attestrun/tpm.sock")?;
    }
    Ok(())
}

/// Log, list and certificate are there, for everybody to read and for nobody to change.
fn shows(world: &World, rt: &Runtime, bundle: &Bundle) -> Result<()> {
    let place = Path::new("/proc")
        .join(rt.state(bundle)?["pid"].to_string())
        .join("root/run/attestrun");
    let log = fs::read(place.join("event.log"))?;
    let list: serde_json::Value = serde_json::from_slice(&fs::read(place.join("list"))?)?;
    ensure!(
        list["predicateType"]
            .as_str()
            .is_some_and(|t| t.contains("signature-list")),
        "{list}"
    );
    ensure!(
        !fs::read(place.join("list.signature"))?.is_empty(),
        "no signature"
    );
    let certificate = world.work.join("certificate.der");
    fs::copy(place.join("certificate.der"), &certificate)?;
    cmd!(
        "openssl",
        "x509",
        "-inform",
        "DER",
        "-noout",
        "-subject",
        "-in",
        &certificate
    )
    .ok()?;
    let exec = rt
        .cmd("exec")
        .args([bundle.id.as_str(), "/bin/echo", "more"]);
    exec.ok()?;
    let later = fs::read(place.join("event.log"))?;
    ensure!(
        later.len() > log.len() && later.starts_with(&log),
        "the log did not grow"
    );
    for script in [
        "touch /run/attestrun/x",
        "rm -f /run/attestrun/tpm.sock",
        "echo x >> /run/attestrun/event.log",
        "chmod 777 /run/attestrun/event.log",
    ] {
        let output = inside(rt, bundle, script)?;
        ensure!(!output.status.success(), "{script}: {output}");
    }
    let state = rt.state(bundle)?;
    let said = &state["annotations"]["dev.attestrun.vtpm"];
    ensure!(said == "/run/attestrun/tpm.sock", "{said}");
    Ok(())
}

fn tools_in_a_user_namespace(world: &World, rt: &Runtime) -> Result<()> {
    let image = image(world)?;
    world
        .podman()?
        .args(["load", "--quiet", "--input"])
        .arg(&image.archive)
        .ok()?;
    let rule = publisher::rule("tpm", IMAGE, Path::new(TRUST));
    let name = format!("tpm-userns-{}", rt.name.replace('+', "-"));
    let lives = || -> Result<()> {
        let run = world.podman_run(rt, "run")?.args([
            "-d",
            "--name",
            &name,
            "--mount=type=tmpfs,destination=/tmp,notmpcopyup",
        ]);
        let run = run.args([
            "--uidmap=0:100000:65536",
            "--gidmap=0:200000:65536",
            &image.name,
        ]);
        let run = run.args(["/bin/sleep", "1000"]);
        world.note(run.ok()?.stdout.trim());
        let script = format!("set -e; cd /tmp; {WORKLOAD}");
        let exec = || Ok::<_, anyhow::Error>(podman::on(world, rt, "exec")?.arg(&name));
        exec()?
            .args(["/bin/sh", "-c", &script])
            .ok()?
            .says("all done")?;
        let owners = [
            "stat",
            "-c",
            "%u:%g",
            "/run/attestrun",
            "/run/attestrun/tpm.sock",
        ];
        let owners = exec()?.args(owners).ok()?.stdout;
        ensure!(owners == "0:0\n0:0\n", "{owners}");
        // the container's root finds the way from the host's side, and nobody else there
        let way = fs::read_dir("/run/attestrun-inside")?
            .next()
            .context("no way")??;
        let found = way.metadata()?;
        ensure!(
            (found.uid(), found.mode() & 0o777) == (100_000, 0o700),
            "{found:?}"
        );
        podman::on(world, rt, "rm")?
            .args(["-f", "-t", "0", &name])
            .ok()?;
        Ok(())
    };
    restoring(POLICY, || {
        fs::write(POLICY, format!("{}{rule}", policy("enforce")))?;
        with_shared_mounts(lives)
    })
}

/// The socket of a running container, as one of its processes would open it.
fn socket(rt: &Runtime, bundle: &Bundle) -> Result<PathBuf> {
    let root = Path::new("/proc")
        .join(rt.state(bundle)?["pid"].to_string())
        .join("root");
    Ok(root.join("run/attestrun/tpm.sock"))
}

const RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 8];

fn ask(stream: &mut UnixStream, command: &[u8]) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(patient(Duration::from_secs(10))))?;
    stream.write_all(command)?;
    let mut header = [0; 10];
    stream.read_exact(&mut header)?;
    let size = u32::from_be_bytes(header[2..6].try_into()?) as usize;
    let mut answer = header.to_vec();
    answer.resize(size.clamp(10, 4096), 0);
    stream.read_exact(&mut answer[10..])?;
    Ok(answer)
}

/// Garbage, sizes that cannot be, silence, crowds: a challenge is answered beside all of them, and a well
/// behaved client as well.
fn the_guard_works_on(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = crate::attestation::up(world, &rt, 0)?;
    let socket = socket(&rt, &bundle)?;
    let connect = || UnixStream::connect(&socket).context("cannot connect");
    let well = || -> Result<()> {
        let answer = ask(&mut connect()?, &RANDOM)?;
        ensure!(answer.len() == 20 && answer[6..10] == [0; 4], "{answer:x?}");
        Ok(())
    };
    well()?;
    // what no command can be is answered as such, and the connection ends
    for size in [0u32, 9, 4097, u32::MAX] {
        let mut stream = connect()?;
        let mut command = RANDOM.to_vec();
        command[2..6].copy_from_slice(&size.to_be_bytes());
        let answer = ask(&mut stream, &command)?;
        ensure!(answer[6..10] == [0, 0xB, 1, 0x42], "{size}: {answer:x?}");
        ensure!(ends(&mut stream)?, "{size}: it goes on");
    }
    let mut noise = 0x2545_F491_4F6C_DD1Du64;
    for _ in 0..200 {
        let mut bytes = Vec::new();
        for _ in 0..40 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            bytes.extend(noise.to_be_bytes());
        }
        connect()?.write_all(&bytes)?; // and gone, whatever is answered
    }
    well()?;
    // one that says half a command is cut off; many that say nothing make room for others
    let mut slow = connect()?;
    slow.write_all(&RANDOM[..7])?;
    let crowd: Vec<UnixStream> = (0..100).map(|_| connect()).collect::<Result<_>>()?;
    for _ in 0..20 {
        well()?;
    }
    accepted(world, &bundle.id).context("beside a crowd")?;
    let since = Instant::now();
    ensure!(ends(&mut slow)?, "half a command is waited for");
    ensure!(
        since.elapsed() < patient(Duration::from_secs(10)),
        "{:?}",
        since.elapsed()
    );
    drop(crowd);
    // one that never reads its answers
    let mut deaf = connect()?;
    deaf.set_write_timeout(Some(Duration::from_secs(5)))?;
    for _ in 0..100_000 {
        if deaf.write_all(&RANDOM).is_err() {
            break;
        }
    }
    well()?;
    accepted(world, &bundle.id).context("beside one that does not listen")?;
    // the control socket lets locality 0 be set, and nothing else be done
    let control = |command: &[u8]| -> Result<[u8; 4]> {
        let mut stream = UnixStream::connect(socket.with_extension("sock.ctrl"))?;
        stream.set_read_timeout(Some(patient(Duration::from_secs(10))))?;
        stream.write_all(command)?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    ensure!(control(&[0, 0, 0, 5, 0])? == [0; 4], "locality 0");
    for command in [[0, 0, 0, 5, 3], [0, 0, 0, 2, 0], [0, 0, 0, 3, 0], [0xFF; 5]] {
        ensure!(control(&command)? != [0; 4], "{command:?}");
    }
    accepted(world, &bundle.id)?;
    rt.down(&bundle)
}

fn ends(stream: &mut UnixStream) -> Result<bool> {
    stream.set_read_timeout(Some(patient(Duration::from_secs(15))))?;
    match stream.read(&mut [0; 64]) {
        Ok(0) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(true),
        _ => Ok(false),
    }
}

/// Where the image has no place for the mount, one is made and taken away again; where it has one, it
/// stays.
fn the_rootfs_is_as_before(world: &World, rt: &Runtime) -> Result<()> {
    let before = |rootfs: &Rootfs| {
        let places = ["run", "run/attestrun"].map(|place| rootfs.path.join(place).exists());
        Ok::<_, anyhow::Error>(places)
    };
    world.with_rootfs(&world.images()?.demo, |rootfs| {
        let was = before(rootfs)?;
        let bundle = Bundle::make(&world.work, rootfs, &["/bin/ls", "/run/attestrun"])?;
        for _ in 0..2 {
            let output = rt.run(&bundle)?;
            ensure!(output.status.success(), "{output}");
            for name in ["tpm.sock", "tpm.sock.ctrl", "event.log", "list"] {
                output.says(name)?;
            }
            ensure!(before(rootfs)? == was, "the rootfs is not as it was");
        }
        // one that was left by a killed runtime is no image of another
        fs::create_dir_all(rootfs.path.join("run/attestrun"))?;
        let output = rt.run(&bundle)?;
        ensure!(output.status.success(), "{output}");
        ensure!(before(rootfs)? == [true, true], "it was there before");
        Ok(())
    })
}

fn without_a_place_there_is_none(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let env = ["/bin/sh", "-c", "env; ls /run/attestrun/tpm.sock"];
    let without = |bundle: &Bundle, why: &str| -> Result<()> {
        let mut waiting = bundle.again();
        waiting.args(&["/bin/sleep", "1000"])?;
        rt.up(&waiting)?;
        let said = rt.state(&waiting)?["annotations"]["dev.attestrun.vtpm"].to_string();
        accepted(world, &waiting.id)?;
        rt.down(&waiting)?;
        ensure!(said.contains(why), "{said}");
        bundle.write()?;
        let output = rt.run(bundle)?;
        output.says_not("TCTI")?.says("No such file")?;
        Ok(())
    };
    world.note(&world.rootfs(0)?.id);
    let bundle = Bundle::make(&world.work, &world.rootfs(0)?, &env)?;
    restoring(CONFIG, || {
        let text = fs::read_to_string(CONFIG)?;
        let off = text.replace("in_containers = true", "in_containers = false");
        ensure!(off != text, "the configuration has no vtpm.in_containers");
        fs::write(CONFIG, off)?;
        without(&bundle, "vtpm.in_containers")
    })?;
    // a caller's variable is the caller's
    let mut named = bundle.again();
    named.set(
        "/process/env",
        json!(["PATH=/bin", "TPM2TOOLS_TCTI=device:/dev/mine"]),
    )?;
    let output = rt.run(&named)?;
    output
        .says("TPM2TOOLS_TCTI=device:/dev/mine")?
        .says("TPM2OPENSSL_TCTI=swtpm")?;
    // a caller's word, in both spellings
    let mut unwanted = bundle.again();
    unwanted.config["annotations"] = json!({ "dev.attestrun.vtpm": "none" });
    unwanted.write()?;
    without(&unwanted, "does not want it")?;
    let mut wanted = bundle.again();
    wanted.set("/linux/resources/vtpms", json!([{ "vtpmVersion": "2" }]))?;
    rt.run(&wanted)?
        .says("/run/attestrun/tpm.sock")?
        .says_not("No such file")?;
    wanted.set("/linux/resources/vtpms", json!([{ "statePath": "/srv" }]))?;
    rt.run(&wanted)?
        .says("statePath: the host knows its place")?;
    // an engine's read-only tmpfs leaves no place
    let mut closed = bundle.again();
    let mounts = closed.config["mounts"].as_array_mut().context("mounts")?;
    mounts.push(
        json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro"] }),
    );
    closed.write()?;
    without(&closed, "a mount of its own")?;
    let mut demanded = closed.again();
    demanded.set("/linux/resources/vtpms", json!([{}]))?;
    rt.run(&demanded)?
        .says("is to have its TPM at /run/attestrun, and cannot")?;
    // and a writable one has it
    let mut open = bundle.again();
    let mounts = open.config["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs" }));
    open.write()?;
    let output = rt.run(&open)?;
    output
        .says("/run/attestrun/tpm.sock")?
        .says_not("No such file")?;
    Ok(())
}

/// What one more container takes: memory that its guard and its swtpm share with nobody (their programs'
/// pages are shared by all).
fn its_share_of_memory(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = crate::attestation::up(world, &rt, 0)?;
    let mut stream = UnixStream::connect(socket(&rt, &bundle)?)?;
    for _ in 0..100 {
        ask(&mut stream, &RANDOM)?;
    }
    accepted(world, &bundle.id)?;
    let (mut own, mut seen) = (0, Vec::new());
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let line = line.replace('\0', " ");
        let guard = line.starts_with("attestrun guard");
        let swtpm = line.contains("swtpm socket") && line.contains("--fd");
        if !(guard || swtpm) {
            continue;
        }
        let rollup = fs::read_to_string(entry.path().join("smaps_rollup"))?;
        let field = |name: &str| -> Result<u64> {
            let line = rollup
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .context("a field")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        own += field("Private_Dirty:")?;
        seen.push(format!(
            "{}: {} kB of its own, PSS {} kB",
            line.trim(),
            field("Private_Dirty:")?,
            field("Pss:")?
        ));
    }
    ensure!(seen.len() == 2, "{seen:?}");
    println!("    {}", seen.join("\n    "));
    ensure!(own <= 4 * 1024, "{own} kB: {seen:?}");
    rt.down(&bundle)
}
