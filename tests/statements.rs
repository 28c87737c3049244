//! What must have been stated about an image besides that it is somebody's: attestations of a type, and
//! scans for known vulnerabilities. Statements are signed here, imported by `attestctl`, judged at
//! `create`; what admitted the container stands in its event log by digest.

use crate::{
    Module, Test,
    admission::{demo_bundle, ours, refusal, restoring},
    cmd,
    host::{POLICY, policy},
    image::digest,
    publisher::STORE,
    runtime::{Bundle, Runtime},
    signatures::fresh,
    sigstore::{ISSUER, Instance, LOGGED, SIGN, SUBJECT, key_bundle, statement, stating},
    stock_tools::{log_of, shown},
    world::World,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

pub const MODULE: Module = Module {
    name: "statements",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once(
            "an_attestation_is_there_and_by_whom_it_is_wanted_from",
            an_attestation_is_there_and_by_whom_it_is_wanted_from,
        ),
        Test::Once(
            "an_attestation_without_a_key_is_by_the_named_identity",
            an_attestation_without_a_key_is_by_the_named_identity,
        ),
        Test::Once(
            "a_scan_is_young_and_finds_nothing_grave",
            a_scan_is_young_and_finds_nothing_grave,
        ),
        Test::Once(
            "the_newest_scan_by_the_scanner_counts",
            the_newest_scan_by_the_scanner_counts,
        ),
        Test::Once(
            "audit_records_what_was_not_stated",
            audit_records_what_was_not_stated,
        ),
    ],
};

const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
const REVIEW: &str = "https://example.com/review/v1";
const VULN: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";
const CYCLONEDX: &str = "https://cyclonedx.org/bom";

/// The demo image, which is signed and listed, on a host whose rule wants more.
struct Stage<'w> {
    world: &'w World,
    rt: Runtime,
    bundle: Bundle,
    image: String,
    dir: PathBuf,
    /// Whose statements count, and another.
    key: KeyPair,
    other: KeyPair,
}

impl<'w> Stage<'w> {
    fn new(world: &'w World) -> Result<Self> {
        let dir = fresh(world, "statements")?;
        let key = KeyPair::generate()?;
        fs::write(dir.join("key.pub"), key.public_key_pem())?;
        Ok(Self {
            rt: ours(world)?,
            bundle: demo_bundle(world, &["/bin/sleep", "1000"])?,
            image: world.images()?.demo.manifest.clone(),
            world,
            dir,
            key,
            other: KeyPair::generate()?,
        })
    }

    fn by_key(&self) -> String {
        format!("key = {{ path = {:?} }}", self.dir.join("key.pub"))
    }

    /// A scan by that key: nothing above medium, save what is excepted, in the last week.
    fn scanned(&self, except: &[&str]) -> String {
        format!(
            "[rule.vulnerabilities]\nauthority = {{ name = \"scanner\", {} }}\nmax_age_days = 7\n\
             max_severity = \"medium\"\nexcept = {}\n",
            self.by_key(),
            json!(except),
        )
    }

    /// Puts these bundles into the host's store.
    fn import(&self, bundles: &[Value]) -> Result<()> {
        for (number, bundle) in bundles.iter().enumerate() {
            let file = self.dir.join(format!("{number}.sigstore.json"));
            fs::write(&file, bundle.to_string())?;
            let import = self.world.ctl()?.args(["import", "--store", STORE]);
            import.arg(&file).ok()?;
        }
        Ok(())
    }

    /// `body` where the rule demands this and the store holds these as well.
    fn with(
        &self,
        mode: &str,
        demand: &str,
        bundles: &[Value],
        body: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        restoring(STORE, || {
            restoring(POLICY, || {
                self.import(bundles)?;
                fs::write(POLICY, format!("{}{demand}", policy(mode)))?;
                body()
            })
        })
    }

    fn refuses(&self, demand: &str, bundles: &[Value], why: &str) -> Result<()> {
        let refused = self.with("enforce", demand, bundles, || self.is_refused(why));
        refused.context(why.to_owned())
    }

    fn is_refused(&self, why: &str) -> Result<()> {
        let created = self.rt.create(&self.bundle).output()?;
        ensure!(!created.status.success(), "not refused: {created}");
        refusal(&created, why)
    }

    /// It is created, and exactly these statements (kind, type, text) are measured as reasons.
    fn admits(&self, demand: &str, bundles: &[Value], why: &[(&str, &str, &[u8])]) -> Result<()> {
        self.with("enforce", demand, bundles, || {
            let grounds = self.grounds()?;
            let sources = grounds["sources"].as_array().context("sources")?;
            let stated = sources
                .iter()
                .filter(|source| ["attestation", "scan"].iter().any(|k| source["kind"] == *k));
            let stated: Vec<&Value> = stated.collect();
            let expected: Vec<Value> = why
                .iter()
                .map(|(kind, of, text)| json!({ "kind": kind, "path": of, "sha256": digest(text) }))
                .collect();
            ensure!(
                stated == expected.iter().collect::<Vec<_>>(),
                "{grounds:#} for {expected:?}"
            );
            Ok(())
        })
    }

    /// Why it was let through, as its event log has it.
    fn grounds(&self) -> Result<Value> {
        self.rt.up(&self.bundle)?;
        let events = log_of(&self.bundle.id).and_then(|log| shown(self.world, &log));
        self.rt.down(&self.bundle)?;
        let events = events?;
        let mut grounds = events.iter().filter(|e| e["event"] == "attestrun.grounds");
        Ok(grounds.next().context("attestrun.grounds")?["content"].clone())
    }

    /// A statement about the demo image by the key that counts: itself, and its bundle.
    fn says(&self, kind: &str, predicate: &Value) -> (Vec<u8>, Value) {
        let said = stating(&self.image, kind, predicate);
        let bundle = key_bundle(&self.key, &said);
        (said, bundle)
    }
}

/// A rule's demand for an attestation.
fn attested(name: &str, kind: &str, by: &str) -> String {
    format!(
        "[[rule.attestations]]\nname = \"{name}\"\npredicateType = \"{kind}\"\nauthority = {{ name = \"ci\", {by} }}\n"
    )
}

/// The bundle's signature over another statement.
fn altered(bundle: &Value, statement: &[u8]) -> Value {
    let mut bundle = bundle.clone();
    bundle["dsseEnvelope"]["payload"] = json!(BASE64.encode(statement));
    bundle
}

/// A store in which somebody filed what is about another image under the demo's.
fn misfiled(stage: &Stage<'_>, other: &str) -> Result<()> {
    let path = format!("{STORE}/index.json");
    let index = fs::read_to_string(&path)?;
    ensure!(index.contains(other), "{other} is not in {index}");
    Ok(fs::write(path, index.replace(other, &stage.image))?)
}

fn an_attestation_is_there_and_by_whom_it_is_wanted_from(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let demand = attested("built", PROVENANCE, &stage.by_key());
    let absent = "attestation built (https://slsa.dev/provenance/v1) by ci is not there";
    let (said, good) = stage.says(PROVENANCE, &json!({ "buildDefinition": {} }));
    let other_said = stating(
        &stage.image,
        PROVENANCE,
        &json!({ "buildDefinition": { "x": 1 } }),
    );
    let by_other = key_bundle(&stage.other, &said);
    let another = digest(b"another image");
    let elsewhere = key_bundle(&stage.key, &statement(&another, PROVENANCE));
    let grounds = [("attestation", PROVENANCE, said.as_slice())];

    stage.refuses(&demand, &[], absent)?;
    stage.admits(&demand, std::slice::from_ref(&good), &grounds)?;
    // what does not count does no harm
    stage.admits(&demand, &[by_other.clone(), good.clone()], &grounds)?;
    stage.refuses(&demand, &[by_other], "it was not made by key")?;
    stage.refuses(
        &demand,
        &[altered(&good, &other_said)],
        "it was not made by key",
    )?;
    stage.refuses(&demand, std::slice::from_ref(&elsewhere), absent)?;
    stage.with("enforce", &demand, &[elsewhere], || {
        misfiled(&stage, &another)?;
        stage.is_refused(&format!("the signature is about image {another}"))
    })?;
    // of another type, and a signature of the image itself by the same key
    let (_, review) = stage.says(REVIEW, &json!({}));
    let type_is = format!("the statement is of type `{REVIEW}`, not `{PROVENANCE}`");
    stage.refuses(&demand, std::slice::from_ref(&review), &type_is)?;
    let (_, signature) = stage.says(SIGN, &json!({}));
    stage.refuses(&demand, &[signature], absent)?;
    // all that are demanded
    let both = format!("{demand}{}", attested("read", REVIEW, &stage.by_key()));
    let missing = format!("attestation read ({REVIEW}) by ci is not there");
    stage.refuses(&both, std::slice::from_ref(&good), &missing)?;
    stage.refuses(&both, std::slice::from_ref(&review), absent)?;
    let reviewed = stating(&stage.image, REVIEW, &json!({}));
    let grounds = [grounds[0], ("attestation", REVIEW, &reviewed)];
    stage.admits(&both, &[good, review], &grounds)?;
    // and a key that is gone is no key that signed it
    fs::remove_file(stage.dir.join("key.pub"))?;
    let (_, good) = stage.says(PROVENANCE, &json!({}));
    stage.with("enforce", &demand, &[good], || {
        let created = stage.rt.create(&stage.bundle).output()?;
        ensure!(!created.status.success(), "without the key: {created}");
        created.says("key.pub")?;
        Ok(())
    })
}

fn an_attestation_without_a_key_is_by_the_named_identity(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let instance = Instance::new();
    let root = stage.dir.join("root.json");
    fs::write(&root, instance.root().to_string())?;
    let by = format!(
        "trusted_root = {root:?}, keyless = {{ identities = [{{ issuer = \"{ISSUER}\", subject = \"{SUBJECT}\" }}] }}"
    );
    let demand = attested("built", PROVENANCE, &by);
    let said = stating(&stage.image, PROVENANCE, &json!({}));
    let good = instance.bundle(&instance.leaf(), &said, LOGGED);
    let grounds = [("attestation", PROVENANCE, said.as_slice())];
    stage.admits(&demand, &[good], &grounds)?;
    let by_stranger = instance.bundle(&instance.stranger(), &said, LOGGED);
    stage.refuses(&demand, &[by_stranger], "which is not asked for")?;
    let late = instance.bundle(&instance.leaf(), &said, LOGGED + 3600);
    stage.refuses(&demand, &[late], "was not in force when it signed")?;
    let by_key = key_bundle(&stage.key, &said);
    stage.refuses(
        &demand,
        &[by_key],
        "made with a key, not with a certificate",
    )
}

/// The forms of a scan that are read.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// cosign's predicate with SARIF inside, as scanners for code write it.
    Sarif,
    /// cosign's predicate with CycloneDX inside.
    Vex,
    /// A CycloneDX document as the predicate itself.
    Bom,
}

const FORMS: [Form; 3] = [Form::Sarif, Form::Vex, Form::Bom];

impl Form {
    fn kind(self) -> &'static str {
        match self {
            Self::Sarif | Self::Vex => VULN,
            Self::Bom => CYCLONEDX,
        }
    }

    /// Findings (id, severity, state of VEX), so many days ago.
    fn scan(self, days: i64, found: &[(&str, &str, Option<&str>)]) -> Result<Value> {
        let finished = days_ago(days)?;
        let inside = |result: Value| {
            json!({
                "invocation": { "uri": "", "event_id": "", "builder.id": "" },
                "scanner": {
                    "uri": "pkg:generic/scanner", "version": "1", "db": { "uri": "", "version": "" },
                    "result": result,
                },
                "metadata": { "scanStartedOn": finished, "scanFinishedOn": finished },
            })
        };
        Ok(match self {
            Self::Sarif => inside(sarif(found)),
            Self::Vex => inside(bom(found)),
            Self::Bom => {
                let mut bom = bom(found);
                bom["metadata"] = json!({ "timestamp": finished });
                bom
            }
        })
    }
}

/// SARIF 2.1.0 with scores, as scanners write them; it has no word for VEX.
fn sarif(found: &[(&str, &str, Option<&str>)]) -> Value {
    let score = |severity: &str| match severity {
        "low" => "2.0",
        "medium" => "6.9",
        _ => "7.5",
    };
    let rules: Vec<_> = found
        .iter()
        .map(|(id, severity, _)| {
            json!({ "id": id, "properties": { "security-severity": score(severity) } })
        })
        .collect();
    let results = found
        .iter()
        .map(|(id, ..)| json!({ "ruleId": id, "level": "note" }));
    json!({ "version": "2.1.0", "runs": [{
        "tool": { "driver": { "name": "scanner", "rules": rules } },
        "results": results.collect::<Vec<_>>(),
    }] })
}

fn bom(found: &[(&str, &str, Option<&str>)]) -> Value {
    let list = found.iter().map(|(id, severity, state)| {
        let mut entry = json!({ "id": id, "ratings": [{ "severity": severity }] });
        if let Some(state) = state {
            entry["analysis"] = json!({ "state": state });
        }
        entry
    });
    let list: Vec<_> = list.collect();
    json!({ "bomFormat": "CycloneDX", "specVersion": "1.5", "vulnerabilities": list })
}

fn days_ago(days: i64) -> Result<String> {
    let date = format!("--date={days} days ago");
    let said = cmd!("date", "--utc", date, "+%Y-%m-%dT%H:%M:%SZ").ok()?;
    Ok(said.stdout.trim().to_owned())
}

const MILD: (&str, &str, Option<&str>) = ("CVE-2024-1000", "medium", None);
const GRAVE: (&str, &str, Option<&str>) = ("CVE-2024-2000", "high", None);

fn a_scan_is_young_and_finds_nothing_grave(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let demand = stage.scanned(&[]);
    let too_grave = "the scan by scanner finds more than severity medium: CVE-2024-2000 (high)";
    stage.refuses(&demand, &[], "no scan for vulnerabilities by scanner")?;
    for form in FORMS {
        let judged = || -> Result<()> {
            let kind = form.kind();
            let (clean, good) = stage.says(kind, &form.scan(6, &[MILD])?);
            stage.admits(&demand, &[good], &[("scan", kind, &clean)])?;
            let (_, old) = stage.says(kind, &form.scan(8, &[MILD])?);
            let aged = "the newest scan by scanner is 8 days old";
            stage.refuses(&demand, &[old], aged)?;
            let (_, future) = stage.says(kind, &form.scan(-1, &[])?);
            stage.refuses(&demand, &[future], "is of the future")?;
            let (graver, grave) = stage.says(kind, &form.scan(1, &[MILD, GRAVE])?);
            let grave = [grave];
            stage.refuses(&demand, &grave, too_grave)?;
            stage.refuses(&stage.scanned(&["CVE-2024-1000"]), &grave, too_grave)?;
            let listed = stage.scanned(&["CVE-2024-2000"]);
            stage.admits(&listed, &grave, &[("scan", kind, &graver)])
        };
        judged().with_context(|| format!("{form:?}"))?;
    }
    // VEX may say that a finding is no threat, and nothing else of it helps
    for form in [Form::Vex, Form::Bom] {
        let kind = form.kind();
        let stated = |state| form.scan(1, &[(GRAVE.0, GRAVE.1, Some(state))]);
        let (harmless, bundle) = stage.says(kind, &stated("not_affected")?);
        stage.admits(&demand, &[bundle], &[("scan", kind, &harmless)])?;
        for state in ["exploitable", "in_triage"] {
            let (_, bundle) = stage.says(kind, &stated(state)?);
            stage.refuses(&demand, &[bundle], too_grave)?;
        }
    }
    Ok(())
}

fn the_newest_scan_by_the_scanner_counts(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let demand = stage.scanned(&[]);
    let nobody = "no scan for vulnerabilities by scanner";
    let (clean, good) = stage.says(VULN, &Form::Sarif.scan(3, &[])?);
    let (graver, grave) = stage.says(VULN, &Form::Sarif.scan(2, &[GRAVE])?);
    let (_, older) = stage.says(CYCLONEDX, &Form::Bom.scan(4, &[GRAVE])?);
    // whatever older ones say, in whichever form and order
    let newer = "CVE-2024-2000 (high)";
    stage.refuses(&demand, &[good.clone(), grave.clone()], newer)?;
    stage.refuses(&demand, &[grave.clone(), good.clone()], newer)?;
    let counts = [("scan", VULN, clean.as_slice())];
    stage.admits(&demand, &[older, good.clone()], &counts)?;
    // others neither vouch nor accuse
    let by_other = key_bundle(&stage.other, &clean);
    stage.refuses(&demand, std::slice::from_ref(&by_other), nobody)?;
    stage.refuses(&demand, &[by_other], "it was not made by key")?;
    let accused = key_bundle(&stage.other, &graver);
    stage.admits(&demand, &[good.clone(), accused], &counts)?;
    // nor does what is about another image
    let another = digest(b"another image");
    let clean_scan = Form::Sarif.scan(1, &[])?;
    let elsewhere = key_bundle(&stage.key, &stating(&another, VULN, &clean_scan));
    stage.refuses(&demand, std::slice::from_ref(&elsewhere), nobody)?;
    stage.with("enforce", &demand, &[elsewhere], || {
        misfiled(&stage, &another)?;
        stage.is_refused(&format!("the signature is about image {another}"))
    })?;
    // one that cannot be read may be the newest
    let (_, unread) = stage.says(VULN, &json!({ "scanner": { "result": {} } }));
    let malformed = "a scan by scanner is malformed";
    stage.refuses(&demand, &[good.clone(), unread], malformed)?;
    // a run without results is none that found nothing
    let mut unfinished = Form::Sarif.scan(1, &[])?;
    unfinished["scanner"]["result"]["runs"][0]["results"] = Value::Null;
    let (_, unfinished) = stage.says(VULN, &unfinished);
    stage.refuses(&demand, &[good.clone(), unfinished], malformed)?;
    stage.refuses(
        &demand,
        &[altered(&grave, &clean)],
        "it was not made by key",
    )
}

fn audit_records_what_was_not_stated(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let demand = format!(
        "{}{}",
        attested("built", PROVENANCE, &stage.by_key()),
        stage.scanned(&[])
    );
    let (_, grave) = stage.says(VULN, &Form::Sarif.scan(1, &[GRAVE])?);
    stage.with("audit", &demand, &[grave], || {
        let audited = stage.grounds()?["audited"].to_string();
        for words in ["attestation built", "CVE-2024-2000 (high)"] {
            ensure!(audited.contains(words), "{words}: {audited}");
        }
        Ok(())
    })
}
