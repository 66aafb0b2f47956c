//! A check of histories: writers and readers over several topics, while the server is killed again and again.
//!
//! Each writer numbers its records and notes the offset of each acknowledgement. Afterwards, for every reader of every
//! topic: offsets are dense; every acknowledged record is at its offset; of each writer each number came once, in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quipu_client::{Client, Event};

use crate::process::{PATIENCE, Server};

const WRITERS: usize = 8;
const READERS: usize = 4;
const TOPICS: usize = 3;
const KILLS: usize = 20;
/// Acknowledgements that must come between two kills, so that each kill meets work.
const ACKNOWLEDGED_BETWEEN: u64 = 300;

/// What a writer learned: the offset of each of its numbers.
type Acknowledged = Vec<u64>;
/// What a reader saw, by offset: who wrote it, and which number.
type Seen = Vec<(usize, u64)>;

fn topic(number: usize) -> String {
    format!("history/{number}")
}

/// Appends until `stop`, through one session for as long as that lasts.
async fn write(client: Client, writer: usize, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) -> Acknowledged {
    let session = client.append_session(topic(writer % TOPICS)).batch_bytes(1000).open().await.unwrap();
    let mut offsets = Vec::new();
    let mut tickets = std::collections::VecDeque::new();
    let mut number = 0_u64;
    loop {
        let is_stopping = stop.load(Ordering::SeqCst);
        if !is_stopping {
            tickets.push_back(session.append(format!("{writer} {number}")).await.unwrap());
            number += 1;
        }
        // Some are always under way.
        while tickets.len() > if is_stopping { 0 } else { 50 } {
            let appended = tickets.pop_front().unwrap().wait().await.unwrap();
            offsets.push(appended.first_offset);
            count.fetch_add(1, Ordering::SeqCst);
        }
        if is_stopping {
            session.close().await.unwrap();
            assert_eq!(offsets.len() as u64, number);
            return offsets;
        }
    }
}

/// Follows one topic until `end` says where it ends.
async fn read(client: Client, topic: String, mut end: tokio::sync::watch::Receiver<Option<u64>>) -> Seen {
    let mut subscription = client.subscribe(topic).send().await.unwrap();
    let mut seen = Vec::new();
    loop {
        if end.borrow().is_some_and(|end| seen.len() as u64 >= end) {
            return seen;
        }
        let event = tokio::select! {
            event = subscription.next() => event.unwrap().unwrap(),
            _ = end.changed() => continue,
        };
        match event {
            Event::Records(batch) => {
                for record in batch {
                    let record = record.unwrap();
                    assert_eq!(record.offset(), seen.len() as u64, "an offset is missing or came twice");
                    let text = std::str::from_utf8(record.payload().unwrap()).unwrap();
                    let (writer, number) = text.split_once(' ').unwrap();
                    seen.push((writer.parse().unwrap(), number.parse().unwrap()));
                }
            }
            Event::Gap(gap) => panic!("nothing was removed: {gap:?}"),
            _ => {}
        }
    }
}

fn check(seen: &Seen, topic: usize, acknowledged: &[Acknowledged]) {
    let mut next: HashMap<usize, u64> = HashMap::new();
    for (offset, (writer, number)) in seen.iter().enumerate() {
        assert_eq!(writer % TOPICS, topic, "writer {writer} at offset {offset}");
        let next = next.entry(*writer).or_default();
        assert_eq!(number, next, "writer {writer} at offset {offset}: twice, or out of order");
        assert_eq!(
            acknowledged[*writer].get(*number as usize),
            Some(&(offset as u64)),
            "acknowledged elsewhere"
        );
        *next += 1;
    }
    for (writer, offsets) in acknowledged.iter().enumerate().filter(|(writer, _)| writer % TOPICS == topic) {
        assert_eq!(
            next.get(&writer).copied().unwrap_or(0),
            offsets.len() as u64,
            "writer {writer}: records are lost"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_append_is_read_once_at_its_offset_over_twenty_kills() {
    let mut server = Server::start();
    let client = server.client().await;
    for number in 0..TOPICS {
        client.create_topic(topic(number)).await.unwrap();
    }
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        // A connection each.
        let client = server.client().await;
        writers.push(tokio::spawn(write(client, writer, Arc::clone(&stop), Arc::clone(&count))));
    }
    let ends: Vec<_> = (0..TOPICS).map(|_| tokio::sync::watch::Sender::new(None)).collect();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        for (number, end) in ends.iter().enumerate() {
            readers.push((number, tokio::spawn(read(server.client().await, topic(number), end.subscribe()))));
        }
    }
    let killing = async {
        let mut kills = 0;
        while kills < KILLS {
            let goal = count.load(Ordering::SeqCst) + ACKNOWLEDGED_BETWEEN;
            while count.load(Ordering::SeqCst) < goal {
                assert!(!writers.iter().any(tokio::task::JoinHandle::is_finished), "a writer has given up");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            tokio::task::block_in_place(|| server.kill_and_restart());
            kills += 1;
        }
        kills
    };
    let kills = tokio::time::timeout(PATIENCE, killing).await.expect("the writers go on");
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.push(tokio::time::timeout(PATIENCE, writer).await.expect("a writer ends").unwrap());
    }
    for (number, end) in ends.iter().enumerate() {
        let mine = acknowledged.iter().enumerate().filter(|(writer, _)| writer % TOPICS == number);
        end.send_replace(Some(mine.map(|(_, offsets)| offsets.len() as u64).sum()));
    }
    for (number, reader) in readers {
        let seen = tokio::time::timeout(PATIENCE, reader).await.expect("a reader ends").unwrap();
        check(&seen, number, &acknowledged);
        // Nobody appended what was never acknowledged.
        let bounds = client.bounds(topic(number)).await.unwrap();
        assert_eq!(bounds.log_end_offset, seen.len() as u64);
    }
    let total: u64 = acknowledged.iter().map(|offsets| offsets.len() as u64).sum();
    println!("{total} acknowledged appends, {kills} kills");
    assert!(kills >= KILLS && total >= KILLS as u64 * ACKNOWLEDGED_BETWEEN, "{total} {kills}");
}

#[test]
#[should_panic(expected = "records are lost")]
fn a_history_with_a_lost_record_is_found() {
    check(&vec![(0, 0)], 0, &[vec![0, 1]]);
}

#[test]
#[should_panic(expected = "twice, or out of order")]
fn a_history_with_a_record_that_came_twice_is_found() {
    check(&vec![(0, 0), (0, 0)], 0, &[vec![0]]);
}
