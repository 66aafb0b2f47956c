//! One log without a store around it: for a program that wants one set of files and the least work per append.
//!
//! `cargo run -p quipu-storage --example bare_log`

use quipu_storage::{Durability, Log, Offset, Record, Start};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let log = Log::open(dir.path())?;

    // On the disk when this returns.
    log.append(&[Record::keyed("sensor-3", "21.5"), Record::keyed("sensor-3", "21.7")])?;

    // In the page cache when these return: they survive the death of the process, not yet a power cut. Nothing is
    // copied but the payload, once, to its place.
    for reading in ["21.8", "21.9", "22.0"] {
        log.append_payload(reading.as_bytes(), Durability::Written)?;
    }

    // One sync for all of them; the log does it by itself within `LogSettings::sync_interval` as well. Only then does a
    // reader see them, unless it asks for what is not synced by name.
    log.sync()?;
    let read: Vec<_> = log.read(Start::Earliest)?.collect::<Result<_, _>>()?;
    assert_eq!(read.len(), 5);
    assert_eq!(read[4].payload(), Some(&b"22.0"[..]));

    // Records before an offset are not needed any more; space comes back by whole segments.
    log.trim(Offset(2))?;
    assert_eq!(log.log_start_offset(), Offset(2));

    log.close()?;
    Ok(())
}
