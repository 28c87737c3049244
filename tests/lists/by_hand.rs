//! The recipes of the man pages: CA, certificate, revocation list, signature list and both envelopes by
//! openssl and the shell alone, as they are printed there.

use super::*;
use crate::namespace::SOURCES;

/// The commands of one section of a page, block by block, as a reader sees them.
pub fn recipe(page: &str, section: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(Path::new(SOURCES).join("packaging/man").join(page))?;
    let (_, rest) = text
        .split_once(&format!(".SH {section}\n"))
        .context("section")?;
    let section = rest.split("\n.SH ").next().unwrap_or_default();
    let blocks = section.split(".nf\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("\n.fi").next());
    // troff: \- is a hyphen, \e and \\ are a backslash
    let plain = |block: &str| {
        block
            .replace("\\-", "-")
            .replace("\\e", "\\")
            .replace("\\\\", "\\")
    };
    Ok(blocks.map(plain).collect())
}

fn done(dir: &Path, commands: &str) -> Result<()> {
    cmd!("bash", "-euc", &format!("cd {}\n{commands}", dir.display())).ok()?;
    Ok(())
}

pub fn each_step_by_openssl_alone(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let dir = world.work.join("by-hand");
    fs::create_dir_all(&dir)?;
    let [authority, revoke] = &recipe("attestctl-ca.1", "WITH OPENSSL ALONE")?[..] else {
        anyhow::bail!("attestctl-ca(1) has other blocks")
    };
    let lists = recipe("attestctl-list.1", "WITH OPENSSL ALONE")?;
    let [list, cms, dsse, dsse_verified] = &lists[..] else {
        anyhow::bail!("attestctl-list(1) has other blocks: {}", lists.len())
    };
    fs::write(dir.join("image.digest"), &demo.manifest)?;
    let rootfs = world.rootfs(0)?;
    std::os::unix::fs::symlink(&rootfs.path, dir.join("rootfs"))?;
    done(&dir, authority)?;
    done(&dir, list)?;
    done(&dir, cms)?;
    done(&dir, &format!("{dsse}\n{dsse_verified}"))?;

    let trust = Path::new(TRUST).join("by-hand");
    fs::create_dir_all(&trust)?;
    let current = |name: &str| fs::copy(dir.join(name), trust.join(name));
    current("ca.pem")?;
    let rule = policy("enforce")
        .replace(
            &format!("{TRUST}/ca/ca.pem"),
            &trust.join("ca.pem").display().to_string(),
        )
        .replace(TENANT, "spiffe://example.org/tenant/app")
        .replace(&format!("list = \"{LIST}\""), "list = \"app\"")
        .replace(
            "revocation = \"unchecked\"",
            &format!(
                "revocation = \"crl\"\ncrls = [\"{}\"]",
                trust.join("crl.pem").display()
            ),
        );
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let tried = restoring(POLICY, || {
        fs::write(POLICY, rule)?;
        restoring(STORE, || {
            for signature in ["list.p7s", "list.bundle.json"] {
                current("crl.pem")?;
                cmd!("rm", "-rf", STORE).ok()?;
                owner.sign(demo)?;
                owner.import(&dir.join("list.json"), &dir.join(signature))?;
                runs(&rt, &bundle).context(signature)?;
            }
            done(&dir, revoke)?;
            current("crl.pem")?;
            refusal(&rt.run(&bundle)?, "revoked")
        })
    });
    fs::remove_dir_all(&trust)?;
    tried
}
