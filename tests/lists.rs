//! Signature lists on a host: what may be one, that none goes back, both envelopes with openssl alone, and
//! what attestctl makes of them for others.

pub mod by_hand; // the man pages' recipes
mod cosign; // real cosign signs lists
mod kernel; // the kernel's keyrings
pub mod large; // a million files
mod wrong; // each list that is refused, and why

use crate::{
    Module, Test,
    admission::{demo_bundle, ours, refusal, restoring, runs},
    cmd,
    host::{POLICY, TRUST, policy},
    image::{Image, Plan, UNLISTED},
    publisher::{LIST, Publisher, SERIALS, STORE, TENANT, rule},
    runtime::Bundle,
    world::World,
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

pub const MODULE: Module = Module {
    name: "lists",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        crate::registry::start(world)
    },
    tests: &[
        Test::Once(
            "each_wrong_list_is_refused",
            wrong::each_wrong_list_is_refused,
        ),
        Test::Once(
            "each_wrong_certificate_is_refused",
            wrong::each_wrong_certificate_is_refused,
        ),
        Test::Once(
            "revocation_lists_are_current_and_complete",
            wrong::revocation_lists_are_current_and_complete,
        ),
        Test::Once("no_list_goes_back", no_list_goes_back),
        Test::Once(
            "killed_at_any_moment_none_goes_back",
            killed_at_any_moment_none_goes_back,
        ),
        Test::Once(
            "each_step_by_openssl_alone",
            by_hand::each_step_by_openssl_alone,
        ),
        Test::Once(
            "a_bundle_made_with_openssl_is_accepted",
            a_bundle_made_with_openssl_is_accepted,
        ),
        Test::Once(
            "a_list_may_come_as_an_attestation",
            a_list_may_come_as_an_attestation,
        ),
        Test::Once("an_attestation_of_cosign_2_is_a_list", |world| {
            cosign::an_attestation_of_cosign_is_a_list(world, "trixie")
        }),
        Test::Once("an_attestation_of_cosign_3_is_a_list", |world| {
            cosign::an_attestation_of_cosign_is_a_list(world, "sid")
        }),
        Test::Once("lists_follow_their_schema", lists_follow_their_schema),
        Test::Once(
            "other_tools_read_and_write_lists",
            other_tools_read_and_write_lists,
        ),
        Test::Once(
            "a_million_files_are_judged_and_kept",
            large::a_million_files_are_judged_and_kept,
        ),
        Test::Once("state_names_the_owner", state_names_the_owner),
        Test::Once(
            "the_kernel_keeps_the_owners_certificate",
            kernel::the_kernel_keeps_the_owners_certificate,
        ),
    ],
};

/// A list of all of the demo image's programs, signed and imported.
fn list_of_serial(owner: &Publisher, image: &Image, serial: u64) -> Result<()> {
    let list = owner.list(image, serial)?;
    owner.import(&list, &owner.sign_list(&list)?)
}

fn no_list_goes_back(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let only = |serial: u64| -> Result<()> {
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        list_of_serial(owner, demo, serial)
    };
    restoring(STORE, || {
        only(9)?;
        runs(&rt, &bundle)?;
        only(8)?;
        refusal(&rt.run(&bundle)?, "this host has seen serial 9")?;
        // whatever the image
        let other = Image::make(
            &world.work.join("images"),
            &Plan {
                name: "localhost/e2e/same-list:v1",
                text: "another image of the same list\n",
            },
        )?;
        restoring(POLICY, || {
            let more = rule("other", "localhost/e2e/same-list", Path::new(TRUST));
            fs::write(POLICY, format!("{}{more}", policy("enforce")))?;
            world.with_rootfs(&other, |rootfs| {
                let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
                owner.publish(&other, 8)?;
                refusal(&rt.run(&bundle)?, "this host has seen serial 9")?;
                owner.publish(&other, 10)?;
                runs(&rt, &bundle)
            })
        })?;
        only(9)?;
        refusal(&rt.run(&bundle)?, "this host has seen serial 10")?;
        only(11)?;
        runs(&rt, &bundle)?;
        lost_memory(world, &bundle)
    })
}

/// A record that is gone or spoilt is no first time: nothing starts, and nothing makes a new one.
fn lost_memory(world: &World, bundle: &Bundle) -> Result<()> {
    let rt = ours(world)?;
    let good = fs::read(SERIALS)?;
    let failed = |what: &str| -> Result<()> {
        let output = rt.run(bundle)?;
        ensure!(!output.status.success(), "{what}: {output}");
        output.says("serials.json")?.says_not("refused")?;
        Ok(())
    };
    fs::write(SERIALS, &good[..good.len() / 2])?;
    failed("cut off")?;
    fs::write(SERIALS, "")?;
    failed("empty")?;
    fs::remove_file(SERIALS)?;
    failed("gone")?;
    let setup = cmd!(world.program("attestrun")?, "setup").fails()?;
    setup.says("serials.json")?.says("backup")?;
    ensure!(!Path::new(SERIALS).exists(), "a new record: {setup}");
    fs::write(SERIALS, &good)?;
    runs(&rt, bundle)
}

/// Serials rise under a `create` that is killed at any moment: the record is whole each time, and never
/// lower than before.
fn killed_at_any_moment_none_goes_back(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let seen = || -> Result<u64> {
        let record: Value = serde_json::from_slice(&fs::read(SERIALS)?)?;
        Ok(record["lists"][TENANT][LIST]["serial"]
            .as_u64()
            .unwrap_or(0))
    };
    restoring(STORE, || {
        let mut last = seen()?;
        let (mut rose, mut serial) = (0, last + 100);
        for delay in (0..16).map(|step| Duration::from_millis(5 + 9 * step)) {
            serial += 1;
            list_of_serial(owner, demo, serial)?;
            let mut create = rt.create(&bundle).start()?;
            std::thread::sleep(delay);
            if create.is_running()? {
                create.signal(Signal::SIGKILL)?;
            }
            create.finish(Duration::from_secs(20))?;
            rt.cmd("delete").arg("--force").arg(&bundle.id).ok()?;
            let now = seen().with_context(|| format!("killed after {delay:?}"))?;
            ensure!(
                now == last || now == serial,
                "{last}, then {now} under {serial}"
            );
            rose += u32::from(now > last);
            last = now;
        }
        runs(&rt, &bundle)?;
        ensure!(
            seen()? == serial && rose > 0,
            "rose {rose} times, to {}",
            seen()?
        );
        Ok(())
    })
}

/// The recipe of attestctl-list(1): a DSSE envelope by openssl and the shell alone.
fn bundle_with_openssl(owner: &Publisher, list: &Path) -> Result<PathBuf> {
    let bundle = list.with_extension("bundle.json");
    let script = r#"
        set -e
        type=application/vnd.in-toto+json
        sig=$({ printf 'DSSEv1 %d %s %d ' ${#type} $type $(wc -c <"$1"); cat "$1"; } |
            openssl dgst -sha256 -sign "$3" | base64 -w0)
        cert=$(openssl x509 -in "$2" -outform DER | base64 -w0)
        printf '{"mediaType":"application/vnd.dev.sigstore.bundle+json;version=0.2","verificationMaterial":{"x509CertificateChain":{"certificates":[{"rawBytes":"%s"}]}},"dsseEnvelope":{"payload":"%s","payloadType":"%s","signatures":[{"sig":"%s"}]}}\n' \
            "$cert" "$(base64 -w0 <"$1")" $type "$sig" >"$4"
    "#;
    cmd!("bash", "-c", script, "bundle", list)
        .arg(owner.at("user.pem"))
        .arg(owner.at("user.key"))
        .arg(&bundle)
        .ok()?;
    Ok(bundle)
}

fn a_bundle_made_with_openssl_is_accepted(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
    restoring(STORE, || {
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        let list = owner.list(demo, 1)?; // the challenger remembers serials too
        let signature = bundle_with_openssl(owner, &list)?;
        let verify = owner.ctl(&[
            "list",
            "verify",
            "--unchecked-revocation",
            "--tenant",
            TENANT,
        ]);
        verify
            .args(["--name", LIST, "--digest", &demo.manifest, "--sig"])
            .arg(&signature)
            .arg("--ca")
            .arg(owner.at("ca/ca.pem"))
            .arg(&list)
            .ok()?;
        owner.import(&list, &signature)?;
        rt.up(&bundle)?;
        // the challenger gets the same envelope, and the same answer
        let asked = world.challenge(
            &bundle.id,
            &world.expectations(&["software-root", "no-ima", "tier-fanotify"])?,
        );
        rt.down(&bundle)?;
        let asked = asked?;
        ensure!(asked.status.success(), "{asked}");
        let evidence = fs::read_to_string(world.work.join("evidence.json"))?;
        ensure!(
            evidence.contains("vnd.dev.sigstore.bundle"),
            "another envelope"
        );
        // the same by attestctl
        let ours_too = owner.at("dsse.json");
        owner
            .ctl(&["list", "sign", "--dsse", "--cert"])
            .arg(owner.at("user.pem"))
            .arg("--key")
            .arg(owner.at("user.key"))
            .arg("--output")
            .arg(&ours_too)
            .arg(&list)
            .ok()?;
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        owner.import(&list, &ours_too)?;
        let once = demo_bundle(world, &["/bin/true"])?;
        runs(&rt, &once)?;
        // over another list
        let other = owner.list(demo, 5)?;
        let import = owner.ctl(&["import", "--store", STORE, "--list"]);
        import.arg(&other).arg("--sig").arg(&ours_too).exits(1)?;
        Ok(())
    })
}

fn a_list_may_come_as_an_attestation(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let stranger = Publisher::make(
        &world.program("attestctl")?,
        world.work.join("stranger-dsse"),
    )?;
    restoring(STORE, || {
        let list = owner.list(demo, 6)?;
        let fresh = || {
            cmd!("rm", "-rf", STORE).ok()?;
            owner.sign(demo)
        };
        fresh()?;
        let import = |file: &Path| owner.ctl(&["import", "--store", STORE]).arg(file).ok();
        import(&bundle_with_openssl(&stranger, &list)?)?.says("1 signatures")?;
        refusal(&rt.run(&bundle)?, "no chain leads")?;
        import(&bundle_with_openssl(owner, &list)?)?;
        runs(&rt, &bundle)?;
        // as cosign 2 keeps attestations: the certificate in an annotation
        fresh()?;
        let signed: Value = serde_json::from_slice(&fs::read(list.with_extension("bundle.json"))?)?;
        cosign_attestation(owner, demo, &signed["dsseEnvelope"])?;
        runs(&rt, &bundle)
    })
}

/// An OCI layout with one attestation, as `cosign save` writes it (sigstore/cosign, SIGNATURE_SPEC.md);
/// imported.
fn cosign_attestation(owner: &Publisher, demo: &Image, envelope: &Value) -> Result<()> {
    let layout = owner.at("attested");
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    let put = |content: &[u8], media_type: &str| -> Result<Value> {
        let digest = crate::image::digest(content);
        fs::write(layout.join("blobs").join(digest.replace(':', "/")), content)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
    };
    let mut layer = put(
        envelope.to_string().as_bytes(),
        "application/vnd.dsse.envelope.v1+json",
    )?;
    layer["annotations"] = json!({
        "dev.cosignproject.cosign/signature": "",
        "dev.sigstore.cosign/certificate": fs::read_to_string(owner.at("user.pem"))?,
        "dev.sigstore.cosign/chain": fs::read_to_string(owner.at("ca/ca.pem"))?,
    });
    let config = put(b"{}", "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let mut entry = put(
        manifest.to_string().as_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    )?;
    entry["annotations"] = json!({"kind": "dev.cosignproject.cosign/atts"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(layout.join("index.json"), index.to_string())?;
    let imported = owner.ctl(&["import", "--store", STORE]).arg(&layout).ok()?;
    imported.says("1 signatures")?;
    ensure!(
        fs::read_to_string(layout.join("index.json"))?.contains("atts"),
        "{}",
        demo.name
    );
    Ok(())
}

fn lists_follow_their_schema(world: &World) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let demo = &world.images()?.demo;
    let schema = Path::new(crate::namespace::SOURCES).join("packaging/signature-list.schema.json");
    let script = "import json,sys,jsonschema\n\
                  s=json.load(open(sys.argv[1]))\n\
                  jsonschema.Draft202012Validator.check_schema(s)\n\
                  jsonschema.Draft202012Validator(s).validate(json.load(open(sys.argv[2])))";
    let judged = |list: &Path| cmd!("/usr/bin/python3", "-c", script, &schema, list);
    let list = owner.list(demo, 7)?;
    judged(&list).ok()?;
    // exec rules too
    let all = owner.at("all.json");
    create(owner, demo, &["--all"], &all)?;
    ensure!(
        fs::read_to_string(&all)?.contains("\"exec\""),
        "--all lists no data"
    );
    judged(&all).ok()?;
    // what the schema refuses, attestctl refuses, and the other way about
    type Change = fn(&mut Value);
    let changes: [Change; 8] = [
        |s| s["predicate"]["serial"] = json!(0),
        |s| s["predicate"]["files"] = json!({}),
        |s| s["predicate"]["files"]["bin/x"] = json!(["0".repeat(64)]),
        |s| s["predicate"]["files"]["/bin/x y"] = json!(["0".repeat(64)]),
        |s| s["predicate"]["files"]["/bin/x"] = json!(["A".repeat(64)]),
        |s| s["predicate"]["excludes"] = json!(["/tmp"]),
        |s| s["predicate"]["more"] = json!(1),
        |s| s["subject"] = json!([]),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let bad = owner.changed(&list, "bad.json", change)?;
        judged(&bad)
            .fails()
            .with_context(|| format!("change {number}"))?;
        owner.ctl(&["list", "show"]).arg(&bad).exits(1)?;
    }
    Ok(())
}

fn create(owner: &Publisher, image: &Image, more: &[&str], output: &Path) -> Result<()> {
    owner
        .ctl(&[
            "list", "create", "--name", LIST, "--serial", "8", "--days", "30",
        ])
        .args(more)
        .arg("--output")
        .arg(output)
        .arg(&image.layout)
        .ok()?;
    Ok(())
}

fn other_tools_read_and_write_lists(world: &World) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let demo = &world.images()?.demo;
    let (whole, rootfs) = (owner.at("whole.json"), world.rootfs(0)?.path);
    create(owner, demo, &[], &whole)?;
    // a root file system on disk makes the same list as its image's layers
    let of_disk = owner.at("disk.json");
    owner
        .ctl(&[
            "list", "create", "--name", LIST, "--serial", "8", "--days", "30",
        ])
        .args(["--about", &demo.manifest, "--output"])
        .arg(&of_disk)
        .arg(&rootfs)
        .ok()?;
    let same = owner
        .ctl(&["list", "diff"])
        .arg(&whole)
        .arg(&of_disk)
        .ok()?;
    same.says("0 added (+), 0 removed (-), 0 with other content (!), 0 with another right")?;
    // sha256sum checks what was exported, and makes what is imported
    let sums = owner.at("sums");
    let export = |format: &str, to: &Path| {
        let export = owner.ctl(&["list", "export", format, "--output"]);
        export.arg(to).arg(&whole).ok()
    };
    export("--sha256sum", &sums)?;
    cmd!("sha256sum", "--quiet", "-c", &sums)
        .cwd(&rootfs)
        .ok()?;
    let import = |format: &str, from: &Path| {
        let import = owner.ctl(&[
            "list", "import", "--name", LIST, "--serial", "9", "--days", "30",
        ]);
        let imported = owner.at("imported.json");
        import
            .arg(format)
            .arg(from)
            .arg("--image")
            .arg(&demo.layout)
            .arg("--output")
            .arg(imported)
    };
    let files = || -> Result<Value> {
        let list: Value = serde_json::from_slice(&fs::read(owner.at("imported.json"))?)?;
        Ok(list["predicate"]["files"].clone())
    };
    let original: Value = serde_json::from_slice(&fs::read(&whole)?)?;
    for (format, to) in [
        ("--sha256sum", &sums),
        ("--keylime", &owner.at("policy.json")),
    ] {
        export(format, to)?;
        import(format, to).ok()?;
        ensure!(
            files()? == original["predicate"]["files"],
            "{format} and back"
        );
    }
    let changed = fs::read_to_string(&sums)?.replacen(|c: char| c.is_ascii_hexdigit(), "0", 8);
    fs::write(&sums, changed)?;
    import("--sha256sum", &sums)
        .exits(1)?
        .says("in the image")?;
    // mtree is read by libarchive
    let mtree = owner.at("list.mtree");
    export("--mtree", &mtree)?;
    let text = fs::read_to_string(&mtree)?;
    ensure!(
        text.contains("./bin/busybox type=file sha256digest="),
        "{text}"
    );
    // and what a new version changes
    let narrow = owner.list(demo, 12)?;
    let diff = owner.ctl(&["list", "diff"]).arg(&whole).arg(&narrow).ok()?;
    diff.says(&format!("- {UNLISTED}"))?
        .says("serial: 8 -> 12")?;
    Ok(())
}

fn state_names_the_owner(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let mut bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
    // what a caller writes there is not what was proved
    bundle.set(
        "/annotations",
        json!({"dev.attestrun.tenant": "spiffe://e2e.example/tenant/forged", "mine": "stays"}),
    )?;
    rt.up(&bundle)?;
    let state = rt.state(&bundle);
    rt.down(&bundle)?;
    let annotations = state?["annotations"].clone();
    for (key, value) in [
        ("dev.attestrun.subject", "CN=e2e owner"),
        ("dev.attestrun.tenant", TENANT),
        ("dev.attestrun.list-name", LIST),
        ("dev.attestrun.list-serial", "1"),
        ("mine", "stays"),
    ] {
        ensure!(annotations[key] == value, "{key}: {annotations}");
    }
    let list = annotations["dev.attestrun.list"]
        .as_str()
        .context("no list")?;
    let statement = Path::new(STORE).join("blobs").join(list.replace(':', "/"));
    ensure!(
        fs::read_to_string(statement)?.contains(LIST),
        "{annotations}"
    );
    Ok(())
}
