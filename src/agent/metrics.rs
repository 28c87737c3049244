//! What the agent counts, as Prometheus reads it (text exposition format 0.0.4).

use std::{
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the buckets, in milliseconds: a software TPM's quote to a slow hardware one's queue.
const BUCKETS_MS: [u64; 8] = [5, 10, 25, 100, 250, 1000, 5000, 30000];

/// How a challenge ended; the labels of `attestrun_agent_challenges_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Evidence in clear text.
    Answered,
    /// Evidence with opaque entries.
    Opaque,
    /// The challenger's fault (4xx).
    Refused,
    /// Ours or the host service's (5xx).
    Failed,
    /// Over the limit of one challenger.
    Limited,
}

impl End {
    const ALL: [Self; 5] = [
        Self::Answered,
        Self::Opaque,
        Self::Refused,
        Self::Failed,
        Self::Limited,
    ];
    const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Opaque => "opaque",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Limited => "limited",
        }
    }
}

#[derive(Default)]
pub struct Metrics {
    ends: [AtomicU64; End::ALL.len()],
    times: Mutex<Times>,
    /// Connections turned away: too many at once, or no acceptable certificate.
    pub turned_away: AtomicU64,
}

/// Of the challenges that were answered.
#[derive(Default)]
struct Times {
    buckets: [u64; BUCKETS_MS.len()],
    sum: Duration,
    count: u64,
}

impl Metrics {
    pub fn challenge(&self, end: End, took: Duration) {
        if let Some(counter) = self.ends.get(end as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if !matches!(end, End::Answered | End::Opaque) {
            return;
        }
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.sum += took;
        times.count += 1;
        for (bucket, bound) in times.buckets.iter_mut().zip(BUCKETS_MS) {
            if took <= Duration::from_millis(bound) {
                *bucket += 1;
            }
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            // Writing to a String cannot fail; so below.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "attestrun_agent_challenges_total";
        head(&mut text, name, "counter", "Challenges by how they ended.");
        for (end, counter) in End::ALL.iter().zip(&self.ends) {
            let (end, n) = (end.label(), counter.load(Ordering::Relaxed));
            let _ = writeln!(text, "{name}{{end=\"{end}\"}} {n}");
        }
        let name = "attestrun_agent_turned_away_total";
        head(
            &mut text,
            name,
            "counter",
            "Connections that were not served.",
        );
        let _ = writeln!(text, "{name} {}", self.turned_away.load(Ordering::Relaxed));
        let name = "attestrun_agent_challenge_seconds";
        head(
            &mut text,
            name,
            "histogram",
            "From a challenge to its evidence.",
        );
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        for (n, bound) in times.buckets.iter().zip(BUCKETS_MS) {
            let bound = Duration::from_millis(bound).as_secs_f64();
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {n}");
        }
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", times.count);
        let _ = writeln!(text, "{name}_sum {}", times.sum.as_secs_f64());
        let _ = writeln!(text, "{name}_count {}", times.count);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        metrics.challenge(End::Answered, Duration::from_millis(7));
        metrics.challenge(End::Opaque, Duration::from_secs(60));
        metrics.challenge(End::Limited, Duration::from_millis(1));
        let text = metrics.text();
        for line in [
            "attestrun_agent_challenges_total{end=\"answered\"} 1",
            "attestrun_agent_challenges_total{end=\"opaque\"} 1",
            "attestrun_agent_challenges_total{end=\"limited\"} 1",
            "attestrun_agent_challenges_total{end=\"failed\"} 0",
            "attestrun_agent_challenge_seconds_bucket{le=\"0.005\"} 0",
            "attestrun_agent_challenge_seconds_bucket{le=\"0.01\"} 1",
            "attestrun_agent_challenge_seconds_bucket{le=\"30\"} 1",
            "attestrun_agent_challenge_seconds_bucket{le=\"+Inf\"} 2",
            "attestrun_agent_challenge_seconds_sum 60.007",
            "attestrun_agent_challenge_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
