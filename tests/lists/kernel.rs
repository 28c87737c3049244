//! The kernel's own check: a keyring per container that holds the owner's certificate, gone with it.

use super::*;
use std::time::Instant;

const WHOLE: &str = "chain and signature checked";

/// Certificates: where it has the algorithm; signatures: since Linux 6.13 (crypto/ecdsa-p1363.c).
fn p256_by_this_kernel() -> Result<&'static str> {
    if !fs::read_to_string("/proc/crypto")?.contains("ecdsa") {
        return Ok("not checked: this kernel lacks");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let mut number = || numbers.next().context("release")?.context("release");
    let signatures = (number()?, number()?) >= (6, 13);
    Ok(if signatures { WHOLE } else { "chain checked;" })
}

/// What `state` says that the kernel did.
fn said(state: &Value) -> Result<String> {
    let said = state["annotations"]["dev.attestrun.kernel-keys"].as_str();
    Ok(said.with_context(|| state.to_string())?.to_owned())
}

/// Lines of /proc/keys with our keyrings of this container.
fn kept(id: &str) -> Result<Vec<String>> {
    let keys = fs::read_to_string("/proc/keys")?;
    let name = format!("attestrun:{id}:mnt:");
    let ours = keys.lines().filter(|line| line.contains(&name));
    Ok(ours.map(str::to_owned).collect())
}

fn gone(id: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !kept(id)?.is_empty() {
        ensure!(Instant::now() < end, "left: {:?}", kept(id)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

pub fn the_kernel_keeps_the_owners_certificate(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
    // P-256: kernels without that algorithm are named, and decide nothing
    rt.up(&bundle)?;
    let state = rt.state(&bundle)?;
    rt.down(&bundle)?;
    let expected = p256_by_this_kernel()?;
    ensure!(
        said(&state)?.starts_with(expected),
        "not {expected}: {state}"
    );
    evidence_says_it(world, &bundle, expected == WHOLE)?;

    let pki = rsa(world)?;
    let list = owner.list(demo, 1)?;
    let ca = Path::new(TRUST).join("ca/ca.pem");
    restoring(&ca.display().to_string(), || {
        fs::copy(pki.at("ca/ca.pem"), &ca)?;
        restoring(STORE, || {
            cmd!("rm", "-rf", STORE).ok()?;
            owner.sign(demo)?;
            owner.import(&list, &pki.sign_with_openssl(&list, "rsa.pem", "rsa.key")?)?;
            for _ in 0..3 {
                rt.up(&bundle)?;
                let state = rt.state(&bundle)?;
                let seen = kept(&bundle.id);
                let namespace = fs::read_link(format!("/proc/{}/ns/mnt", state["pid"]))?;
                rt.down(&bundle)?;
                ensure!(said(&state)? == WHOLE, "{state}");
                let namespace = namespace.display().to_string();
                let number = namespace.trim_start_matches("mnt:[").trim_end_matches(']');
                let seen = seen?;
                let name = format!("attestrun:{}:mnt:{number}: 1", bundle.id);
                ensure!(
                    seen.iter().any(|line| line.ends_with(&name)),
                    "not `{name}` in {seen:#?}"
                );
                gone(&bundle.id)?;
            }
            evidence_says_it(world, &bundle, true)?;
            // a guard that is killed takes its keyring along
            let guards = crate::deaths::new_processes("guard", || rt.up(&bundle))?;
            ensure!(!kept(&bundle.id)?.is_empty(), "no keyring");
            for guard in guards {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL)?;
            }
            rt.wait_for(&bundle, "stopped")?;
            rt.down(&bundle)?;
            gone(&bundle.id)
        })
    })
}

/// Without a waiver: accepted if the kernel has checked all of it, else refused by that check alone.
fn evidence_says_it(world: &World, bundle: &Bundle, whole: bool) -> Result<()> {
    let rt = ours(world)?;
    let expectations = world.expectations(&["software-root", "no-ima", "tier-fanotify"])?;
    let text = fs::read_to_string(&expectations)?;
    fs::write(&expectations, text.replace(",\"kernel-keys\"", ""))?;
    rt.up(bundle)?;
    let verdict = world.challenge(&bundle.id, &expectations);
    rt.down(bundle)?;
    let verdict = verdict?;
    ensure!(verdict.code() == i32::from(!whole), "{verdict}");
    let verdict: Value = serde_json::from_str(&verdict.stdout)?;
    let findings = verdict["findings"].as_array().context("findings")?;
    let refused = findings.iter().filter(|f| f["outcome"] == "refused");
    let refused: Vec<_> = refused.filter_map(|f| f["check"].as_str()).collect();
    let expected: &[&str] = if whole { &[] } else { &["P-KEYS"] };
    ensure!(refused == expected, "{verdict:#}");
    Ok(())
}

/// A user CA and a certificate with RSA keys, by openssl.
fn rsa(world: &World) -> Result<Publisher> {
    let pki = Publisher::make(&world.program("attestctl")?, world.work.join("rsa"))?;
    let key = |name: &Path| {
        cmd!(
            "openssl",
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:3072",
            "-out"
        )
        .arg(name)
        .ok()
    };
    key(&pki.at("ca/ca.key"))?;
    cmd!(
        "openssl",
        "req",
        "-x509",
        "-new",
        "-days",
        "30",
        "-subj",
        "/CN=e2e RSA CA",
        "-key"
    )
    .arg(pki.at("ca/ca.key"))
    .args(["-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"])
    .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out"])
    .arg(pki.at("ca/ca.pem"))
    .ok()?;
    let request = pki.at("rsa.csr");
    key(&pki.at("rsa.key"))?;
    cmd!("openssl", "req", "-new", "-subj", "/CN=e2e owner", "-key")
        .arg(pki.at("rsa.key"))
        .arg("-out")
        .arg(&request)
        .ok()?;
    let extensions = pki.at("rsa.ext");
    let text = format!(
        "{}\nsubjectAltName = URI:{TENANT}\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n",
        crate::publisher::LEAF
    );
    fs::write(&extensions, text)?;
    cmd!(
        "openssl",
        "x509",
        "-req",
        "-days",
        "30",
        "-CAcreateserial",
        "-in",
        &request
    )
    .arg("-CA")
    .arg(pki.at("ca/ca.pem"))
    .arg("-CAkey")
    .arg(pki.at("ca/ca.key"))
    .arg("-extfile")
    .arg(&extensions)
    .arg("-out")
    .arg(pki.at("rsa.pem"))
    .ok()?;
    Ok(pki)
}
