//! Real cosign signs a list: an attestation with the owner's certificate, fetched with its image.

use super::*;
use crate::{
    publisher::LEAF,
    registry::{self, ADDRESS},
    signatures::real_cosign,
    spawn::Cmd,
};

pub fn an_attestation_of_cosign_is_a_list(world: &World, suite: &str) -> Result<()> {
    let cosign = real_cosign(suite)?;
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let dir = world.work.join(format!("attest-{suite}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let run = |args: &[&str]| {
        let env = Cmd::new("env").arg("COSIGN_PASSWORD=").arg(&cosign);
        env.args(args).cwd(&dir)
    };
    // a key that was born in cosign, and the owner's certificate for it
    run(&["generate-key-pair"]).ok()?;
    let extensions = dir.join("ext");
    let text = format!(
        "{LEAF}\nsubjectAltName = URI:{TENANT}\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
    );
    fs::write(&extensions, text)?;
    cmd!(
        "openssl",
        "x509",
        "-new",
        "-days",
        "30",
        "-subj",
        "/CN=e2e cosign",
        "-force_pubkey"
    )
    .arg(dir.join("cosign.pub"))
    .arg("-CA")
    .arg(owner.at("ca/ca.pem"))
    .arg("-CAkey")
    .arg(owner.at("ca/ca.key"))
    .arg("-extfile")
    .arg(&extensions)
    .arg("-out")
    .arg(dir.join("cosign.pem"))
    .ok()?;
    let repository = format!("attest-{suite}");
    registry::PLAIN.push_blobs(&demo.layout, &repository)?;
    registry::PLAIN.push_manifest(&repository, "v1", &fs::read(demo.blob(&demo.manifest))?)?;
    let image = format!("{ADDRESS}/{repository}@{}", demo.manifest);
    let list: Value = serde_json::from_slice(&fs::read(owner.list(demo, 3)?)?)?;
    fs::write(dir.join("predicate.json"), list["predicate"].to_string())?;
    let kind = list["predicateType"].as_str().context("predicateType")?;
    let attest = run(&[
        "attest",
        "--key",
        "cosign.key",
        "-y",
        "--allow-http-registry",
    ])
    .args([
        "--type",
        kind,
        "--predicate",
        "predicate.json",
        "--tlog-upload=false",
    ])
    .args(match suite {
        "sid" => &["--new-bundle-format=false", "--use-signing-config=false"][..],
        _ => &[],
    });
    let attest = attest
        .arg("--certificate")
        .arg(dir.join("cosign.pem"))
        .arg("--certificate-chain")
        .arg(owner.at("ca/ca.pem"));
    restoring(STORE, || {
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        refusal(&rt.run(&bundle)?, "no list")?;
        attest.arg(&image).ok()?;
        owner.ctl(&["fetch", "--store", STORE]).arg(&image).ok()?;
        runs(&rt, &bundle)
    })
}
