//! Settings of a bare log: plain data, each with its default, unit and bounds.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::batch::Codec;
use crate::settings::{duration_within, within};

/// Settings of a [`Log`](crate::Log), given at each opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A segment is sealed when its batches would take more than this many bytes. 64 MiB; 4 KiB to 4 GiB. Its file is
    /// allocated in full when it is begun, and so is the one after it.
    pub segment_bytes_max: u64,
    /// How long an append that did not ask for a sync may stay unsynced. 100 ms; 1 ms to 1 h.
    pub sync_interval: Duration,
    /// Most bytes of one append, encoded. 8 MiB; 1 KiB to 64 MiB.
    pub append_bytes_max: u64,
    /// Most records of one append. 100,000; 1 to 10,000,000.
    pub append_records_max: u64,
    /// Most segments that are kept mapped for reading. 4096; 8 to 60,000.
    pub maps_max: u64,
    /// How batches are compressed. Not at all.
    pub codec: Codec,
    /// Whether threads of the log sync and get the room for the next appends ready. `true`; with `false` nothing
    /// happens but what the caller asks for, which makes tests repeatable.
    pub background: bool,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 << 20,
            sync_interval: Duration::from_millis(100),
            append_bytes_max: 8 << 20,
            append_records_max: 100_000,
            maps_max: 4096,
            codec: Codec::None,
            background: true,
        }
    }
}

impl LogSettings {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] names the first setting that is out of its bounds;
    /// [`Error::CodecUnavailable`].
    pub fn check(&self) -> Result<()> {
        within("segment_bytes_max", self.segment_bytes_max, 4 << 10, 4 << 30)?;
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(3600));
        duration_within("sync_interval", self.sync_interval, least, most)?;
        within("append_bytes_max", self.append_bytes_max, 1 << 10, 64 << 20)?;
        within("append_records_max", self.append_records_max, 1, 10_000_000)?;
        within("maps_max", self.maps_max, 8, 60_000)?;
        if !self.codec.is_available() {
            return Err(Error::CodecUnavailable { codec: self.codec.name() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_bounds_and_others_are_named() {
        LogSettings::default().check().unwrap();
        let error = LogSettings { segment_bytes_max: 100, ..LogSettings::default() }.check().unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { setting: "segment_bytes_max", .. }), "{error}");
    }
}
