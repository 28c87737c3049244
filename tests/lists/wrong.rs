//! Each list that may not count, at `create`: what is wrong with it, and the words that say so. Beside
//! each the same done right, which starts.

use super::*;
use crate::publisher::LEAF;

/// What stands in the store besides the image's signature.
type Made = Result<(PathBuf, PathBuf)>;

/// Refused with these words, with this and no other list in the store.
fn refused(world: &World, bundle: &Bundle, what: &str, words: &str, made: Made) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let (list, signature) = made.with_context(|| what.to_owned())?;
    cmd!("rm", "-rf", STORE).ok()?;
    owner.sign(&world.images()?.demo)?;
    put(owner, &world.images()?.demo, &list, &signature)?;
    let output = ours(world)?.run(bundle)?;
    refusal(&output, words).with_context(|| what.to_owned())
}

/// Into the store as it is: `attestctl import` refuses what is malformed, a thief would not.
fn put(owner: &Publisher, image: &Image, list: &Path, signature: &Path) -> Result<()> {
    let good = owner.list(image, 2)?;
    owner.import(&good, &owner.sign_list(&good)?)?;
    let store = Path::new(STORE);
    let blob = |content: &[u8]| -> Result<Value> {
        let digest = crate::image::digest(content);
        fs::write(store.join("blobs").join(digest.replace(':', "/")), content)?;
        Ok(json!({ "digest": digest, "size": content.len() }))
    };
    // the artifact of the good list, with other blobs
    let mut index: Value = serde_json::from_slice(&fs::read(store.join("index.json"))?)?;
    let entries = index["manifests"].as_array_mut().context("manifests")?;
    let entry = entries
        .iter_mut()
        .find(|entry| entry["artifactType"] == "application/vnd.attestrun.signature-list.v1")
        .context("no list in the store")?;
    let digest = entry["digest"].as_str().context("digest")?;
    let manifest = store.join("blobs").join(digest.replace(':', "/"));
    let mut manifest: Value = serde_json::from_slice(&fs::read(manifest)?)?;
    for (number, file) in [list, signature].into_iter().enumerate() {
        let made = blob(&fs::read(file)?)?;
        for field in ["digest", "size"] {
            manifest["layers"][number][field] = made[field].clone();
        }
    }
    let made = blob(manifest.to_string().as_bytes())?;
    for field in ["digest", "size"] {
        entry[field] = made[field].clone();
    }
    Ok(fs::write(store.join("index.json"), index.to_string())?)
}

pub fn each_wrong_list_is_refused(world: &World) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let list = owner.list(demo, 1)?;
    let good = owner.sign_with_openssl(&list, "user.pem", "user.key")?;
    let text = fs::read_to_string(&list)?;
    let written = |name: &str, text: String| -> Made {
        let path = owner.at(name);
        fs::write(&path, text)?;
        let signature = owner.sign_with_openssl(&path, "user.pem", "user.key")?;
        Ok((path, signature))
    };
    let member = "\"/bin/busybox\":";
    let with_path = |path: &str| {
        let more = format!("\"{path}\":[\"{}\"],{member}", "0".repeat(64));
        written("path.json", text.replacen(member, &more, 1))
    };
    let with_signature = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| -> Made {
        let path = owner.at(name);
        fs::write(&path, change(fs::read(&good)?))?;
        Ok((list.clone(), path))
    };
    let changed = |name: &str, change: fn(&mut Value)| -> Made {
        let path = owner.changed(&list, name, change)?;
        let signature = owner.sign_with_openssl(&path, "user.pem", "user.key")?;
        Ok((path, signature))
    };
    restoring(STORE, || {
        let refused = |what, words, made| refused(world, &bundle, what, words, made);
        refused(
            "another image",
            "not about this image",
            changed("image.json", |s| {
                s["subject"][0]["digest"]["sha256"] = json!("1".repeat(64));
            }),
        )?;
        refused(
            "an expired list",
            "expired",
            changed("old.json", |s| {
                s["predicate"]["issuedAt"] = json!("2020-01-01T00:00:00Z");
                s["predicate"]["expiresAt"] = json!("2020-01-02T00:00:00Z");
            }),
        )?;
        refused(
            "a list of tomorrow",
            "later than now",
            changed("tomorrow.json", |s| {
                s["predicate"]["issuedAt"] = json!("2100-01-01T00:00:00Z");
                s["predicate"]["expiresAt"] = json!("2100-01-02T00:00:00Z");
            }),
        )?;
        refused(
            "an altered list",
            "over other content",
            owner
                .changed(&list, "altered.json", |s| {
                    s["predicate"]["serial"] = json!(3)
                })
                .map(|path| (path, good.clone())),
        )?;
        refused("a path twice", "listed twice", with_path("/bin/busybox"))?;
        refused("a NUL", "NUL", with_path("/bin/x%00"))?;
        refused("a newline", "newline", with_path("/bin/x%0A"))?;
        refused("..", "..", with_path("/bin/../x"))?;
        refused("a raw newline", "malformed", with_path("/bin/x\n"))?;
        refused(
            "two signers",
            "2 signers",
            two_signers(owner, &list).map(|signature| (list.clone(), signature)),
        )?;
        refused(
            "trailing bytes",
            "DER",
            with_signature("trailing.p7s", &|der| [der, vec![0]].concat()),
        )?;
        refused(
            "a cut signature",
            "DER",
            with_signature("cut.p7s", &|der| der[..der.len() - 1].to_vec()),
        )?;
        refused(
            "unsigned attributes",
            "unsigned attributes",
            with_unsigned(owner, &good).map(|signature| (list.clone(), signature)),
        )?;
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        put(owner, demo, &list, &good)?;
        runs(&ours(world)?, &bundle)
    })
}

fn two_signers(owner: &Publisher, list: &Path) -> Result<PathBuf> {
    owner.certificate("second", LEAF, "-days 30")?;
    let signature = list.with_extension("two.p7s");
    cmd!(
        "openssl", "cms", "-sign", "-binary", "-md", "sha256", "-outform", "DER", "-in", list
    )
    .arg("-signer")
    .arg(owner.at("user.pem"))
    .arg("-inkey")
    .arg(owner.at("user.key"))
    .arg("-signer")
    .arg(owner.at("second.pem"))
    .arg("-inkey")
    .arg(owner.at("second.key"))
    .arg("-out")
    .arg(&signature)
    .ok()?;
    Ok(signature)
}

/// The signature with an unsigned attribute (a countersignature's place) at the end of its SignerInfo:
/// openssl's command line cannot add one.
fn with_unsigned(owner: &Publisher, signature: &Path) -> Result<PathBuf> {
    let script = r#"
import sys
der = open(sys.argv[1], 'rb').read()
def head(at):
    n = der[at + 1]
    if n < 0x80: return at + 2, n
    k = n & 0x7f
    return at + 2 + k, int.from_bytes(der[at + 2:at + 2 + k], 'big')
def tlv(tag, body):
    n = len(body)
    if n < 0x80: return bytes([tag, n]) + body
    size = n.to_bytes((n.bit_length() + 7) // 8, 'big')
    return bytes([tag, 0x80 | len(size)]) + size + body
def grow(at, end, more):
    # the last element of each level grows, from ContentInfo to SignerInfo
    body, n = head(at)
    assert body + n == end, (at, end)
    if more == 0:
        attribute = bytes.fromhex('300f06092a864886f70d0109073102') + b'\x05\x00'
        return tlv(der[at], der[body:end] + tlv(0xa1, attribute))
    last = body
    while True:
        b, n = head(last)
        if b + n == end: break
        last = b + n
    return tlv(der[at], der[body:last] + grow(last, end, more - 1))
# ContentInfo, [0], SignedData, SET OF SignerInfo, SignerInfo
open(sys.argv[2], 'wb').write(grow(0, len(der), 4))
"#;
    let out = owner.at("unsigned.p7s");
    cmd!("/usr/bin/python3", "-c", script, signature, &out).ok()?;
    // still the same signature to openssl
    let text = cmd!(
        "openssl", "cms", "-cmsout", "-print", "-noout", "-inform", "DER", "-in", &out
    );
    text.ok()?.says("challengePassword")?;
    Ok(out)
}

pub fn each_wrong_certificate_is_refused(world: &World) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let list = owner.list(demo, 1)?;
    let leaf = |name: &str, extensions: &str, validity: &str| -> Made {
        owner.certificate(name, extensions, validity)?;
        let (pem, key) = (format!("{name}.pem"), format!("{name}.key"));
        Ok((list.clone(), owner.sign_with_openssl(&list, &pem, &key)?))
    };
    let without = |word: &str, other: &str| LEAF.replace(word, other);
    let stranger = Publisher::make(
        &world.program("attestctl")?,
        world.work.join("stranger-pki"),
    )?;
    restoring(STORE, || {
        let refused = |what, words, made| refused(world, &bundle, what, words, made);
        refused(
            "another CA",
            "no chain leads",
            stranger
                .sign_with_openssl(&list, "user.pem", "user.key")
                .map(|signature| (list.clone(), signature)),
        )?;
        refused(
            "expired",
            "ran out",
            leaf(
                "expired",
                LEAF,
                "-startdate 20200101000000Z -enddate 20200102000000Z",
            ),
        )?;
        refused(
            "not yet valid",
            "valid only from",
            leaf(
                "early",
                LEAF,
                "-startdate 21000101000000Z -enddate 21000102000000Z",
            ),
        )?;
        refused("valid for too long", "398", leaf("long", LEAF, "-days 399"))?;
        refused(
            "another extended key usage",
            "codeSigning",
            leaf("eku", &without("codeSigning", "serverAuth"), "-days 30"),
        )?;
        refused(
            "another key usage",
            "digitalSignature",
            leaf(
                "ku",
                &without("digitalSignature", "keyAgreement"),
                "-days 30",
            ),
        )?;
        refused(
            "a CA as user",
            "CA",
            leaf("ca-leaf", &without("CA:FALSE", "CA:TRUE"), "-days 30"),
        )?;
        for (name, extension) in [("bc", "basicConstraints"), ("usage", "keyUsage")] {
            let critical = format!("{extension} = critical,");
            let plain = without(&critical, &format!("{extension} = "));
            refused(
                "an extension that is not critical",
                "as a critical extension",
                leaf(name, &plain, "-days 30"),
            )?;
        }
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        let (list, signature) = leaf("good", LEAF, "-days 30")?;
        owner.import(&list, &signature)?;
        runs(&ours(world)?, &bundle)?;
        constrained(world, &bundle, &list)
    })
}

/// A user CA whose name constraint does not permit the tenant, and one whose does.
fn constrained(world: &World, bundle: &Bundle, list: &Path) -> Result<()> {
    let place = Path::new(TRUST).join("ca/ca.pem");
    let signed = |name: &str, constraint: &str| -> Made {
        let other = constrained_ca(world, name, constraint)?;
        other.certificate("leaf", LEAF, "-days 30")?;
        fs::copy(other.at("ca/ca.pem"), &place)?;
        let signature = other.sign_with_openssl(list, "leaf.pem", "leaf.key")?;
        Ok((list.to_owned(), signature))
    };
    restoring(&place.display().to_string(), || {
        let made = signed("constrained", "permitted;URI:.other.example");
        refused(world, bundle, "name constraint", "NameConstraint", made)?;
        let made = signed("excluded", "excluded;URI:e2e.example");
        refused(world, bundle, "name constraint", "NameConstraint", made)?;
        let (list, signature) = signed("permitted", "permitted;URI:e2e.example")?;
        let owner = &world.open_for_business()?.owner;
        cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(&world.images()?.demo)?;
        owner.import(&list, &signature)?;
        runs(&ours(world)?, bundle)
    })
}

fn constrained_ca(world: &World, name: &str, constraint: &str) -> Result<Publisher> {
    let other = Publisher::make(&world.program("attestctl")?, world.work.join(name))?;
    cmd!(
        "openssl",
        "req",
        "-x509",
        "-new",
        "-days",
        "30",
        "-subj",
        "/CN=e2e constrained",
        "-key"
    )
    .arg(other.at("ca/ca.key"))
    .args(["-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"])
    .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
    .args(["-addext", &format!("nameConstraints=critical,{constraint}")])
    .arg("-out")
    .arg(other.at("ca/ca.pem"))
    .ok()?;
    Ok(other)
}

pub fn revocation_lists_are_current_and_complete(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let place = Path::new(TRUST).join("ca/crl.pem");
    let checked = policy("enforce").replace(
        "revocation = \"unchecked\"",
        &format!("revocation = \"crl\"\ncrls = [\"{}\"]", place.display()),
    );
    // a CA of its own: what is revoked stays revoked
    let pki = Publisher::make(&world.program("attestctl")?, world.work.join("revoking"))?;
    let demo = &world.images()?.demo;
    let list = owner.list(demo, 1)?;
    let ca = Path::new(TRUST).join("ca/ca.pem");
    restoring(&ca.display().to_string(), || {
        fs::copy(pki.at("ca/ca.pem"), &ca)?;
        restoring(STORE, || {
            cmd!("rm", "-rf", STORE).ok()?;
            owner.sign(demo)?;
            owner.import(
                &list,
                &pki.sign_with_openssl(&list, "user.pem", "user.key")?,
            )?;
            restoring(POLICY, || {
                fs::write(POLICY, &checked)?;
                let with = |crl: &Path| fs::copy(crl, &place);
                with(&pki.at("ca/crl.pem"))?;
                runs(&rt, &bundle)?;
                // of another CA: nobody knows
                with(&owner.at("ca/crl.pem"))?;
                refusal(&rt.run(&bundle)?, "do not settle")?;
                // run out
                let old = stale(&pki)?;
                with(&old)?;
                refusal(&rt.run(&bundle)?, "do not settle")?;
                let revoke = pki.ctl(&["ca", "revoke"]).arg("--dir").arg(pki.at("ca"));
                revoke.arg(pki.at("user.pem")).ok()?.says("1 revoked")?;
                with(&pki.at("ca/crl.pem"))?;
                refusal(&rt.run(&bundle)?, "was revoked")?;
                fs::remove_file(&place)?;
                let gone = rt.run(&bundle)?;
                ensure!(!gone.status.success(), "{gone}");
                gone.says("crl.pem")?;
                Ok(())
            })
        })
    })
}

/// A revocation list of the CA's that ran out years ago, by openssl.
fn stale(pki: &Publisher) -> Result<PathBuf> {
    let dir = pki.at("stale");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("index.txt"), "")?;
    fs::write(dir.join("number"), "1000\n")?;
    let config = dir.join("cnf");
    fs::write(
        &config,
        format!(
            "[ca]\ndefault_ca=this\n[this]\ndatabase={0}/index.txt\ncrlnumber={0}/number\n\
             default_md=sha256\ncertificate={1}/ca.pem\nprivate_key={1}/ca.key\n",
            dir.display(),
            pki.at("ca").display()
        ),
    )?;
    let crl = dir.join("crl.pem");
    cmd!("openssl", "ca", "-gencrl", "-config", &config)
        .args([
            "-crl_lastupdate",
            "20200101000000Z",
            "-crl_nextupdate",
            "20200201000000Z",
        ])
        .arg("-out")
        .arg(&crl)
        .ok()?;
    Ok(crl)
}
