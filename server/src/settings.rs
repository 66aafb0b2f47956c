//! A topic's settings on the wire and in the engine.
//!
//! A setting is named by its path, as in a field mask: `retention.age_max_ms`. Each is copied by itself, so that an update
//! can name some of them and a complaint can name one.

use std::time::Duration;

use quipu_proto::v1 as pb;
use quipu_storage::{Codec, Compaction, Retention, Storage, TopicSettings};

use crate::error::Violations;

/// Every setting.
const PATHS: [&str; 11] = [
    "memory",
    "segment_bytes_max",
    "segment_age_max_ms",
    "codec",
    "retention.age_max_ms",
    "retention.bytes_max",
    "retention.records_max",
    "compaction.records_per_key",
    "compaction.lag_min_ms",
    "compaction.tombstone_age_max_ms",
    "compaction.bytes_per_second_max",
];

/// Paths in a mask.
const MASK_PATHS_MAX: usize = 64;

/// The settings of a new topic.
pub(crate) fn from_wire(wire: &pb::TopicSettings) -> Result<TopicSettings, Violations> {
    let mut settings = TopicSettings::default();
    apply(&mut settings, wire, &PATHS).map(|()| settings)
}

/// `settings` with what `mask` names changed to what `wire` says. An empty mask: all but where the records are.
pub(crate) fn update(
    settings: &TopicSettings,
    wire: &pb::TopicSettings,
    mask: &[String],
) -> Result<TopicSettings, Violations> {
    let mut changed = settings.clone();
    if mask.is_empty() || mask == ["*"] {
        let first = usize::from(wire.memory.is_none());
        if wire.compaction.is_none() {
            changed.compaction = None;
        }
        return apply(&mut changed, wire, &PATHS[first..]).map(|()| changed);
    }
    let mut violations = Violations::default();
    let mut paths = Vec::new();
    if mask.len() > MASK_PATHS_MAX {
        violations.add("update_mask.paths", format!("has at most {MASK_PATHS_MAX} paths"));
    }
    for name in mask.iter().take(MASK_PATHS_MAX) {
        let below = |path: &&str| {
            *path == name || path.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        let before = paths.len();
        paths.extend(PATHS.iter().filter(|path| below(path)).copied());
        if name == "memory.bytes_max" {
            paths.push("memory");
        }
        if paths.len() == before {
            violations.add("update_mask.paths", format!("{name:?} is no setting"));
        }
        if name == "compaction" && wire.compaction.is_none() {
            changed.compaction = None;
            paths.retain(|path| !path.starts_with("compaction."));
        }
    }
    // One after the other: what is wrong with the mask says nothing about the values.
    match apply(&mut changed, wire, &paths) {
        Err(mut found) => {
            found.append(violations);
            Err(found)
        }
        Ok(()) if violations.is_empty() => Ok(changed),
        Ok(()) => Err(violations),
    }
}

fn apply(settings: &mut TopicSettings, wire: &pb::TopicSettings, paths: &[&str]) -> Result<(), Violations> {
    let mut violations = Violations::default();
    for path in paths {
        // Alone, with all others at their defaults, so that a complaint is about this one.
        let mut alone = TopicSettings::default();
        let rule = match copy(&mut alone, wire, path) {
            Err(rule) => Some(rule),
            Ok(()) => match alone.check() {
                Ok(()) => None,
                Err(quipu_storage::Error::InvalidSetting { rule, .. }) => Some(format!("must be {rule}")),
                // The engine says so itself, as an error of its own: the request is fine, this build cannot do it.
                Err(quipu_storage::Error::CodecUnavailable { .. }) => None,
                Err(error) => Some(error.to_string()),
            },
        };
        match rule {
            Some(rule) => violations.add(format!("settings.{path}"), rule),
            None => copy(settings, wire, path).expect("it was fine a moment ago"),
        }
    }
    if !violations.is_empty() {
        return Err(violations);
    }
    match settings.check() {
        Err(quipu_storage::Error::InvalidSetting { setting, rule, .. }) => {
            violations.add(format!("settings.{setting}"), format!("must be {rule}"));
            Err(violations)
        }
        _ => Ok(()),
    }
}

/// Copies one setting, 0 and absent for its default.
fn copy(settings: &mut TopicSettings, wire: &pb::TopicSettings, path: &str) -> Result<(), String> {
    let defaults = TopicSettings::default();
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let retention = wire.retention.unwrap_or_default();
    if let Some(name) = path.strip_prefix("compaction.") {
        if wire.compaction.is_none() && settings.compaction.is_none() {
            return Ok(());
        }
        let given = wire.compaction.unwrap_or_default();
        let target = settings.compaction.get_or_insert_default();
        let default = Compaction::default();
        match name {
            "records_per_key" => {
                target.records_per_key =
                    given.records_per_key.filter(|count| *count > 0).unwrap_or(default.records_per_key);
            }
            "lag_min_ms" => target.lag_min = given.lag_min_ms.map_or(default.lag_min, Duration::from_millis),
            "tombstone_age_max_ms" => {
                target.tombstone_age_max =
                    given.tombstone_age_max_ms.map_or(default.tombstone_age_max, Duration::from_millis);
            }
            _ => {
                target.bytes_per_second_max =
                    given.bytes_per_second_max.unwrap_or(default.bytes_per_second_max);
            }
        }
        return Ok(());
    }
    match path {
        "memory" => {
            settings.storage =
                wire.memory.map_or(Storage::Disk, |memory| Storage::Memory { bytes_max: memory.bytes_max });
        }
        "segment_bytes_max" => {
            settings.segment_bytes_max = or(wire.segment_bytes_max, defaults.segment_bytes_max);
        }
        "segment_age_max_ms" => {
            settings.segment_age_max = match wire.segment_age_max_ms {
                0 => defaults.segment_age_max,
                ms => Duration::from_millis(ms),
            };
        }
        "codec" => {
            settings.codec = match pb::Codec::try_from(wire.codec) {
                Ok(pb::Codec::Unspecified | pb::Codec::None) => Codec::None,
                Ok(pb::Codec::Lz4) => Codec::Lz4,
                Ok(pb::Codec::Zstd) => Codec::Zstd,
                Err(_) => return Err(format!("{} is no codec", wire.codec)),
            };
        }
        "retention.age_max_ms" => {
            settings.retention.age_max = retention.age_max_ms.map(Duration::from_millis);
        }
        "retention.bytes_max" => settings.retention.bytes_max = retention.bytes_max,
        _ => settings.retention.records_max = retention.records_max,
    }
    Ok(())
}

/// Settings as they are told.
pub(crate) fn to_wire(settings: &TopicSettings) -> pb::TopicSettings {
    let Retention { age_max, bytes_max, records_max } = settings.retention;
    let compaction = settings.compaction.map(|compaction| pb::topic_settings::Compaction {
        records_per_key: Some(compaction.records_per_key),
        lag_min_ms: Some(ms(compaction.lag_min)),
        tombstone_age_max_ms: Some(ms(compaction.tombstone_age_max)),
        bytes_per_second_max: Some(compaction.bytes_per_second_max),
    });
    pb::TopicSettings {
        memory: match settings.storage {
            Storage::Disk => None,
            Storage::Memory { bytes_max } => Some(pb::topic_settings::MemoryStorage { bytes_max }),
        },
        segment_bytes_max: settings.segment_bytes_max,
        segment_age_max_ms: ms(settings.segment_age_max),
        codec: match settings.codec {
            Codec::None => pb::Codec::None,
            Codec::Lz4 => pb::Codec::Lz4,
            Codec::Zstd => pb::Codec::Zstd,
        }
        .into(),
        retention: Some(pb::topic_settings::Retention {
            age_max_ms: age_max.map(ms),
            bytes_max,
            records_max,
        }),
        compaction,
    }
}

pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retention(age: u64, bytes: u64) -> pb::TopicSettings {
        let retention = pb::topic_settings::Retention {
            age_max_ms: Some(age),
            bytes_max: Some(bytes),
            records_max: None,
        };
        pb::TopicSettings { retention: Some(retention), ..Default::default() }
    }

    #[test]
    fn settings_come_back_as_they_were() {
        let settings = TopicSettings {
            segment_bytes_max: 5000,
            codec: Codec::Lz4,
            compaction: Some(Compaction { records_per_key: 3, ..Compaction::default() }),
            ..TopicSettings::default()
        };
        assert_eq!(from_wire(&to_wire(&settings)).ok(), Some(settings));
        assert_eq!(from_wire(&pb::TopicSettings::default()).ok(), Some(TopicSettings::default()));
    }

    #[test]
    fn an_update_changes_what_its_mask_names_and_an_absent_value_is_the_default() {
        let before = from_wire(&retention(1000, 2000)).expect("valid");
        let mask = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        let age = update(&before, &retention(7, 8), &mask(&["retention.age_max_ms"])).expect("valid");
        assert_eq!(age.retention.age_max, Some(Duration::from_millis(7)));
        assert_eq!(age.retention.bytes_max, Some(2000));
        let none = update(&before, &pb::TopicSettings::default(), &mask(&["retention"])).expect("valid");
        assert_eq!(none.retention, Retention::default());
        let compacted = pb::TopicSettings { compaction: Some(Default::default()), ..Default::default() };
        let on = update(&before, &compacted, &mask(&["compaction"])).expect("valid");
        assert_eq!(on.compaction, Some(Compaction::default()));
        let off = update(&on, &pb::TopicSettings::default(), &mask(&["compaction"])).expect("valid");
        assert_eq!(off.compaction, None);
    }

    #[test]
    fn everything_that_is_wrong_is_named() {
        let mut wire = retention(0, 0);
        wire.segment_bytes_max = 1;
        wire.codec = 99;
        let status = from_wire(&wire).expect_err("invalid").finish().expect_err("invalid");
        for field in ["retention.age_max_ms", "retention.bytes_max", "segment_bytes_max", "codec"] {
            assert!(status.message().contains(field), "{field}: {}", status.message());
        }
    }
}
