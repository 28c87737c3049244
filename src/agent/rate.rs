//! Questions per challenger: each has a bucket of tokens that fills up again (a TPM signs a few quotes a
//! second, and whoever may ask could otherwise keep it busy for everybody else).

use crate::caller::Caller;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Questions that may come at once, as multiples of what a second allows: a fleet's round comes in one go.
const BURST_SECS: f64 = 10.0;
/// Challengers that are remembered; a full bucket is forgotten, since it is what a newcomer gets.
const REMEMBERED: usize = 4096;

pub struct Rate {
    per_sec: f64,
    buckets: Mutex<BTreeMap<Caller, Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rate {
    pub fn new(per_sec: u32) -> Self {
        Self {
            per_sec: per_sec.into(),
            buckets: Mutex::default(),
        }
    }

    /// Takes one token of `caller`; how long to wait if there is none.
    pub fn take(&self, caller: &Caller, now: Instant) -> Result<(), Duration> {
        let full = self.per_sec * BURST_SECS;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(caller) {
            buckets.retain(|_, bucket| bucket.filled(self.per_sec, now) < full);
        }
        let bucket = buckets.entry(caller.clone()).or_insert(Bucket {
            tokens: full,
            at: now,
        });
        bucket.tokens = bucket.filled(self.per_sec, now).min(full);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            let missing = (1.0 - bucket.tokens) / self.per_sec;
            return Err(Duration::from_secs_f64(missing));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

impl Bucket {
    fn filled(&self, per_sec: f64, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at);
        self.tokens + since.as_secs_f64() * per_sec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenger_who_asks_too_much_waits_and_nobody_else_does() {
        let (rate, start) = (Rate::new(2), Instant::now());
        let (one, two) = (Caller::User(1), Caller::User(2));
        for _ in 0..20 {
            assert_eq!(rate.take(&one, start), Ok(()));
        }
        let wait = rate.take(&one, start).unwrap_err();
        assert!(
            wait > Duration::ZERO && wait <= Duration::from_millis(500),
            "{wait:?}"
        );
        assert_eq!(rate.take(&two, start), Ok(()));
        assert_eq!(rate.take(&one, start + Duration::from_millis(501)), Ok(()));
        assert!(rate.take(&one, start + Duration::from_millis(502)).is_err());
        // A long rest gives no more than a full bucket.
        let later = start + Duration::from_secs(3600);
        let taken = (0..100).take_while(|_| rate.take(&one, later).is_ok());
        assert_eq!(taken.count(), 20);
    }
}
