//! B15: a signature list of a million files, read and verified, as a guard does it at `create`.

use crate::{
    bench::{Spread, round},
    lists::large,
    publisher::{LIST, TENANT},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use verify::{
    cms::{Revocation, certificates_from_pem},
    id::UnixTime,
    siglist::{ListRule, verify_list},
};

const GOAL_MS: f64 = 1500.0;

pub fn b15(world: &World, runs: usize) -> Result<Value> {
    let owner = &world.open_for_business()?.owner;
    let demo = &world.images()?.demo;
    let list = large::of_a_million(owner, demo, 1)?;
    let signature = owner.sign_with_openssl(&list, "user.pem", "user.key")?;
    let (text, signature) = (fs::read(&list)?, fs::read(signature)?);
    let roots = certificates_from_pem(&fs::read(owner.at("ca/ca.pem"))?)?;
    let rule = ListRule {
        roots: &roots,
        tenant: TENANT,
        name: LIST,
        min_serial: 1,
        revocation: &Revocation::Unchecked,
    };
    let images = [demo.manifest.parse()?];
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let now = UnixTime::from_secs(i64::try_from(now)?);
    let (mut times, mut kept) = (Vec::<Duration>::new(), 0);
    for _ in 0..runs.min(10) {
        let before = resident_kib()?;
        let began = Instant::now();
        let verified = verify_list(&text, &signature, &rule, &images, now)?;
        times.push(began.elapsed());
        kept = resident_kib()?.saturating_sub(before);
        ensure!(verified.list().files().len() == 1_000_000, "another list");
    }
    let time = Spread::of(&times);
    Ok(json!({
        "id": "B15", "what": "a list of a million files: signature and chain verified, read, ready for use",
        "value": round(time.median), "unit": "ms", "goal": "< 1500 ms", "met": time.median < GOAL_MS,
        "ours": { "time_ms": time.json(), "list_bytes": text.len(), "kept_kib": kept },
        "anchor": {}, "runs": times.len(),
    }))
}

fn resident_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("VmRSS")?.parse()?)
}
