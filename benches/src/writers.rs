//! Many threads that append at once.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::latency::Latency;
use crate::row::Sample;

/// What the threads did together.
#[derive(Debug)]
pub struct Load {
    /// Calls of each writer, in the writers' order.
    pub calls: Vec<u64>,
    /// From the common start to the end of the last call.
    pub elapsed: Duration,
    /// Of single calls.
    pub latency: Latency,
}

impl Load {
    /// The load as a rate, with `records` in each call.
    pub fn sample(&self, records: u64) -> Sample {
        Sample::rate(self.calls.iter().sum::<u64>() * records, self.elapsed)
            .with_latency(self.latency.clone())
    }
}

/// Runs `count` writers for `time`. `make(writer)` builds, on the writer's own thread and before the clock
/// starts, what is then called with 0, 1, 2, ... until time is up.
pub fn run<W>(count: usize, time: Duration, make: impl Fn(usize) -> Result<W> + Sync) -> Result<Load>
where
    W: FnMut(u64) -> Result<()>,
{
    let barrier = Barrier::new(count);
    let writer = |index: usize| -> Result<(u64, Instant, Instant, Latency)> {
        // All meet at the barrier, also after a failure: the others would wait for ever.
        let made = make(index);
        barrier.wait();
        let mut call = made?;
        let start = Instant::now();
        let (mut calls, mut latency, mut before) = (0, Latency::default(), start);
        while before - start < time {
            call(calls)?;
            let after = Instant::now();
            latency.record(after - before);
            before = after;
            calls += 1;
        }
        Ok((calls, start, before, latency))
    };
    let results: Vec<Result<_>> = thread::scope(|scope| {
        let writer = &writer;
        let threads: Vec<_> = (0..count).map(|index| scope.spawn(move || writer(index))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a writer panicked"))))
            .collect()
    });

    let (mut calls, mut latency, mut span) = (Vec::new(), Latency::default(), None);
    for result in results {
        let (count, start, end, own) = result?;
        calls.push(count);
        latency.merge(&own);
        let (first, last) = span.unwrap_or((start, end));
        span = Some((first.min(start), last.max(end)));
    }
    let elapsed = span.map_or(Duration::ZERO, |(first, last)| last - first);
    Ok(Load { calls, elapsed, latency })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_call_is_counted_once() {
        let total = AtomicU64::new(0);
        let load = run(4, Duration::from_millis(20), |_| {
            Ok(|_| {
                total.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        })
        .unwrap();
        assert_eq!(load.calls.len(), 4);
        assert_eq!(load.calls.iter().sum::<u64>(), total.into_inner());
        assert_eq!(load.latency.count(), load.calls.iter().sum::<u64>());
        assert!(load.elapsed >= Duration::from_millis(20));
    }

    #[test]
    fn a_failing_writer_fails_the_load_and_blocks_nobody() {
        let load = run(3, Duration::from_millis(5), |writer| {
            anyhow::ensure!(writer != 1, "no writer {writer}");
            Ok(|_| Ok(()))
        });
        assert_eq!(load.unwrap_err().to_string(), "no writer 1");
    }
}
