//! Another process follows a topic while it is written. This one runs itself once more as the writer, and follows.
//!
//! `cargo run -p quipu-storage --example follow_from_another_process`

use std::env;
use std::path::Path;
use std::process::Command;

use quipu_storage::{Record, Start, Store};

const RECORDS: u64 = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match env::args_os().nth(1) {
        Some(dir) => Ok(write(Path::new(&dir))?),
        None => follow(),
    }
}

fn write(dir: &Path) -> quipu_storage::Result<()> {
    let store = Store::open(dir)?;
    let events = store.topic_or_create("events")?;
    for n in 0..RECORDS {
        events.append(&[Record::new(n.to_string())])?;
    }
    store.close()
}

fn follow() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    // A reader creates nothing: store and topic must be there.
    Store::open(dir.path())?.topic_or_create("events")?;

    // Takes no lock and writes nothing: any number of readers may follow, and the writer does not notice them.
    let store = Store::open_read_only(dir.path())?;
    let follower = store.topic("events")?.follow(Start::Earliest)?;

    let mut writer = Command::new(env::current_exe()?).arg(dir.path()).spawn()?;
    let mut next = 0;
    for record in follower.take(usize::try_from(RECORDS)?) {
        let record = record?;
        assert_eq!((record.offset().0, record.payload()), (next, Some(next.to_string().as_bytes())));
        next += 1;
    }
    assert_eq!(next, RECORDS);
    assert!(writer.wait()?.success());
    Ok(())
}
