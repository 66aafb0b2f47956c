//! Latencies of single calls.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer than anything here may take.
const NANOS_MAX: u64 = 120_000_000_000;

/// A histogram of durations, exact to three digits from a nanosecond to two minutes.
#[derive(Clone, Debug)]
pub struct Latency {
    nanos: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Self {
        Self { nanos: Histogram::new_with_bounds(1, NANOS_MAX, 3).expect("the bounds are valid") }
    }
}

impl Latency {
    /// Adds one call.
    pub fn record(&mut self, elapsed: Duration) {
        self.nanos.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(NANOS_MAX));
    }

    /// Adds what another thread has counted.
    pub fn merge(&mut self, other: &Self) {
        self.nanos.add(&other.nanos).expect("all histograms here have the same bounds");
    }

    /// How many calls were counted.
    pub fn count(&self) -> u64 {
        self.nanos.len()
    }

    /// The given percentile, in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "two minutes of nanoseconds fit")]
    pub fn micros_at(&self, percentile: f64) -> f64 {
        self.nanos.value_at_percentile(percentile) as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_survive_a_merge() {
        let (mut low, mut high) = (Latency::default(), Latency::default());
        (1..=50).for_each(|micros| low.record(Duration::from_micros(micros)));
        (51..=100).for_each(|micros| high.record(Duration::from_micros(micros)));
        low.merge(&high);
        assert_eq!(low.count(), 100);
        assert!((low.micros_at(50.0) - 50.0).abs() < 0.1, "{}", low.micros_at(50.0));
        assert!((low.micros_at(99.0) - 99.0).abs() < 0.1, "{}", low.micros_at(99.0));
    }

    #[test]
    fn a_call_beyond_the_bounds_is_counted_at_the_bound() {
        let mut latency = Latency::default();
        latency.record(Duration::MAX);
        latency.record(Duration::ZERO);
        assert_eq!(latency.count(), 2);
    }
}
