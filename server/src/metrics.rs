//! What the engine and the server count, as OpenMetrics text. Collected when it is asked for; nothing is kept twice.
//!
//! Topics have metrics of their own up to a limit, in order of their names; the others are summed up as `(other)`, which
//! is no name that a topic can have.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use quipu_storage::{LatencyStats, StoreStats, TopicStats};

use crate::shared::{APPEND_BYTES, Shared, to_ms};

/// Upper bounds of latencies, in seconds.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Clock ticks of `/proc/self/stat` in a second, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes of a page in `/proc/self/statm`, as everywhere but on machines that are set up otherwise.
const PAGE_BYTES: u64 = 4096;

/// The metrics at this moment. Asks the disk how much is free.
pub(crate) fn encode(shared: &Arc<Shared>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot { shared: Arc::clone(shared) }));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => text,
        Err(_) => "# EOF\n".into(),
    }
}

#[derive(Debug)]
struct Snapshot {
    shared: Arc<Shared>,
}

/// Writes one metric after the other.
struct Out<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let encoder = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: u64) -> fmt::Result {
        let encoder = self.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
    }

    fn histogram(&mut self, name: &str, help: &str, latency: &LatencyStats) -> fmt::Result {
        let mut buckets: Vec<(f64, u64)> = SECONDS.iter().map(|bound| (*bound, 0)).collect();
        buckets.push((f64::MAX, 0));
        for (upper, count) in latency.buckets() {
            let seconds = upper.as_secs_f64();
            let place = SECONDS.partition_point(|bound| *bound < seconds);
            buckets[place].1 += count;
        }
        let mut encoder =
            self.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(latency.sum.as_secs_f64(), count, &buckets, None)
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out { encoder };
        let stats = self.shared.store.stats();
        engine(&mut out, &stats)?;
        self.server(&mut out)?;
        self.topics(&mut out)?;
        process(&mut out, to_ms(self.shared.started))
    }
}

fn engine(out: &mut Out<'_>, stats: &StoreStats) -> fmt::Result {
    for (name, help, value) in [
        ("quipu_appends", "Appends that were applied", stats.appends),
        ("quipu_appends_refused", "Appends that were refused", stats.appends_refused),
        ("quipu_append_records", "Records appended", stats.records_appended),
        ("quipu_append_bytes", "Bytes of appended batches as stored", stats.bytes_appended),
        ("quipu_syncs_shared", "Synced appends that shared the sync of another", stats.syncs_shared),
        ("quipu_read_batches", "Batches read from memory or segments", stats.batches_read),
        ("quipu_read_records", "Records in them", stats.records_read),
        ("quipu_read_bytes", "Bytes of them as stored", stats.bytes_read),
        (
            "quipu_read_redacted_records",
            "Records read whose payload is erased or locked",
            stats.records_redacted,
        ),
        ("quipu_damage_found", "How often a reader met damage", stats.damage_found),
        ("quipu_segments_created", "Segments created", stats.segments_created),
        ("quipu_segments_removed", "Segments removed", stats.segments_removed),
    ] {
        out.counter(name, help, value)?;
    }
    out.histogram(
        "quipu_append_duration",
        "From an append to its acknowledgement, of those that waited for a sync",
        &stats.append_latency,
    )?;
    out.histogram(
        "quipu_segment_read_duration",
        "Until a piece of a segment, up to 256 KiB or one batch, was in memory for a reader",
        &stats.read_latency,
    )?;
    out.histogram("quipu_sync_duration", "Syncs of the journal", &stats.sync_latency)?;
    out.histogram("quipu_checkpoint_duration", "Checkpoints", &stats.checkpoint_latency)?;
    let unsynced = stats.journal_position.value().saturating_sub(stats.synced_position.value());
    let behind = stats.journal_position.value().saturating_sub(stats.checkpoint_position.value());
    let bytes = || Some(Unit::Bytes);
    for (name, help, unit, value) in [
        ("quipu_topics", "Topics", None, stats.topics),
        ("quipu_segment", "All segments", bytes(), stats.segment_bytes),
        ("quipu_tail", "Records in memory that wait for their segments", bytes(), stats.tail_bytes),
        ("quipu_journal", "All journal files", bytes(), stats.journal_bytes),
        ("quipu_journal_files", "Journal files", None, stats.journal_files),
        ("quipu_journal_unsynced", "End of the journal that is not synced", bytes(), unsynced),
        ("quipu_journal_uncheckpointed", "End of the journal that no checkpoint covers", bytes(), behind),
        (
            "quipu_disk_full",
            "1: appends are refused because the disk is full",
            None,
            stats.is_disk_full.into(),
        ),
        ("quipu_store_failed", "1: the disk failed the store", None, stats.failure.is_some().into()),
    ] {
        out.gauge(name, help, unit, value)?;
    }
    if let Some(destroyed) = stats.erasure_keys_destroyed {
        out.gauge("quipu_erasure_keys_destroyed", "Erasure keys that were destroyed", None, destroyed)?;
    }
    match stats.disk_free_bytes {
        Some(free) => out.gauge("quipu_disk_free", "Free on the disk", Some(Unit::Bytes), free),
        None => Ok(()),
    }
}

impl Snapshot {
    fn server(&self, out: &mut Out<'_>) -> fmt::Result {
        let counters = &self.shared.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, counter) in [
            (
                "quipu_appends_overloaded",
                "Single appends refused because as much is on its way as may be",
                &counters.appends_overloaded,
            ),
            ("quipu_connections_accepted", "Connections accepted", &counters.connections_total),
            ("quipu_connections_refused", "Connections beyond the limit", &counters.connections_refused),
            (
                "quipu_connections_overdue",
                "Connections closed because nobody began in time or they had no calls for long",
                &counters.connections_overdue,
            ),
            ("quipu_requests", "Requests", &counters.requests),
            (
                "quipu_requests_refused",
                "Requests beyond a limit of the connection",
                &counters.requests_refused,
            ),
            ("quipu_sent_records", "Records sent to readers", &counters.records_sent),
            ("quipu_sent_bytes", "Bytes of records sent to readers", &counters.bytes_sent),
        ] {
            out.counter(name, help, value(counter))?;
        }
        for (name, help, counter) in [
            ("quipu_connections", "Connections that are open", &counters.connections),
            ("quipu_append_sessions", "Append sessions that are open", &counters.append_sessions),
            ("quipu_subscriptions", "Subscriptions that are open", &counters.subscriptions),
            ("quipu_reads", "Reads that are open", &counters.reads),
        ] {
            out.gauge(name, help, None, value(counter))?;
        }
        let budget = &self.shared.budget;
        let help = "Requests of appends that are on their way, single ones and those of sessions";
        out.gauge("quipu_append_in_flight", help, Some(Unit::Bytes), budget.in_flight())?;
        let help = "Append sessions that wait because as much is on its way as may be";
        out.gauge("quipu_append_sessions_waiting", help, None, budget.waiting())?;
        let bounds = APPEND_BYTES.iter().map(|bound| *bound as f64).chain([f64::MAX]);
        let sizes: Vec<_> = bounds.zip(counters.append_sizes.iter().map(value)).collect();
        let count = sizes.iter().map(|(_, count)| count).sum();
        let help = "Records of one append";
        let mut encoder = out.encoder.encode_descriptor(
            "quipu_append_size",
            help,
            Some(&Unit::Bytes),
            MetricType::Histogram,
        )?;
        let sum = value(&counters.append_sizes_sum) as f64;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &sizes, None)
    }

    fn topics(&self, out: &mut Out<'_>) -> fmt::Result {
        let mut lines: Vec<Line> = Vec::new();
        for (number, topic) in self.shared.store.topics().into_iter().enumerate() {
            let stats = topic.stats();
            let subscriptions = self.shared.subscriptions_of(topic.uid());
            let slowest = self.shared.slowest_of(topic.uid());
            let line = Line::new(&stats, subscriptions, slowest);
            if number < self.shared.config.metrics_topics_max {
                lines.push(line);
            } else if number == self.shared.config.metrics_topics_max {
                lines.push(Line { topic: "(other)".into(), ..line });
            } else if let Some(other) = lines.last_mut() {
                other.add(&line);
            }
        }
        for (number, (name, help, unit)) in TOPIC_COUNTERS.into_iter().enumerate() {
            let mut encoder =
                out.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for line in &lines {
                let labels = [("topic", line.topic.as_str())];
                ConstCounter::new(line.counters[number]).encode(encoder.encode_family(&labels)?)?;
            }
        }
        for (number, (name, help, unit)) in TOPIC_GAUGES.into_iter().enumerate() {
            let mut encoder = out.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for line in &lines {
                let labels = [("topic", line.topic.as_str())];
                let value = i64::try_from(line.gauges[number]).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

const TOPIC_COUNTERS: [(&str, &str, Option<Unit>); 2] = [
    ("quipu_topic_append_records", "Records appended to the topic", None),
    ("quipu_topic_append_bytes", "Bytes of their batches as stored", None),
];

const TOPIC_GAUGES: [(&str, &str, Option<Unit>); 10] = [
    ("quipu_topic_log_start_offset", "First offset that can be read", None),
    ("quipu_topic_high_watermark", "First offset that readers of synced records do not see yet", None),
    ("quipu_topic_log_end_offset", "Next offset to be assigned", None),
    ("quipu_topic_segments", "Segments", None),
    ("quipu_topic_segment", "Segments", Some(Unit::Bytes)),
    ("quipu_topic_tail", "Records in memory", Some(Unit::Bytes)),
    ("quipu_topic_subscriptions", "Subscriptions that are open", None),
    ("quipu_topic_subscription_lag_records", "Records that the slowest subscription has not been sent", None),
    ("quipu_topic_last_retention_timestamp", "When retention last removed something", Some(Unit::Seconds)),
    ("quipu_topic_last_compaction_timestamp", "When compaction last ran", Some(Unit::Seconds)),
];

/// The numbers of one topic, or of several.
#[derive(Debug)]
struct Line {
    topic: String,
    counters: [u64; 2],
    gauges: [u64; 10],
}

impl Line {
    fn new(stats: &TopicStats, subscriptions: u64, slowest: Option<u64>) -> Self {
        let end = stats.high_watermark.value();
        let seconds = |time: Option<u64>| time.unwrap_or(0) / 1000;
        Self {
            topic: stats.name.to_string(),
            counters: [stats.records_appended, stats.bytes_appended],
            gauges: [
                stats.log_start_offset.value(),
                end,
                stats.log_end_offset.value(),
                stats.segments,
                stats.segment_bytes,
                stats.tail_bytes,
                subscriptions,
                slowest.map_or(0, |next| end.saturating_sub(next)),
                seconds(stats.last_retention.as_ref().map(|report| report.time.value())),
                seconds(stats.last_compaction.as_ref().map(|report| report.time.value())),
            ],
        }
    }

    fn add(&mut self, other: &Self) {
        let sum = |ours: &mut [u64], theirs: &[u64]| {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours = ours.saturating_add(*theirs));
        };
        sum(&mut self.counters, &other.counters);
        sum(&mut self.gauges[..8], &other.gauges[..8]);
        for (ours, theirs) in self.gauges[8..].iter_mut().zip(&other.gauges[8..]) {
            *ours = (*ours).max(*theirs);
        }
    }
}

/// What every process tells under these names. Nothing where there is no `/proc`.
fn process(out: &mut Out<'_>, start_ms: u64) -> fmt::Result {
    out.gauge(
        "process_start_time",
        "When the process started, as far as the server knows",
        Some(Unit::Seconds),
        start_ms / 1000,
    )?;
    let resident = std::fs::read_to_string("/proc/self/statm").ok();
    if let Some(pages) = resident.as_deref().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()) {
        out.gauge("process_resident_memory", "Resident memory", Some(Unit::Bytes), pages * PAGE_BYTES)?;
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        out.gauge("process_open_fds", "Open file descriptors", None, open.count() as u64)?;
    }
    let Some(cpu) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_time(&stat)) else {
        return Ok(());
    };
    let (help, unit) = ("Processor time used", Unit::Seconds);
    let encoder = out.encoder.encode_descriptor("process_cpu", help, Some(&unit), MetricType::Counter)?;
    ConstCounter::new(cpu.as_secs_f64()).encode(encoder)
}

/// User and system time of a line of `/proc/self/stat`. The name of the program, in parentheses, may hold anything.
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, behind) = stat.rsplit_once(") ")?;
    let mut fields = behind.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_whatever_the_program_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 4 0 100 1000 10";
        assert_eq!(cpu_time(stat), Some(Duration::from_secs(4)));
        assert_eq!(cpu_time("nonsense"), None);
    }
}
