//! A second thread follows a topic: it sees every record once, in order, as soon as it is on the disk.
//!
//! `cargo run -p quipu-storage --example follow_from_thread`

use std::thread;

use quipu_storage::{Record, Start, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path())?;
    let readings = store.topic_or_create("readings")?;

    let follower = readings.follow(Start::Earliest)?;
    let following = thread::spawn(move || {
        let mut sum = 0;
        for record in follower.take(100) {
            sum += u64::from(record?.payload().map_or(0, |payload| payload[0]));
        }
        Ok::<_, quipu_storage::Error>(sum)
    });

    for reading in 0..100_u8 {
        readings.append(&[Record::new(vec![reading])])?;
    }
    let sum = following.join().expect("the follower does not panic")?;
    assert_eq!(sum, (0..100).sum());

    store.close()?;
    Ok(())
}
