//! B9: challenges per second of a hundred containers on a host whose TPM takes 200 ms to sign: one quote for
//! all that wait, beside one quote for each. The slow TPM is a proxy in front of the software root that holds
//! back every TPM2_Quote; everything else is the product: guards, host service, agent, sockets.

use crate::{
    attestation::{ours, up},
    bench::round,
    host::CONFIG,
    world::World,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};
use verify::evidence::Evidence;

const CONTAINERS: usize = 100;
const SIGNING: Duration = Duration::from_millis(200);
/// One by one, so many suffice to know the pace.
const ALONE: usize = 20;
const SLOW: u16 = 2331;
const CC_QUOTE: u32 = 0x158;
const AGENT: &str = "/run/attestrun-agent/challenge.sock";
const GOAL: f64 = 20.0;

pub fn b9(world: &World) -> Result<Value> {
    slow_tpm(SLOW, 2321, SIGNING)?;
    slow_tpm(SLOW + 1, 2322, Duration::ZERO)?;
    let config = fs::read_to_string(CONFIG)?;
    ensure!(config.contains("port=2321"), "B9 needs a software root");
    world.stop("attestrun-agent")?;
    world.stop("attestrun-host")?;
    fs::write(CONFIG, config.replace("port=2321", &format!("port={SLOW}")))?;
    world.start_services()?;
    let rt = ours(world)?;
    let bundles = (0..CONTAINERS)
        .map(|n| up(world, &rt, n))
        .collect::<Result<Vec<_>>>()?;
    let ids: Vec<&str> = bundles.iter().map(|bundle| bundle.id.as_str()).collect();
    let (alone, sizes) = round_of(&ids[..ALONE], false)?;
    ensure!(sizes.keys().eq([&1]), "one quote each: {sizes:?}");
    let mut together = Vec::new();
    let mut sizes = BTreeMap::new();
    for _ in 0..3 {
        // The agent's limit for one challenger fills up again.
        thread::sleep(Duration::from_secs(6));
        let (rate, seen) = round_of(&ids, true)?;
        together.push(rate);
        sizes = seen;
    }
    for bundle in &bundles {
        rt.down(bundle)?;
    }
    together.sort_by(f64::total_cmp);
    let ratio = together[1] / alone;
    Ok(json!({
        "id": "B9",
        "what": format!("challenges per second, {CONTAINERS} containers, TPM of {} ms: one quote for all that wait / one each", SIGNING.as_millis()),
        "value": round(ratio), "unit": "x", "goal": format!(">= {GOAL} x"), "met": ratio >= GOAL,
        "ours": { "per_second": together.iter().map(|r| round(*r)).collect::<Vec<_>>(),
                  "challenges_by_batch": sizes.iter().map(|(size, n)| (size.to_string(), json!(n))).collect::<serde_json::Map<_, _>>() },
        "anchor": { "per_second": round(alone) }, "runs": together.len(),
    }))
}

/// All containers asked at once: answers per second, and how many challenges came by a quote for so many.
fn round_of(ids: &[&str], batch: bool) -> Result<(f64, BTreeMap<u32, usize>)> {
    let since = Instant::now();
    let sizes = thread::scope(|scope| -> Result<Vec<u32>> {
        let asked: Vec<_> = ids
            .iter()
            .map(|id| scope.spawn(move || ask(id, batch)))
            .collect();
        let answers = asked
            .into_iter()
            .map(|one| one.join().expect("a challenger"));
        answers.collect()
    })?;
    let rate = ids.len() as f64 / since.elapsed().as_secs_f64();
    let mut by_size = BTreeMap::new();
    sizes
        .into_iter()
        .for_each(|size| *by_size.entry(size).or_insert(0) += 1);
    Ok((rate, by_size))
}

/// Size of the batch that answered.
fn ask(id: &str, batch: bool) -> Result<u32> {
    let mut nonce = [0; 20];
    fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    let body = json!({ "v": 1, "nonce": BASE64URL.encode(nonce), "container": id,
                       "channel_binding": "none", "batch": batch });
    let body = body.to_string();
    let mut stream = UnixStream::connect(AGENT)?;
    write!(
        stream,
        "POST /v1/challenge HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("no HTTP answer")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(Evidence::parse(&answer[end + 4..], answer.len())?
        .batch
        .size())
}

/// Passes TPM commands on to `port`, quotes after `delay`.
fn slow_tpm(listen: u16, port: u16, delay: Duration) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", listen))?;
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            let Ok(tpm) = TcpStream::connect(("127.0.0.1", port)) else {
                return;
            };
            let (Ok(mut back), Ok(mut answers)) = (client.try_clone(), tpm.try_clone()) else {
                return;
            };
            thread::spawn(move || {
                let _ = io::copy(&mut answers, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let _ = match delay.is_zero() {
                    true => io::copy(&mut &client, &mut &tpm).map(drop),
                    false => pass(&client, &tpm, delay),
                };
                let _ = tpm.shutdown(Shutdown::Both);
            });
        }
    });
    Ok(())
}

/// Command by command (TPM 2.0 Library, Part 1, "Command header": tag, size, code).
fn pass(mut client: &TcpStream, mut tpm: &TcpStream, delay: Duration) -> io::Result<()> {
    loop {
        let mut command = vec![0; 10];
        client.read_exact(&mut command)?;
        let word = |at: usize| {
            u32::from_be_bytes([
                command[at],
                command[at + 1],
                command[at + 2],
                command[at + 3],
            ])
        };
        let (size, code) = (word(2) as usize, word(6));
        command.resize(size.max(10), 0);
        client.read_exact(&mut command[10..])?;
        if code == CC_QUOTE {
            thread::sleep(delay);
        }
        tpm.write_all(&command)?;
    }
}
