//! B19: `attestctl watch` on a fleet of 1 000 hosts with 10 000 containers: processor time of judging one
//! incremental round, and how long it takes.
//!
//! The fleet is simulated by this process: a socket per host that speaks the agent's protocol, with keys of
//! its own (P-256, in software, in the templates of TPMs), and evidence made of a real container's: its record,
//! log and list, under other ids and keys. Everything is signed for each challenge, what came together by one
//! quote of its host; a host takes as long as a TPM to sign. `attestctl` is the product.

use crate::{
    attestation::{WAIVERS, accepted, ours, up},
    bench::round,
    world::World,
};
use anyhow::{Context, Result, ensure};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use verify::{
    batch::Batch,
    binding::{Claim, HostPart, Kind, LogEntry, Record, replay},
    digest::FileDigest,
    event::{Event, HostLink},
    evidence::{Evidence, HostPcrs, LogFrom},
    id::ContainerId,
    imalog::{self, EncodedPath, Entry, Template, Values},
    pcr::{HOST_QUOTED, PcrIndex, QUOTED},
    qualify,
    tpm2::{Public, aik_template, ek_template},
    wire::Challenge,
};

const HOSTS: usize = 1_000;
const PER_HOST: usize = 10;
const SIGNING: Duration = Duration::from_millis(50);
/// New entries in each container's log per round: programs that run for the first time.
const NEW: usize = 50;
const ROUNDS: usize = 4;
const GOAL: f64 = 1.5;

pub fn b19(world: &World) -> Result<Value> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    accepted(world, &bundle.id)?;
    let evidence = fs::read(world.work.join("evidence.json"))?;
    let real = Evidence::parse(&evidence, evidence.len())?;
    rt.down(&bundle)?;
    let expectations = world.expectations(&WAIVERS)?;
    let place = world.work.join("fleet");
    fs::create_dir_all(&place)?;
    let model = Arc::new(Model::of(real)?);
    let (mut fleet, mut pins) = (
        format!(
            "policy = \"{}\"\ninventory = \"pins.toml\"\n",
            expectations.display()
        ),
        String::new(),
    );
    for number in 0..HOSTS {
        let host = Host::new(&model, number)?;
        let socket = place.join(format!("{number}.sock"));
        let ids: Vec<_> = host.containers.iter().map(|one| one.id.as_str()).collect();
        let _ = writeln!(
            fleet,
            "[[agents]]\nsocket = \"{number}.sock\"\ncontainers = {}",
            json!(ids)
        );
        let _ = writeln!(
            pins,
            "[[hosts]]\nname = \"host-{number}\"\nak_name = \"{}\"\nroot = \"software\"\nbinding_pcr_start = \"{}\"",
            host.ak.public.name(),
            "0".repeat(64)
        );
        host.serve(&socket)?;
    }
    fs::write(place.join("pins.toml"), pins)?;
    fs::write(place.join("fleet.toml"), fleet)?;
    let rounds = watch(world, &place, &model)?;
    fs::remove_dir_all(&place)?;
    let (first, next) = rounds.split_first().context("no round")?;
    let mut judging: Vec<f64> = next.iter().map(|round| round.0).collect();
    judging.sort_by(f64::total_cmp);
    let value = judging[judging.len() / 2];
    let longest = rounds.iter().map(|round| round.1).fold(0.0, f64::max);
    Ok(json!({
        "id": "B19",
        "what": format!("judging {} containers on {HOSTS} hosts (simulated), {NEW} new entries each", HOSTS * PER_HOST),
        "value": round(value), "unit": "s of one processor", "goal": format!("<= {GOAL} s, rounds <= 60 s"),
        "met": value <= GOAL && longest <= 60.0,
        "ours": { "judging": judging.iter().map(|s| round(*s)).collect::<Vec<_>>(),
                  "rounds": rounds.iter().map(|r| round(r.1)).collect::<Vec<_>>(),
                  "first_contact": round(first.0) },
        "anchor": {}, "runs": next.len(),
    }))
}

/// Seconds of judging and of the whole, per round; every container is accepted in each.
fn watch(world: &World, place: &Path, model: &Model) -> Result<Vec<(f64, f64)>> {
    let output = world
        .ctl()?
        .args(["--json", "watch", "--interval", "1", "--jitter", "0"])
        .args(["--at-once", "200", "--rounds", &ROUNDS.to_string()])
        .arg("--fleet")
        .arg(place.join("fleet.toml"))
        .limit(Duration::from_secs(600))
        .output()?;
    ensure!(output.code() == 0, "{output}");
    ensure!(model.asked.load(Ordering::SeqCst) == ROUNDS * HOSTS * PER_HOST);
    let lines = output.stdout.lines().map(serde_json::from_str);
    let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
    let rounds: Vec<_> = lines
        .iter()
        .filter(|line| line["event"] == "round")
        .collect();
    ensure!(rounds.len() == ROUNDS, "{} rounds", rounds.len());
    ensure!(
        rounds.iter().all(|r| r["accepted"] == HOSTS * PER_HOST),
        "{rounds:?}"
    );
    let seconds = |round: &Value, name: &str| round[name].as_f64().context("seconds");
    let each = rounds.iter().map(|round| {
        Ok((
            seconds(round, "judging_seconds")?,
            seconds(round, "seconds")?,
        ))
    });
    each.collect()
}

/// What all containers have in common: that of a real one.
struct Model {
    real: Evidence,
    claim: Claim,
    host: HostPart,
    /// Its log but for the first entry.
    log: Vec<Entry>,
    /// A listed program.
    program: FileDigest,
    asked: AtomicUsize,
    since: Instant,
}

impl Model {
    fn of(real: Evidence) -> Result<Self> {
        let record = Record::parse(&real.binding)?;
        let mut log = imalog::parse(&real.container_log)?;
        log.remove(0);
        let program = log.iter().find_map(|entry| match entry.template() {
            Template::ImaNg { digest, .. } => Some(*digest),
            _ => None,
        });
        Ok(Self {
            claim: record.claim,
            host: record.host,
            log,
            program: program.context("the container ran nothing")?,
            real,
            asked: AtomicUsize::new(0),
            since: Instant::now(),
        })
    }
    /// Copies of the listed program, under names of their own.
    fn more(&self, round: usize) -> Result<Vec<Entry>> {
        let names = (0..NEW).map(|n| format!("/tmp/{round}/a-program-of-some-name-{n}"));
        names
            .map(|name| Ok(Entry::file(self.program, EncodedPath::of(name.as_bytes())?)))
            .collect()
    }
    fn clock(&self) -> u64 {
        1_000_000 + self.since.elapsed().as_millis() as u64
    }
}

/// A key in the form that a TPM gives it.
struct Key {
    pair: EcdsaKeyPair,
    public: Public,
}

impl Key {
    fn attestation() -> Result<Self> {
        let template = aik_template();
        Self::with(&template[..template.len() - 4])
    }
    fn endorsement() -> Result<Self> {
        let template = ek_template();
        Self::with(&template[..template.len() - 68])
    }
    /// `head`: a TPMT_PUBLIC up to its point.
    fn with(head: &[u8]) -> Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let mut public = head.to_vec();
        for coordinate in pair.public_key().as_ref()[1..].chunks(32) {
            public.extend(sized(coordinate));
        }
        let public = Public::parse(&public)?;
        Ok(Self { pair, public })
    }
    /// TPMS_ATTEST of a quote, and TPMT_SIGNATURE (TPM 2.0 Library, part 2, 10.12.12 and 11.3.4).
    fn quote(
        &self,
        qd: &[u8; 32],
        pcrs: &[PcrIndex],
        values: &[[u8; 32]],
        (clock, reset, restart): (u64, u32, u32),
    ) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut attest = vec![0xff, b'T', b'C', b'G', 0x80, 0x18];
        attest.extend(sized(
            self.public.name().qualified_in_endorsement().as_bytes(),
        ));
        attest.extend(sized(qd));
        attest.extend(clock.to_be_bytes());
        attest.extend(reset.to_be_bytes());
        attest.extend(restart.to_be_bytes());
        attest.push(1);
        attest.extend(0x2019_1023_0016_3636_u64.to_be_bytes());
        let bits: u32 = pcrs.iter().map(|pcr| 1 << pcr.get()).sum();
        attest.extend([0, 0, 0, 1, 0, 0x0b, 3]);
        attest.extend(&bits.to_le_bytes()[..3]);
        attest.extend(sized(&Sha256::digest(values.concat())));
        let signature = self.pair.sign(&SystemRandom::new(), &attest)?;
        let mut signed = vec![0, 0x18, 0, 0x0b];
        for number in signature.as_ref().chunks(32) {
            signed.extend(sized(number));
        }
        Ok((attest, signed))
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

struct Container {
    id: ContainerId,
    ak: Key,
    ek: Public,
    record: Vec<u8>,
    /// As it is now, of the SHA-256 bank.
    values: Values,
    rounds: usize,
    /// Bytes of its log.
    length: usize,
}

struct Host {
    model: Arc<Model>,
    ak: Key,
    pcrs: HostPcrs,
    binding_log: Vec<u8>,
    link: Entry,
    containers: Vec<Container>,
}

impl Host {
    fn new(model: &Arc<Model>, number: usize) -> Result<Self> {
        let ak = Key::attestation()?;
        let link = Event::HostLink(HostLink {
            host_ak_name: ak.public.name(),
            host_reset: model.host.host_reset,
            host_boot: model.host.host_boot.clone(),
        });
        let link = link.to_entry()?;
        let (mut entries, mut containers): (Vec<LogEntry>, _) = (Vec::new(), Vec::new());
        for n in 0..PER_HOST {
            let (vtpm, ek) = (Key::attestation()?, Key::endorsement()?.public);
            let mut claim = model.claim.clone();
            claim.container = ContainerId::parse(&format!("sim-{number}-{n}"))?;
            claim.vtpm_ak_name = vtpm.public.name();
            claim.vtpm_ek_name = ek.name();
            let before = entries.last().map_or([0; 32], LogEntry::value);
            let part = HostPart {
                seq: n as u64,
                prev: hex::encode(before),
                host_ak_name: ak.public.name(),
                ..model.host.clone()
            };
            let record = Record::new(claim.clone(), part)?;
            let r = record.digest()?;
            entries.push(LogEntry::new(Kind::Bind, &claim.vtpm_ak_name, r));
            let mut values = Values::ZERO;
            let all = [std::slice::from_ref(&link), &model.log].concat();
            all.iter().for_each(|entry| values.add(entry));
            containers.push(Container {
                id: claim.container,
                ak: vtpm,
                ek,
                record: record.canonical()?,
                values,
                rounds: 0,
                length: all.iter().map(|entry| entry.encode().len()).sum(),
            });
        }
        let mut pcrs = model.real.host_pcrs.clone();
        pcrs.0[13] = replay([0; 32], &entries);
        let mut binding_log = Vec::new();
        for entry in entries {
            binding_log.extend(entry.line()?);
        }
        Ok(Self {
            model: model.clone(),
            ak,
            pcrs,
            binding_log,
            link,
            containers,
        })
    }

    /// Answers on `socket` until this process ends.
    fn serve(mut self, socket: &Path) -> Result<()> {
        let listener = UnixListener::bind(socket)?;
        let small = thread::Builder::new().stack_size(512 << 10);
        small.spawn(move || {
            loop {
                if let Err(error) = self.answer(&listener) {
                    eprintln!("a simulated host: {error:#}");
                }
            }
        })?;
        Ok(())
    }

    /// All that wait by the time when the TPM is ready, by one quote.
    fn answer(&mut self, listener: &UnixListener) -> Result<()> {
        let mut clients = vec![listener.accept()?.0];
        thread::sleep(SIGNING);
        listener.set_nonblocking(true)?;
        while let Ok((client, _)) = listener.accept() {
            client.set_nonblocking(false)?;
            clients.push(client);
        }
        listener.set_nonblocking(false)?;
        let (mut answers, mut leaves) = (Vec::new(), Vec::new());
        for client in &mut clients {
            let challenge = asked(client)?;
            let answer = self.container(&challenge)?;
            let (attest, sig) = (&answer.container_attest, &answer.container_sig);
            let covered = qualify::vtpm_quote_digest(attest, sig);
            let (nonce, id) = (&challenge.nonce, &challenge.container);
            let (channel, r) = (challenge.channel_binding.bytes(), answer.record_digest());
            leaves.push(qualify::host_leaf(nonce, id, &channel, &covered, &r));
            answers.push(answer);
        }
        let batch = Batch::of(leaves).context("a batch")?;
        let clock = (self.model.clock(), self.model.host.host_reset, 0);
        let (attest, sig) = self
            .ak
            .quote(&batch.root(), &HOST_QUOTED, &self.pcrs.0, clock)?;
        for (index, (mut client, answer)) in clients.into_iter().zip(answers).enumerate() {
            let evidence = Evidence {
                host_attest: attest.clone(),
                host_sig: sig.clone(),
                batch: batch.path(index).context("a path")?,
                ..answer
            };
            let body = evidence.encode();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/cmw+json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            client.write_all(head.as_bytes())?;
            client.write_all(&body)?;
            self.model.asked.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// The container ran more programs since it was asked last.
    fn container(&mut self, challenge: &Challenge) -> Result<Evidence> {
        let model = self.model.clone();
        let one = self
            .containers
            .iter_mut()
            .find(|one| one.id == challenge.container);
        let one = one.context("no such container")?;
        let more = model.more(one.rounds)?;
        more.iter().for_each(|entry| one.values.add(entry));
        one.rounds += 1;
        let new: Vec<u8> = more.iter().flat_map(Entry::encode).collect();
        let (mut log, mut from) = (new, LogFrom::default());
        match challenge.has.container {
            Some(prefix) => {
                ensure!(prefix.bytes == one.length as u64, "{prefix:?}");
                from.container = prefix.bytes;
                from.host = challenge.has.host.context("a binding log")?.bytes;
                ensure!(from.host == self.binding_log.len() as u64);
                from.siglist = challenge.has.siglist.is_some();
            }
            None => {
                let all = [std::slice::from_ref(&self.link), &model.log, &more].concat();
                log = all.iter().flat_map(Entry::encode).collect();
                one.length = 0;
            }
        }
        one.length += log.len();
        let real = &model.real;
        let qd = qualify::vtpm(
            &challenge.nonce,
            &challenge.container,
            &challenge.channel_binding.bytes(),
        );
        let claim = &model.claim;
        let clock = (model.clock(), claim.vtpm_reset, claim.vtpm_restart);
        let (attest, sig) = one.ak.quote(&qd, &QUOTED, &one.values.of(&QUOTED), clock)?;
        Ok(Evidence {
            host_ak: self.ak.public.to_2b(),
            host_pcrs: self.pcrs.clone(),
            container_attest: attest,
            container_sig: sig,
            container_ak: one.ak.public.to_2b(),
            container_ek: one.ek.to_2b(),
            log_from: from,
            binding: one.record.clone(),
            binding_log: match from.host {
                0 => self.binding_log.clone(),
                _ => Vec::new(),
            },
            host_ima: Vec::new(),
            container_log: log,
            siglist: if from.siglist {
                Vec::new()
            } else {
                real.siglist.clone()
            },
            siglist_sig: if from.siglist {
                Vec::new()
            } else {
                real.siglist_sig.clone()
            },
            ..real.clone()
        })
    }
}

/// The challenge in an HTTP request.
fn asked(client: &mut UnixStream) -> Result<Challenge> {
    let mut read = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = client.read(&mut part)?;
        ensure!(length > 0, "a request that ends early");
        read.extend(&part[..length]);
        let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let mut lines = head.lines();
        let announced = lines.find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = announced.context("no length")?.trim().parse()?;
        if let Some(body) = read[end + 4..].get(..length) {
            return Ok(Challenge::parse(body)?);
        }
    }
}
