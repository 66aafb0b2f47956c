//! How often and how long the client tries again.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::ids::Random;

/// When to try again after an error that may pass: delays double from the first to the largest, each drawn at random
/// between half of it and all of it, so that clients that lost one server do not come back as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The first delay. 50 ms.
    pub delay_first: Duration,
    /// The largest delay. 2 s. A server that says how long to wait is obeyed beyond that, within `time_max`.
    pub delay_max: Duration,
    /// How long to go on without any success before the error is handed to the caller. 60 s. Zero: do not retry.
    pub time_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            delay_first: Duration::from_millis(50),
            delay_max: Duration::from_secs(2),
            time_max: Duration::from_secs(60),
        }
    }
}

impl Retry {
    /// Hands every error to the caller at once.
    pub const NEVER: Self =
        Self { delay_first: Duration::ZERO, delay_max: Duration::ZERO, time_max: Duration::ZERO };
}

/// One row of tries.
#[derive(Debug)]
pub(crate) struct Backoff {
    retry: Retry,
    random: Random,
    tries: u32,
    /// When the first try of the row failed.
    since: Option<Instant>,
}

impl Backoff {
    /// Nothing has failed yet.
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, random: Random::new(), tries: 0, since: None }
    }

    /// Something went well: what fails next is the first failure of a new row.
    pub(crate) fn succeeded(&mut self) {
        self.tries = 0;
        self.since = None;
    }

    /// Waits before the next try, or hands `error` back if it will not pass or has not passed for too long.
    pub(crate) async fn wait(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_transient() {
            return Err(error);
        }
        let Some(delay) = self.delay(Instant::now(), error.retry_after()) else { return Err(error) };
        tracing::debug!(%error, ?delay, tries = self.tries, "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// The next delay; `None` when the row has lasted too long.
    fn delay(&mut self, now: Instant, asked: Option<Duration>) -> Option<Duration> {
        let passed = now - *self.since.get_or_insert(now);
        let full = self.retry.delay_first.saturating_mul(1 << self.tries.min(20)).min(self.retry.delay_max);
        let share = self.random.next() % 1024;
        let delay = full.mul_f64(0.5 + share as f64 / 2048.0).max(asked.unwrap_or_default());
        self.tries += 1;
        (!self.retry.time_max.is_zero() && passed + delay <= self.retry.time_max).then_some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_their_bound_and_end_when_the_time_is_up() {
        let retry = Retry {
            delay_first: Duration::from_millis(100),
            delay_max: Duration::from_millis(1000),
            time_max: Duration::from_secs(10),
        };
        let mut backoff = Backoff::new(retry);
        let start = Instant::now();
        for full in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.delay(start, None).expect("in time");
            assert!(
                delay >= Duration::from_millis(full) / 2 && delay <= Duration::from_millis(full),
                "{delay:?}"
            );
        }
        assert_eq!(backoff.delay(start + Duration::from_secs(10), None), None);
        backoff.succeeded();
        assert!(backoff.delay(start + Duration::from_secs(10), None).is_some());
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it_within_the_bound() {
        let mut backoff = Backoff::new(Retry::default());
        let now = Instant::now();
        assert_eq!(backoff.delay(now, Some(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        assert_eq!(backoff.delay(now, Some(Duration::from_secs(61))), None);
    }

    #[test]
    fn never_means_never() {
        assert_eq!(Backoff::new(Retry::NEVER).delay(Instant::now(), Some(Duration::from_millis(1))), None);
    }
}
