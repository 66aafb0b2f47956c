//! A store in a few lines: open, append, read, follow.
//!
//! `cargo run -p quipu-storage --example embed`

use quipu_storage::{Record, Start, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;

    let store = Store::open(dir.path())?;
    let orders = store.topic_or_create("orders")?;

    // On the disk when this returns.
    orders.append(&[Record::keyed("order-7", "placed"), Record::keyed("order-7", "paid")])?;

    let read: Vec<_> = orders.read(Start::Earliest)?.collect::<Result<_, _>>()?;
    assert_eq!(read[1].payload(), Some(&b"paid"[..]));

    // Goes on where reading ends: each next record is waited for.
    let mut follower = orders.follow(Start::Latest)?;
    orders.append(&[Record::keyed("order-7", "shipped")])?;
    let shipped = follower.next().expect("a follower ends only when the store is closed")?;
    assert_eq!((shipped.offset().0, shipped.payload()), (2, Some(&b"shipped"[..])));

    store.close()?;
    Ok(())
}
