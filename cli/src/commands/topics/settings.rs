//! A topic's settings on the command line.

use clap::Args;
use quipu_proto::v1 as pb;
use quipu_proto::v1::topic_settings::{Compaction, MemoryStorage};
use serde_json::{Value, json};

use crate::exit::{Failure, Result};
use crate::units::{OrNone, Size, Span};

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum CodecArg {
    None,
    Lz4,
    Zstd,
}

impl From<CodecArg> for pb::Codec {
    fn from(codec: CodecArg) -> Self {
        match codec {
            CodecArg::None => Self::None,
            CodecArg::Lz4 => Self::Lz4,
            CodecArg::Zstd => Self::Zstd,
        }
    }
}

pub(super) fn codec_name(codec: pb::Codec) -> &'static str {
    match codec {
        pb::Codec::Unspecified | pb::Codec::None => "none",
        pb::Codec::Lz4 => "lz4",
        pb::Codec::Zstd => "zstd",
    }
}

#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// Keep the records in memory only, at most so many bytes. A restart forgets them. 4KiB to 64GiB.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu topics alter orders --retention-bytes-max 10GiB --retention-age-max none
  quipu topics alter prices --no-compact")]
pub(super) struct AlterArgs {
    /// The topic.
    pub(super) topic: String,
    /// Compact keys no more.
    #[arg(long, conflicts_with_all = ["compact", "compaction_records_per_key", "compaction_lag_min",
        "compaction_tombstone_age_max", "compaction_bytes_per_second_max"])]
    no_compact: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// Seal a segment when it would grow beyond this. 64MiB; 4KiB to 4GiB.
    #[arg(long, value_name = "SIZE")]
    segment_bytes_max: Option<OrNone<Size>>,
    /// Seal a segment when its first record is older than this. 7d.
    #[arg(long, value_name = "DURATION")]
    segment_age_max: Option<OrNone<Span>>,
    #[cfg_attr(feature = "zstd", doc = "How batches are compressed. none. This build has lz4 and zstd.")]
    #[cfg_attr(
        not(feature = "zstd"),
        doc = "How batches are compressed. none. This build has lz4, and lacks zstd: for a server that has it."
    )]
    #[arg(long, value_enum)]
    codec: Option<CodecArg>,
    /// Records older than this may go. none.
    #[arg(long, value_name = "DURATION")]
    retention_age_max: Option<OrNone<Span>>,
    /// The oldest records go when the topic has more bytes. none.
    #[arg(long, value_name = "SIZE")]
    retention_bytes_max: Option<OrNone<Size>>,
    /// The oldest records go when the topic has more records. none.
    #[arg(long, value_name = "N")]
    retention_records_max: Option<OrNone<u64>>,
    /// Compact keys: of each key only the latest records stay.
    #[arg(long)]
    compact: bool,
    /// How many records of each key stay. 1; up to 1,000,000.
    #[arg(long, value_name = "N")]
    compaction_records_per_key: Option<OrNone<u32>>,
    /// Records younger than this are left alone. 0.
    #[arg(long, value_name = "DURATION")]
    compaction_lag_min: Option<OrNone<Span>>,
    /// How long a tombstone stays at least. 1d.
    #[arg(long, value_name = "DURATION")]
    compaction_tombstone_age_max: Option<OrNone<Span>>,
    /// Most bytes that compaction reads a second. 64MiB; 0: no limit.
    #[arg(long, value_name = "SIZE")]
    compaction_bytes_per_second_max: Option<OrNone<Size>>,
}

impl SettingsArgs {
    pub(super) fn settings(&self) -> pb::TopicSettings {
        let mut settings = pb::TopicSettings {
            memory: self.memory.map(|memory| MemoryStorage { bytes_max: memory.0 }),
            ..pb::TopicSettings::default()
        };
        self.common.change(&mut settings);
        settings
    }
}

impl AlterArgs {
    /// Changes what is named, and names it as the contract does.
    pub(super) fn change(&self, settings: &mut pb::TopicSettings) -> Result<Vec<&'static str>> {
        let is_compacted = settings.compaction.is_some();
        let mut paths = self.common.change(settings);
        if self.no_compact {
            settings.compaction = None;
            paths.push("compaction");
        }
        let names_compaction = paths.iter().any(|path| path.starts_with("compaction."));
        if names_compaction && !is_compacted && !self.common.compact {
            return Err(Failure::usage(
                "the topic is not compacted: add --compact to have it compacted from now on",
            ));
        }
        if names_compaction && !is_compacted {
            // Whoever gets only a part of what was absent as a whole need not guess.
            paths.retain(|path| !path.starts_with("compaction."));
        }
        Ok(paths)
    }
}

impl CommonArgs {
    fn change(&self, settings: &mut pb::TopicSettings) -> Vec<&'static str> {
        let mut paths = Vec::new();
        if let Some(size) = self.segment_bytes_max {
            settings.segment_bytes_max = size.value().map_or(0, |size| size.0);
            paths.push("segment_bytes_max");
        }
        if let Some(span) = self.segment_age_max {
            settings.segment_age_max_ms = span.value().map_or(0, Span::millis);
            paths.push("segment_age_max_ms");
        }
        if let Some(codec) = self.codec {
            settings.set_codec(codec.into());
            paths.push("codec");
        }
        let retention = settings.retention.get_or_insert_default();
        if let Some(span) = self.retention_age_max {
            retention.age_max_ms = span.value().map(Span::millis);
            paths.push("retention.age_max_ms");
        }
        if let Some(size) = self.retention_bytes_max {
            retention.bytes_max = size.value().map(|size| size.0);
            paths.push("retention.bytes_max");
        }
        if let Some(count) = self.retention_records_max {
            retention.records_max = count.value();
            paths.push("retention.records_max");
        }
        if self.compact && settings.compaction.is_none() {
            settings.compaction = Some(Compaction::default());
            paths.push("compaction");
        }
        self.change_compaction(settings, &mut paths);
        paths
    }

    fn change_compaction(&self, settings: &mut pb::TopicSettings, paths: &mut Vec<&'static str>) {
        if let Some(count) = self.compaction_records_per_key {
            settings.compaction.get_or_insert_default().records_per_key = count.value();
            paths.push("compaction.records_per_key");
        }
        if let Some(span) = self.compaction_lag_min {
            settings.compaction.get_or_insert_default().lag_min_ms = span.value().map(Span::millis);
            paths.push("compaction.lag_min_ms");
        }
        if let Some(span) = self.compaction_tombstone_age_max {
            settings.compaction.get_or_insert_default().tombstone_age_max_ms = span.value().map(Span::millis);
            paths.push("compaction.tombstone_age_max_ms");
        }
        if let Some(size) = self.compaction_bytes_per_second_max {
            settings.compaction.get_or_insert_default().bytes_per_second_max =
                size.value().map(|size| size.0);
            paths.push("compaction.bytes_per_second_max");
        }
    }
}

/// Settings as JSON, by the names of the contract.
pub(crate) fn settings_json(settings: &pb::TopicSettings) -> Value {
    let retention = settings.retention.unwrap_or_default();
    json!({
        "memory": settings.memory.as_ref().map(|memory| json!({"bytes_max": memory.bytes_max})),
        "segment_bytes_max": settings.segment_bytes_max,
        "segment_age_max_ms": settings.segment_age_max_ms,
        "codec": codec_name(settings.codec()),
        "retention": {
            "age_max_ms": retention.age_max_ms,
            "bytes_max": retention.bytes_max,
            "records_max": retention.records_max,
        },
        "compaction": settings.compaction.as_ref().map(|compaction| json!({
            "records_per_key": compaction.records_per_key,
            "lag_min_ms": compaction.lag_min_ms,
            "tombstone_age_max_ms": compaction.tombstone_age_max_ms,
            "bytes_per_second_max": compaction.bytes_per_second_max,
        })),
    })
}

/// The other way round. Absent and null mean the default.
pub(crate) fn settings_from_json(value: &Value) -> Result<pb::TopicSettings, String> {
    let number = |path: &str| {
        let found = value.pointer(path).filter(|value| !value.is_null());
        let number =
            found.map(|value| value.as_u64().ok_or_else(|| format!("setting {path} is no number: {value}")));
        number.transpose()
    };
    let object = |path: &str| value.pointer(path).is_some_and(Value::is_object);
    let codec = match value.pointer("/codec").and_then(Value::as_str) {
        None | Some("none") => pb::Codec::None,
        Some("lz4") => pb::Codec::Lz4,
        Some("zstd") => pb::Codec::Zstd,
        Some(name) => return Err(format!("there is no codec {name:?}")),
    };
    let small =
        |path: &str| number(path).map(|found| found.map(|number| u32::try_from(number).unwrap_or(u32::MAX)));
    Ok(pb::TopicSettings {
        memory: match object("/memory") {
            true => Some(MemoryStorage { bytes_max: number("/memory/bytes_max")?.unwrap_or(0) }),
            false => None,
        },
        segment_bytes_max: number("/segment_bytes_max")?.unwrap_or(0),
        segment_age_max_ms: number("/segment_age_max_ms")?.unwrap_or(0),
        codec: codec.into(),
        retention: Some(pb::topic_settings::Retention {
            age_max_ms: number("/retention/age_max_ms")?,
            bytes_max: number("/retention/bytes_max")?,
            records_max: number("/retention/records_max")?,
        }),
        compaction: match object("/compaction") {
            true => Some(Compaction {
                records_per_key: small("/compaction/records_per_key")?,
                lag_min_ms: number("/compaction/lag_min_ms")?,
                tombstone_age_max_ms: number("/compaction/tombstone_age_max_ms")?,
                bytes_per_second_max: number("/compaction/bytes_per_second_max")?,
            }),
            false => None,
        },
    })
}
