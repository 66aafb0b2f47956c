//! Between the engine's types and those of the wire contract.

use std::time::Duration;

use quipu_proto::v1 as pb;
use quipu_storage::verify::{Finding, Severity, VerifyReport};
use quipu_storage::{
    Codec, Compaction, CompactionReport, Condition, Durability, ExpectedRevision, Offset, ProducerInfo,
    Record, Redaction, Retention, RetentionReason, RetentionReport, Revision, Storage, StoredRecord,
    StreamInfo, TopicName, TopicSettings, TopicStats, Uid,
};

use super::{Item, filter};
use crate::exit::{Failure, Result};
use crate::requirement::Requirement;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A condition for the engine.
pub(super) fn condition(requirement: &Requirement) -> Condition {
    match requirement {
        Requirement::Revision { key, expected } => {
            let expected = match expected {
                quipu_client::ExpectedRevision::Exact(revision) => {
                    ExpectedRevision::Exact(Revision(*revision))
                }
                quipu_client::ExpectedRevision::NoStream => ExpectedRevision::NoStream,
                quipu_client::ExpectedRevision::Exists => ExpectedRevision::Exists,
                quipu_client::ExpectedRevision::Any => ExpectedRevision::Any,
            };
            Condition::Revision { key: key.clone(), expected }
        }
        Requirement::NextOffset(offset) => Condition::NextOffset(Offset(*offset)),
        Requirement::NoMatch { filter, after } => {
            Condition::NoMatch { filter: filter::to_engine(filter), after_offset: after.map(Offset) }
        }
    }
}

/// A stream as the contract has it.
pub(super) fn stream(info: StreamInfo) -> pb::Stream {
    pb::Stream {
        key: info.key.into(),
        last_revision: info.head.last_revision.0,
        record_count: info.head.record_count,
        first_revision: info.head.first_revision.map(|revision| revision.0),
        last_offset: info.head.last_offset.map(|offset| offset.0),
    }
}

/// What the engine calls a durability.
pub(super) fn durability(durability: pb::Durability) -> Durability {
    match durability {
        pb::Durability::Accepted => Durability::Accepted,
        pb::Durability::Written => Durability::Written,
        pb::Durability::Synced | pb::Durability::Unspecified => Durability::Synced,
    }
}

/// A record for the engine. Ids are checked where they are read.
pub(super) fn record(record: pb::Record) -> Record {
    Record {
        id: record.id.and_then(|id| <[u8; 16]>::try_from(&id[..]).ok()),
        key: record.key.map(Into::into),
        record_type: record.r#type,
        tags: record.tags,
        headers: record.headers.into_iter().map(|header| (header.name, header.value.into())).collect(),
        content_type: record.content_type,
        payload: record.payload.map(Into::into),
        erasure_key: record.erasure_key,
    }
}

/// Settings as the contract has them: 0 and absent mean the default.
pub(super) fn settings_from(settings: &pb::TopicSettings) -> Result<TopicSettings> {
    let default = TopicSettings::default();
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let retention = settings.retention.unwrap_or_default();
    let codec = match settings.codec() {
        pb::Codec::Unspecified | pb::Codec::None => Codec::None,
        pb::Codec::Lz4 => Codec::Lz4,
        pb::Codec::Zstd => Codec::Zstd,
    };
    let settings = TopicSettings {
        storage: match &settings.memory {
            None => Storage::Disk,
            Some(memory) => Storage::Memory { bytes_max: memory.bytes_max },
        },
        segment_bytes_max: or(settings.segment_bytes_max, default.segment_bytes_max),
        segment_age_max: Duration::from_millis(or(
            settings.segment_age_max_ms,
            millis(default.segment_age_max),
        )),
        codec,
        retention: Retention {
            age_max: retention.age_max_ms.map(Duration::from_millis),
            bytes_max: retention.bytes_max,
            records_max: retention.records_max,
        },
        compaction: settings.compaction.as_ref().map(compaction_from),
    };
    settings.check().map_err(Failure::from)?;
    Ok(settings)
}

fn compaction_from(compaction: &pb::topic_settings::Compaction) -> Compaction {
    let default = Compaction::default();
    Compaction {
        records_per_key: compaction.records_per_key.unwrap_or(default.records_per_key),
        lag_min: compaction.lag_min_ms.map_or(default.lag_min, Duration::from_millis),
        tombstone_age_max: compaction
            .tombstone_age_max_ms
            .map_or(default.tombstone_age_max, Duration::from_millis),
        bytes_per_second_max: compaction.bytes_per_second_max.unwrap_or(default.bytes_per_second_max),
    }
}

/// Settings, all of them spelled out.
pub(super) fn settings_of(settings: &TopicSettings) -> pb::TopicSettings {
    let codec = match settings.codec {
        Codec::None => pb::Codec::None,
        Codec::Lz4 => pb::Codec::Lz4,
        Codec::Zstd => pb::Codec::Zstd,
    };
    pb::TopicSettings {
        memory: match settings.storage {
            Storage::Disk => None,
            Storage::Memory { bytes_max } => Some(pb::topic_settings::MemoryStorage { bytes_max }),
        },
        segment_bytes_max: settings.segment_bytes_max,
        segment_age_max_ms: millis(settings.segment_age_max),
        codec: codec.into(),
        retention: Some(pb::topic_settings::Retention {
            age_max_ms: settings.retention.age_max.map(millis),
            bytes_max: settings.retention.bytes_max,
            records_max: settings.retention.records_max,
        }),
        compaction: settings.compaction.as_ref().map(|compaction| pb::topic_settings::Compaction {
            records_per_key: Some(compaction.records_per_key),
            lag_min_ms: Some(millis(compaction.lag_min)),
            tombstone_age_max_ms: Some(millis(compaction.tombstone_age_max)),
            bytes_per_second_max: Some(compaction.bytes_per_second_max),
        }),
    }
}

/// A topic.
pub(super) fn topic(
    name: &TopicName,
    uid: Uid,
    settings: &TopicSettings,
    bounds: [Offset; 3],
    fencing_token: u64,
) -> pb::Topic {
    let [log_start, high_watermark, log_end] = bounds;
    pb::Topic {
        name: name.as_str().into(),
        uid: uid.0.to_vec().into(),
        settings: Some(settings_of(settings)),
        log_start_offset: log_start.0,
        high_watermark: high_watermark.0,
        log_end_offset: log_end.0,
        fencing_token,
    }
}

/// How far a producer is.
pub(super) fn producer(producer: ProducerInfo) -> pb::ProducerState {
    let ProducerInfo { name, epoch, last_sequence } = producer;
    pb::ProducerState { name, epoch, last_sequence }
}

/// What a topic holds and does.
pub(super) fn status(topic: pb::Topic, stats: &TopicStats) -> pb::GetTopicStatusResponse {
    pb::GetTopicStatusResponse {
        topic: Some(topic),
        last_append_time_ms: stats.last_append_time.0,
        segments: stats.segments,
        segment_bytes: stats.segment_bytes,
        tail_bytes: stats.tail_bytes,
        records_appended: stats.records_appended,
        bytes_appended: stats.bytes_appended,
        subscribers: 0,
        last_retention: stats.last_retention.as_ref().map(retention_report),
        last_compaction: stats.last_compaction.as_ref().map(compaction_report),
    }
}

fn retention_report(report: &RetentionReport) -> pb::RetentionReport {
    let reason = match report.reason {
        RetentionReason::Age => "age",
        RetentionReason::Bytes => "bytes",
        RetentionReason::Records => "records",
    };
    pb::RetentionReport {
        time_ms: report.time.0,
        from: report.from.0,
        to: report.to.0,
        reason: reason.into(),
    }
}

/// What a compaction did.
pub(super) fn compaction_report(report: &CompactionReport) -> pb::CompactionReport {
    let named = |counts: &[(&str, u64)]| {
        counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| ((*name).into(), *count)).collect()
    };
    let (removed, kept) = (&report.records_removed, &report.records_kept);
    pb::CompactionReport {
        time_ms: report.time.0,
        duration_ms: millis(report.duration),
        dry_run: report.is_dry_run,
        complete: report.is_complete,
        segments_before: report.segments_before,
        segments_after: report.segments_after,
        segments_replaced: report.segments_replaced,
        bytes_before: report.bytes_before,
        bytes_after: report.bytes_after,
        records_before: report.records_before,
        records_removed: named(&[
            ("superseded", removed.superseded),
            ("tombstone_expired", removed.tombstone_expired),
            ("trimmed", removed.trimmed),
        ]),
        records_kept: named(&[
            ("latest", kept.latest),
            ("no_key", kept.no_key),
            ("too_young", kept.too_young),
            ("tombstone_young", kept.tombstone_young),
            ("damaged", kept.damaged),
            ("not_reached", kept.not_reached),
        ]),
        keys: report.keys,
        payloads_erased: report.payloads_erased,
        payload_bytes_erased: report.payload_bytes_erased,
        damaged: report
            .damaged
            .iter()
            .map(|range| pb::Finding {
                severity: "unreadable".into(),
                from: Some(range.offsets.start.0),
                to: Some(range.offsets.end.0),
                path: range.path.display().to_string(),
                position: range.position.0,
                detail: range.detail.into(),
            })
            .collect(),
    }
}

/// What a verification found.
pub(super) fn verify_report(report: &VerifyReport) -> pb::VerifyReport {
    let checked = &report.checked;
    pb::VerifyReport {
        intact: report.is_intact(),
        readable: report.is_readable(),
        segments: checked.segments,
        batches: checked.batches + checked.journal_batches,
        records: checked.records,
        bytes: checked.bytes,
        findings: report.findings.iter().map(finding).collect(),
        findings_left_out: report.findings_left_out,
    }
}

fn finding(finding: &Finding) -> pb::Finding {
    let severity = match finding.severity {
        Severity::Foreign => "foreign",
        Severity::Redundant => "redundant",
        Severity::Unreadable => "unreadable",
    };
    pb::Finding {
        severity: severity.into(),
        from: finding.offsets.as_ref().map(|offsets| offsets.start.0),
        to: finding.offsets.as_ref().map(|offsets| offsets.end.0),
        path: finding.path.display().to_string(),
        position: finding.position.0,
        detail: finding.detail.clone(),
    }
}

/// A record as it is shown; key and payload share the memory of the batch.
pub(super) fn item(stored: &StoredRecord) -> Item {
    let view = stored.view();
    let shared = |bytes: &[u8]| stored.as_bytes().slice_ref(bytes);
    let record = pb::Record {
        id: view.id.map(|id| id.to_vec().into()),
        key: view.key.map(shared),
        r#type: view.record_type.into(),
        tags: view.tags().map(Into::into).collect(),
        headers: view
            .headers()
            .map(|(name, value)| pb::Header { name: name.into(), value: value.to_vec().into() })
            .collect(),
        content_type: view.content_type.into(),
        payload: view.payload.map(shared),
        erasure_key: view.erasure_key.map(Into::into),
        redacted: match view.redacted {
            None => 0,
            Some(Redaction::Erased) => pb::record::Redaction::Erased.into(),
            Some(Redaction::Locked) => pb::record::Redaction::Locked.into(),
        },
    };
    let revision = stored.revision().map(|revision| revision.0);
    Item { offset: stored.offset().0, append_time_ms: stored.append_time().0, revision, record }
}
