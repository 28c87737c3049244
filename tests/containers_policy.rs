//! `/etc/containers/policy.json` where a rule sends there: each way of naming a signer, with signatures
//! that are right and ones that are not, judged at `create`; what decided is in the event log.

mod stage; // the host, and policies for it

use crate::{
    Module, Test,
    admission::{demo_bundle, ours},
    host::policy,
    image::digest,
    matrix::Made,
    policy::{asked, names, refused, under},
    sigstore::{ISSUER, Instance, LOGGED, Leaf, SIGN, key_bundle, key_simple, payload, statement},
    world::World,
};
use anyhow::{Context, Result, ensure};
use rcgen::{KeyPair, SanType};
use serde_json::{Value, json};
use stage::{CONTAINERS, Stage, asking, asking_for, b64, sigstore, simple, with_containers_policy};
use std::fs;

pub const MODULE: Module = Module {
    name: "containers_policy",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once(
            "policy_json_decides_where_a_rule_says_so",
            policy_json_decides_where_a_rule_says_so,
        ),
        Test::Once(
            "each_way_of_naming_a_key_asks_for_that_key",
            each_way_of_naming_a_key_asks_for_that_key,
        ),
        Test::Once(
            "a_key_with_a_log_needs_an_entry_in_it",
            a_key_with_a_log_needs_an_entry_in_it,
        ),
        Test::Once(
            "fulcio_asks_for_authority_identity_and_log",
            fulcio_asks_for_authority_identity_and_log,
        ),
        Test::Once(
            "the_signed_name_is_the_one_that_is_asked_for",
            the_signed_name_is_the_one_that_is_asked_for,
        ),
        Test::Once(
            "the_closest_scope_decides_and_all_of_it_holds",
            the_closest_scope_decides_and_all_of_it_holds,
        ),
        Test::Once(
            "what_is_not_understood_admits_nothing",
            what_is_not_understood_admits_nothing,
        ),
    ],
};

const EMAIL: &str = "release@acme.example";

fn policy_json_decides_where_a_rule_says_so(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let text = policy("enforce");
    let keys = text
        .lines()
        .find(|l| l.starts_with("keys ="))
        .context("keys")?;
    let theirs = text.replace(keys, "containers_policy = true");
    let both = text.replace(keys, &format!("{keys}\ncontainers_policy = true"));
    let key = keys.split('"').nth(1).context("a key")?;
    with_containers_policy(|| {
        let bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
        let signed = |identity: &str| {
            format!(
                r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{"localhost/e2e": [{{"type": "sigstoreSigned",
                    "keyPath": "{key}", "signedIdentity": {{"type": "{identity}"}}}}]}}}}}}"#
            )
        };
        for (content, why) in [
            (
                r#"{"default": [{"type": "reject"}]}"#.to_owned(),
                "rejects this image",
            ),
            (
                r#"{"default": [{"type": "insecureAcceptAnything"}], "extra": 1}"#.to_owned(),
                "`extra`",
            ),
            (
                r#"{"default": [{"type": "signedBy", "keyPath": "/k"}]}"#.to_owned(),
                "signedBy",
            ),
            (signed("matchExact"), "signedIdentity"),
        ] {
            fs::write(CONTAINERS, &content)?;
            for text in [&theirs, &both] {
                under(text, || {
                    let output = rt.run(&bundle)?;
                    refused(&output)?;
                    output.says(why)?.says(CONTAINERS)?;
                    Ok(())
                })?;
            }
        }
        fs::write(CONTAINERS, signed("matchRepository"))?;
        under(&theirs, || {
            rt.up(&bundle)?;
            let (answer, _) = asked(world, &bundle.id, &[], &[])?;
            ensure!(answer["outcome"] == "accepted", "{answer:#}");
            rt.down(&bundle)
        })?;
        fs::write(
            CONTAINERS,
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )?;
        under(&theirs, || {
            rt.up(&bundle)?;
            let (_, checks) = asked(world, &bundle.id, &[], &[])?;
            ensure!(checks == names(&["P-ORIGIN"]), "{checks:?}");
            let (answer, _) = asked(world, &bundle.id, &["unsigned-image"], &[])?;
            ensure!(answer["outcome"] == "accepted", "{answer:#}");
            rt.down(&bundle)
        })
    })
}

fn each_way_of_naming_a_key_asks_for_that_key(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let (path, other_path) = (stage.at("key.pub"), stage.at("other.pub"));
    let (data, other_data) = (
        b64(&stage.key.public_key_pem()),
        b64(&stage.other.public_key_pem()),
    );
    let one = [("key", path.as_str())];
    let both = [("key", other_path.as_str()), ("key", path.as_str())];
    for (fields, files) in [
        (json!({ "keyPath": path }), &one[..]),
        (json!({ "keyPaths": [other_path, path] }), &both),
        (json!({ "keyData": data }), &[]),
        (json!({ "keyDatas": [other_data, data] }), &[]),
    ] {
        let asked = asking_for(&fields);
        stage.admits(&asked, &stage.signed(), files)?;
        stage.refuses(&asked, &[], "was not made by key")?;
    }
    for fields in [json!({ "keyPath": path }), json!({ "keyData": data })] {
        let by_other = stage.signed_by_other();
        stage.refuses(&asking_for(&fields), &by_other, "was not made by key")?;
        let another = payload("localhost/e2e/demo", &digest(b"another image"));
        let another = [simple(key_simple(&stage.key, another))];
        stage.refuses(&asking_for(&fields), &another, "was not made by key")?;
    }
    // a key's file that is gone, or holds something else
    let gone = asking_for(&json!({ "keyPath": stage.at("gone.pub") }));
    let created = |containers: &Value, words: &str| {
        stage.with(&containers.to_string(), &stage.signed(), || {
            let created = stage.rt.create(&stage.bundle).output()?;
            ensure!(!created.status.success(), "{words}: {created}");
            created.says(words)?;
            Ok(())
        })
    };
    created(&gone, "gone.pub")?;
    stage.file("garbage.pub", "no key")?;
    let garbage = asking_for(&json!({ "keyPath": stage.at("garbage.pub") }));
    created(&garbage, "garbage.pub")?;
    created(
        &asking_for(&json!({ "keyData": b64("no key") })),
        CONTAINERS,
    )
}

fn a_key_with_a_log_needs_an_entry_in_it(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let (instance, stranger) = (Instance::new(), Instance::new());
    let (_, log) = instance.pems();
    let log_path = stage.file("rekor.pub", &log)?;
    let key = b64(&stage.key.public_key_pem());
    let logged = |by: &Instance, key: &KeyPair| simple(by.key_simple(key, stage.payload(), LOGGED));
    let (_, other_log) = stranger.pems();
    for (fields, files) in [
        (json!({ "rekorPublicKeyData": b64(&log) }), &[][..]),
        (
            json!({ "rekorPublicKeyDatas": [b64(&other_log), b64(&log)] }),
            &[],
        ),
        (
            json!({ "rekorPublicKeyPath": log_path }),
            &[("rekor-key", log_path.as_str())],
        ),
        (
            json!({ "rekorPublicKeyPaths": [log_path] }),
            &[("rekor-key", log_path.as_str())],
        ),
    ] {
        let mut fields = fields;
        fields["keyData"] = json!(key);
        stage.admits(
            &asking_for(&fields),
            &[logged(&instance, &stage.key)],
            files,
        )?;
    }
    let asked = asking_for(&json!({ "keyData": key, "rekorPublicKeyData": b64(&log) }));
    stage.refuses(
        &asked,
        &stage.signed(),
        "it has no entry in a transparency log",
    )?;
    let elsewhere = [logged(&stranger, &stage.key)];
    stage.refuses(
        &asked,
        &elsewhere,
        "its transparency log entry does not count",
    )?;
    // what the log has is another's signature
    stage.refuses(
        &asked,
        &[logged(&instance, &stage.other)],
        "was not made by key",
    )?;
    let (payload, signature, _) = key_simple(&stage.key, stage.payload());
    let (_, _, others) = instance.key_simple(&stage.other, stage.payload(), LOGGED);
    let borrowed = [simple((payload, signature, others))];
    stage.refuses(
        &asked,
        &borrowed,
        "its transparency log entry does not count",
    )
}

/// A certificate for this name.
fn leaf(instance: &Instance, name: SanType) -> Leaf {
    instance.leaf_with(|params| params.subject_alt_names = vec![name])
}

fn fulcio_asks_for_authority_identity_and_log(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let (instance, stranger) = (Instance::new(), Instance::new());
    let (ca, log) = instance.pems();
    let (other_ca, other_log) = stranger.pems();
    let ca_path = stage.file("fulcio.pem", &ca)?;
    let log_path = stage.file("rekor.pub", &log)?;
    let fields = |ca: &str, log: &str, issuer: &str, email: &str| {
        json!({
            "fulcio": { "caData": b64(ca), "oidcIssuer": issuer, "subjectEmail": email },
            "rekorPublicKeyData": b64(log),
        })
    };
    let asked = asking_for(&fields(&ca, &log, ISSUER, EMAIL));
    let email = |text: &str| -> Result<SanType> { Ok(SanType::Rfc822Name(text.try_into()?)) };
    let right = leaf(&instance, email(EMAIL)?);
    let signed = |by: &Instance, leaf: &Leaf| simple(by.simple(leaf, stage.payload(), LOGGED));
    let good = || [signed(&instance, &right)];

    stage.admits(&asked, &good(), &[])?;
    let in_files = json!({
        "fulcio": { "caPath": ca_path, "oidcIssuer": ISSUER, "subjectEmail": EMAIL },
        "rekorPublicKeyPath": log_path,
    });
    let files = [
        ("fulcio-ca", ca_path.as_str()),
        ("rekor-key", log_path.as_str()),
    ];
    stage.admits(&asking_for(&in_files), &good(), &files)?;

    // somebody else, in whichever field
    let unasked = "which is not asked for";
    let somebody = leaf(&instance, email("somebody@acme.example")?);
    stage.refuses(&asked, &[signed(&instance, &somebody)], unasked)?;
    let longer = leaf(&instance, email(&format!("{EMAIL}.evil.example"))?);
    stage.refuses(&asked, &[signed(&instance, &longer)], unasked)?;
    let as_uri = leaf(&instance, SanType::URI(EMAIL.try_into()?));
    stage.refuses(&asked, &[signed(&instance, &as_uri)], unasked)?;
    let issuer = asking_for(&fields(&ca, &log, "https://other.example", EMAIL));
    stage.refuses(&issuer, &good(), unasked)?;
    // another authority, another log, none at all, too late
    let untrusted = "its certificate is not trusted";
    stage.refuses(
        &asking_for(&fields(&other_ca, &log, ISSUER, EMAIL)),
        &good(),
        untrusted,
    )?;
    let theirs = leaf(&stranger, email(EMAIL)?);
    stage.refuses(
        &asking_for(&fields(&ca, &other_log, ISSUER, EMAIL)),
        &[signed(&stranger, &theirs)],
        untrusted,
    )?;
    let unlogged = "its transparency log entry does not count";
    stage.refuses(
        &asking_for(&fields(&ca, &other_log, ISSUER, EMAIL)),
        &good(),
        unlogged,
    )?;
    let (payload, signature, mut annotations) = instance.simple(&right, stage.payload(), LOGGED);
    annotations.remove("dev.sigstore.cosign/bundle");
    let alone = [simple((payload, signature, annotations))];
    stage.refuses(&asked, &alone, "it has no entry in a transparency log")?;
    let late = [simple(instance.simple(
        &right,
        stage.payload(),
        LOGGED + 3600,
    ))];
    stage.refuses(&asked, &late, "was not in force when it signed")?;
    // a key is nobody's identity
    stage.refuses(
        &asked,
        &stage.signed(),
        "made with a key, not with a certificate",
    )
}

fn the_signed_name_is_the_one_that_is_asked_for(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let name = stage.name.as_str();
    let as_signed = |reference: &str| {
        [simple(key_simple(
            &stage.key,
            payload(reference, &stage.image),
        ))]
    };
    let key = stage.at("key.pub");
    let asked =
        |identity: Value| asking_for(&json!({ "keyPath": key, "signedIdentity": identity }));
    let files = [("key", key.as_str())];
    let repository = "localhost/e2e/demo";
    let elsewhere = "registry.example/shop/demo";
    let tagged = format!("{elsewhere}:v1");
    let exact = json!({ "type": "exactReference", "dockerReference": tagged });
    let of_repository = json!({ "type": "exactRepository", "dockerRepository": elsewhere });
    let remap = json!({
        "type": "remapIdentity", "prefix": "localhost/e2e", "signedPrefix": "registry.example/shop",
    });
    for (identity, right, wrong) in [
        (json!({ "type": "matchExact" }), name, repository),
        (
            json!({ "type": "matchExact" }),
            name,
            "localhost/e2e/demo:v2",
        ),
        (
            json!({ "type": "matchRepoDigestOrExact" }),
            name,
            tagged.as_str(),
        ),
        (
            json!({ "type": "matchRepository" }),
            "localhost/e2e/demo:v9",
            elsewhere,
        ),
        (exact, &tagged, name),
        (of_repository, "registry.example/shop/demo:v7", name),
        (remap, &tagged, name),
    ] {
        let asked = asked(identity);
        stage.admits(&asked, &as_signed(right), &files)?;
        stage.refuses(&asked, &as_signed(wrong), "which is not the signedIdentity")?;
    }
    // left out, it is matchRepoDigestOrExact
    let mut plain = sigstore(&json!({ "keyPath": key }));
    plain
        .as_object_mut()
        .context("fields")?
        .remove("signedIdentity");
    let plain = asking(json!([plain]));
    stage.admits(&plain, &as_signed(name), &files)?;
    stage.refuses(
        &plain,
        &as_signed(repository),
        "which is not the signedIdentity",
    )?;
    // a bundle is about no name: the rule must say that the signer speaks for every one
    let bundle = || {
        [Made::Bundle(key_bundle(
            &stage.key,
            &statement(&stage.image, SIGN),
        ))]
    };
    stage.refuses(
        &plain,
        &bundle(),
        "is for no name, which is not the signedIdentity",
    )?;
    let any = "containers_policy = true\nsigned_identity = \"any\"";
    stage.under(any, &plain.to_string(), &bundle(), || {
        stage.is_admitted(&files)
    })
}

fn the_closest_scope_decides_and_all_of_it_holds(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let (key, other) = (stage.at("key.pub"), stage.at("other.pub"));
    let by = |path: &str| sigstore(&json!({ "keyPath": path }));
    let twice = || {
        [stage.signed(), stage.signed_by_other()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    let both = asking(json!([by(&key), by(&other)]));
    let files = [("key", key.as_str()), ("key", other.as_str())];
    stage.admits(&both, &twice(), &files)?;
    stage.refuses(&both, &stage.signed(), "was not made by key")?;
    stage.refuses(&both, &stage.signed_by_other(), "was not made by key")?;
    let anything = json!({ "type": "insecureAcceptAnything" });
    let more = asking(json!([anything, by(&key)]));
    stage.admits(&more, &stage.signed(), &files[..1])?;
    stage.refuses(&more, &[], "was not made by key")?;
    let but = asking(json!([by(&key), { "type": "reject" }]));
    stage.refuses(&but, &stage.signed(), "rejects this image")?;

    let scopes =
        |scopes: Value| json!({ "default": [anything], "transports": { "docker": scopes } });
    let reject = || json!([{ "type": "reject" }]);
    for scope in [
        &stage.name,
        "localhost/e2e/demo",
        "localhost/e2e",
        "localhost",
        "",
    ] {
        let closest = scopes(json!({ scope: reject() }));
        let why = if scope.is_empty() { "docker" } else { scope };
        stage.refuses(
            &closest,
            &stage.signed(),
            &format!("scope `{why}`: it rejects this image"),
        )?;
    }
    let wider = scopes(json!({ "localhost/e2e/demo": [by(&key)], "localhost/e2e": reject() }));
    stage.admits(&wider, &stage.signed(), &files[..1])?;
    stage.refuses(&wider, &[], "was not made by key")?;
    // others' scopes, and other transports', are not this image's
    let mut others = asking(json!([by(&key)]));
    others["transports"]["docker-daemon"] = json!({ "": [anything] });
    others["transports"]["docker"]["localhost/e2e/dem"] = json!([anything]);
    others["transports"]["docker"]["localhost/e2e/demo:v2"] = json!([anything]);
    stage.admits(&others, &stage.signed(), &files[..1])?;
    stage.refuses(&others, &[], "was not made by key")
}

fn what_is_not_understood_admits_nothing(world: &World) -> Result<()> {
    let stage = Stage::new(world)?;
    let key = stage.at("key.pub");
    let pki =
        json!({ "type": "sigstoreSigned", "pki": { "caRootsPath": "/ca", "subjectEmail": EMAIL } });
    let gpg = json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k" });
    for (requirement, words) in [
        (gpg, "`signedBy` is not supported"),
        (pki, "`pki` is not supported"),
    ] {
        stage.refuses(&asking(json!([requirement])), &stage.signed(), words)?;
        let besides = asking(json!([sigstore(&json!({ "keyPath": key })), requirement]));
        stage.refuses(&besides, &stage.signed(), words)?;
    }
    let good = asking_for(&json!({ "keyPath": key })).to_string();
    stage.with(&good, &stage.signed(), || {
        stage.is_admitted(&[("key", &key)])
    })?;
    let twice = good.replacen(
        "\"default\"",
        "\"default\":[{\"type\":\"reject\"}],\"default\"",
        1,
    );
    let unknown = good.replace("\"keyPath\"", "\"keyPth\":\"/k\",\"keyPath\"");
    let two_keys = good.replace("\"keyPath\"", "\"keyData\":\"QQ==\",\"keyPath\"");
    let fulcio = "\"fulcio\":{\"caPath\":\"/c\",\"oidcIssuer\":\"i\",\"subjectEmail\":\"e\"}";
    let unlogged = good.replace(&format!("\"keyPath\":\"{key}\""), fulcio);
    let nobody = unlogged.replace("\"e\"}", "\"\"},\"rekorPublicKeyPath\":\"/r\"");
    let empty = asking(json!([])).to_string();
    let keyless = asking_for(&json!({ "keyPaths": [] })).to_string();
    let kind = good.replace("sigstoreSigned", "sigstoreSinged");
    let identity = good.replace("matchRepository", "matchAnything");
    for (text, words) in [
        ("", "malformed"),
        ("{}", "`default`"),
        (&good[..good.len() / 2], "malformed"),
        (&twice, "`default`"),
        (&unknown, "`keyPth`"),
        (&two_keys, "exactly one of keyPath"),
        (&unlogged, "`fulcio` needs one of rekorPublicKeyPath"),
        (&nobody, "`subjectEmail` is empty"),
        (&empty, "there is no requirement"),
        (&keyless, "`keyPaths` is empty"),
        (&kind, "sigstoreSinged"),
        (&identity, "matchAnything"),
    ] {
        let done = stage.with(text, &stage.signed(), || stage.is_refused(words));
        done.with_context(|| format!("`{words}` expected under {text}"))?;
    }
    // without the file nothing is known, so nothing is admitted
    stage.with(&good, &stage.signed(), || {
        fs::remove_file(CONTAINERS)?;
        let created = stage.rt.create(&stage.bundle).output()?;
        ensure!(!created.status.success(), "without the file: {created}");
        created.says(CONTAINERS)?;
        Ok(())
    })
}
