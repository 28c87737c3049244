//! `attestctl watch`: challenges a fleet, round after round, and says what changed.
//!
//! Trusts: the fleet file and what it names. Each container is judged as by `attestctl challenge`, against
//! what was remembered before the round; what the round proved is written after it, in one piece.

mod fleet;
mod metrics;
mod state;

use crate::{
    agent::Problem,
    challenger, key,
    memory::{Learned, Recalled, Store},
    report::{Ending, Report, Style},
    sys,
};
use anyhow::Context as _;
use clap::Args;
use fleet::Member;
use metrics::{Metrics, Totals};
use serde_json::{Value, json};
use state::{Row, Rows, Word, changes};
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use verify::id::ContainerId;

/// How often an agent that asks for patience is asked again in one round.
const ATTEMPTS: usize = 3;

#[derive(Args)]
pub struct Watch {
    /// Which agents are asked about which containers (TOML)
    #[arg(long, value_name = "FILE")]
    fleet: PathBuf,
    /// Seconds from the beginning of one round to the next
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,
    /// By how many percent of it a round may begin earlier or later
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=50))]
    jitter: u64,
    /// Containers that are asked about at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    at_once: u64,
    /// End after so many rounds, with the last one's verdict [default: never]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Show every container after each round, not only those that are not accepted
    #[arg(long)]
    all: bool,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Write metrics into this file after each round
    #[arg(long, value_name = "FILE")]
    textfile: Option<PathBuf>,
    /// What earlier answers said; made if absent [default: the fleet file's name, ending in .memory]
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
}

/// What one container's turn gave.
struct Turn {
    place: (String, String),
    row: Row,
    learned: Option<Learned>,
    judging: Duration,
}

pub fn run(args: &Watch, style: Style, as_json: bool) -> anyhow::Result<Report> {
    let members = fleet::read(&args.fleet)?;
    let memory = args.memory.clone();
    let store = Store::open(&memory.unwrap_or_else(|| args.fleet.with_extension("memory")))?;
    let mut recalled = Recalled::load(&store.snapshot()?)?;
    let metrics = Metrics::new(args.listen, args.textfile.clone())?;
    let (mut rows, mut totals) = (Rows::new(), Totals::default());
    loop {
        let since = Instant::now();
        let turns = round(&members, &recalled, args)?;
        let judging: Duration = turns.iter().map(|turn| turn.judging).sum();
        let (mut now, mut learned) = (Rows::new(), Vec::new());
        for turn in turns {
            now.insert(turn.place, turn.row);
            learned.extend(turn.learned);
        }
        store.remember(&learned)?;
        learned.into_iter().for_each(|one| recalled.learn(one));
        let changed = changes(&rows, &now);
        totals.rounds += 1;
        totals.changes += changed.len() as u64;
        totals.judging += judging;
        totals.last_round = since.elapsed();
        let said: Vec<String> = match as_json {
            true => changed.iter().map(|one| one.json().to_string()).collect(),
            false => changed.iter().map(|one| one.line(style)).collect(),
        };
        rows = now;
        metrics.update(&totals, &rows)?;
        let summary = summary(&rows, &totals, members.len(), judging);
        args.tell(&said, &summary, &rows, style, as_json)?;
        if args.rounds.is_some_and(|rounds| totals.rounds >= rounds) {
            return Ok(report(&rows, &totals));
        }
        thread::sleep(pause(args)?.saturating_sub(since.elapsed()));
    }
}

/// The interval, or so.
fn pause(args: &Watch) -> anyhow::Result<Duration> {
    let interval = args.interval * 1000;
    let most = interval * args.jitter / 100;
    let random = u64::from_be_bytes(key::random()?) % (2 * most + 1);
    Ok(Duration::from_millis(interval - most + random))
}

/// Every container once, many at once; those of one agent after each other, so that one quote of the host
/// serves them.
fn round(members: &[Member], recalled: &Recalled, args: &Watch) -> anyhow::Result<Vec<Turn>> {
    let mut order: Vec<&Member> = members.iter().collect();
    shuffle(&mut order)?;
    let (turns, mut asked) = (Mutex::new(Vec::new()), Vec::new());
    let listed = at_once(args, &order, |member| (*member, member.containers()));
    for (member, containers) in listed {
        match containers {
            Ok(containers) => asked.extend(containers.into_iter().map(|id| (member, id))),
            Err(error) => locked(&turns).push(Turn {
                place: (member.name.clone(), "*".to_owned()),
                row: Row::silent(&error),
                learned: None,
                judging: Duration::ZERO,
            }),
        }
    }
    let answered = at_once(args, &asked, |(member, id)| turn(member, id, recalled));
    let mut turns = turns.into_inner().unwrap_or_else(PoisonError::into_inner);
    turns.extend(answered);
    Ok(turns)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `work` on each, by as many threads as are wanted.
fn at_once<T: Sync, R: Send>(args: &Watch, all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (
        AtomicUsize::new(0),
        Mutex::new(Vec::with_capacity(all.len())),
    );
    let threads = usize::try_from(args.at_once).unwrap_or(1).min(all.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(one);
                    locked(&done).push(result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Fisher and Yates: no agent is always the first.
fn shuffle<T>(all: &mut [T]) -> anyhow::Result<()> {
    for last in (1..all.len()).rev() {
        let random = u64::from_be_bytes(key::random()?) % (last as u64 + 1);
        all.swap(last, usize::try_from(random)?);
    }
    Ok(())
}

fn turn(member: &Member, container: &ContainerId, recalled: &Recalled) -> Turn {
    let mut judging = Duration::ZERO;
    let done = challenge(member, container, recalled, &mut judging);
    let (row, learned) = done.unwrap_or_else(|error| (Row::silent(&error), None));
    Turn {
        place: (member.name.clone(), container.as_str().to_owned()),
        row,
        learned,
        judging,
    }
}

fn challenge(
    member: &Member,
    container: &ContainerId,
    recalled: &Recalled,
    judging: &mut Duration,
) -> anyhow::Result<(Row, Option<Learned>)> {
    let standard = &member.standard;
    let kept = recalled.kept(&member.name, container.as_str());
    let (asked, bytes) =
        patiently(|| challenger::ask(&member.agent, container, true, kept.has(standard)))?;
    let since = sys::thread_time();
    let evidence = challenger::parse(&bytes, &member.name)?;
    let memory = recalled.memory(&kept, &evidence, standard.expect())?;
    let mut appraisal = challenger::judge(&evidence, &asked, standard, &[], &memory);
    let learned = appraisal.seen.take().map(|seen| {
        let (name, proved) = (member.name.clone(), (seen, appraisal.rolling.take()));
        Learned::new(name, container, standard.expect(), &evidence, &kept, proved)
    });
    let row = Row::of(&appraisal);
    *judging = sys::thread_time().saturating_sub(since);
    Ok((row, learned))
}

/// Again, after as long as an agent that is asked too often wants.
fn patiently<T>(ask: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for _ in 1..ATTEMPTS {
        let error = match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let problem = error.downcast_ref::<Problem>();
        match problem.and_then(|problem| problem.retry_after) {
            Some(wait) => thread::sleep(wait.min(Duration::from_secs(10))),
            None => return Err(error),
        }
    }
    ask()
}

fn summary(rows: &Rows, totals: &Totals, agents: usize, judging: Duration) -> Value {
    let count = |word: Word| rows.values().filter(|row| row.word == word).count();
    let mut object = json!({
        "event": "round",
        "round": totals.rounds,
        "agents": agents,
        "containers": rows.len(),
        "seconds": totals.last_round.as_secs_f64(),
        "judging_seconds": judging.as_secs_f64(),
    });
    for word in Word::ALL {
        object[word.name()] = json!(count(word));
    }
    object
}

impl Watch {
    fn tell(
        &self,
        changed: &[String],
        summary: &Value,
        rows: &Rows,
        style: Style,
        as_json: bool,
    ) -> anyhow::Result<()> {
        let mut lines = changed.to_vec();
        if as_json {
            lines.push(summary.to_string());
        } else {
            let shown = rows
                .iter()
                .filter(|(_, row)| self.all || row.word != Word::Accepted);
            let table = shown.map(|((agent, container), row)| row.line(agent, container, style));
            let head = style.bold(&format!("round {}", summary["round"]));
            let counts = Word::ALL.map(|word| format!("{} {}", summary[word.name()], word.name()));
            lines.push(format!(
                "{head}: {} containers on {} hosts: {}; {:.1} s",
                summary["containers"],
                summary["agents"],
                counts.join(", "),
                summary["seconds"].as_f64().unwrap_or_default()
            ));
            lines.extend(table.map(|line| format!("  {line}")));
        }
        let mut out = io::stdout().lock();
        for line in lines {
            writeln!(out, "{line}").context("writing what was found")?;
        }
        out.flush().context("writing what was found")
    }
}

/// Of the last round: refused if anybody is, unknown if anybody is or is silent.
fn report(rows: &Rows, totals: &Totals) -> Report {
    let any = |words: &[Word]| rows.values().any(|row| words.contains(&row.word));
    let ending = match () {
        () if any(&[Word::Refused]) => Ending::Refused,
        () if rows.is_empty() || any(&[Word::Unknown, Word::Silent]) => Ending::Unknown,
        () => Ending::Done,
    };
    let text = match ending {
        Ending::Done => "every container is accepted",
        Ending::Refused => "a container is refused",
        Ending::Unknown => "not every container could be judged",
    };
    Report {
        ending,
        text: text.to_owned(),
        json: json!({ "event": "end", "rounds": totals.rounds }),
    }
}
