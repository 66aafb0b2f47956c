//! Looks at what is left of a golden log.

use std::path::Path;
use std::sync::Arc;

use quipu_storage::{Error, Log, LogSettings, Offset, Record, Start};
use quipu_tests::golden::Golden;
use quipu_tests::sim::SimDisk;

/// Opens and reads it forwards and backwards, appends, and does so again on what that has left.
pub fn look(disk: &SimDisk, root: &Path, golden: &Golden) {
    let settings = LogSettings {
        segment_bytes_max: 6000,
        append_bytes_max: 16 << 10,
        background: false,
        ..LogSettings::default()
    };
    let mut appended = Vec::new();
    for _ in 0..2 {
        let builder = Log::builder().settings(settings.clone()).disk(Arc::new(disk.clone())).create(false);
        let Ok(log) = builder.open(root) else { return };
        assert!(log.log_start_offset() <= log.high_watermark(), "the bounds are in order");
        assert_eq!(log.high_watermark(), log.log_end_offset(), "all that is found is synced");
        let mut last = None;
        for record in log.read(Start::Earliest).into_iter().flatten() {
            let record = match record {
                Ok(record) => record,
                Err(Error::Corrupt { .. } | Error::OffsetTrimmed { .. }) => continue,
                Err(_) => break,
            };
            assert!(last < Some(record.offset()), "offsets rise");
            last = Some(record.offset());
            let found = (record.offset().value(), record.append_time().0, record.view().to_record());
            // The log may begin before what it was trimmed to.
            let was_written = golden.topics["log"].contains(&found)
                || appended.contains(&found)
                || found.0 == 0 && found.2.key.as_deref() == Some(b"trimmed");
            assert!(was_written, "a record that was not written: {found:?}");
        }
        log.read_backwards(Offset::MAX).take(100).for_each(drop);
        let record = Record::new("appended");
        if let Ok(place) = log.append(std::slice::from_ref(&record)) {
            appended.push((place.first_offset.value(), place.append_time.0, record));
        }
        let _ = log.trim(Offset(log.log_start_offset().value() + 1));
        let _ = log.close();
    }
}
