//! Many clients that change the same streams under conditions, and retry when somebody was faster.

use quipu_client::{Client, Condition, Error, ExpectedRevision, Record};

use crate::process::Server;

const CLIENTS: usize = 100;
const STREAMS: usize = 10;
/// Of each client.
const INCREMENTS: usize = 10;

/// Appends behind the last revision of the key, whatever that is by the time; returns the revision and how often others were
/// faster.
async fn increment(client: &Client, key: &str, mut last: Option<u64>) -> (u64, usize) {
    for conflicts in 0.. {
        let expected = last.map_or(ExpectedRevision::NoStream, ExpectedRevision::Exact);
        let append = client.append_to("counters", [Record::keyed(key.to_owned(), "+1")]).unwrap();
        match append.require(Condition::revision("counters", key, expected)).send().await {
            Ok(appended) => return (appended[0].revisions[0], conflicts),
            Err(Error::ConditionFailed { failed, .. }) => last = failed[0].actual,
            Err(error) => panic!("{error:?}"),
        }
    }
    unreachable!("a loop without end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_that_increment_ten_streams_lose_none_and_repeat_none() {
    let server = Server::start();
    let client = server.client().await;
    client.create_topic("counters").await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        let client = server.client().await;
        tasks.push(tokio::spawn(async move {
            let (mut acknowledged, mut conflicts, mut last) = (Vec::new(), 0, [None; STREAMS]);
            for round in 0..INCREMENTS {
                let stream = (number + round) % STREAMS;
                let (revision, lost) = increment(&client, &format!("stream-{stream}"), last[stream]).await;
                last[stream] = Some(revision);
                acknowledged.push((stream, revision));
                conflicts += lost;
            }
            (acknowledged, conflicts)
        }));
    }
    let (mut acknowledged, mut conflicts) = (vec![Vec::new(); STREAMS], 0);
    for task in tasks {
        let (of_client, lost) = task.await.unwrap();
        conflicts += lost;
        of_client.into_iter().for_each(|(stream, revision)| acknowledged[stream].push(revision));
    }
    assert!(conflicts > CLIENTS, "nobody was in anybody's way: {conflicts} conflicts");
    for (number, mut revisions) in acknowledged.into_iter().enumerate() {
        revisions.sort_unstable();
        assert_eq!(revisions, (0..(CLIENTS * INCREMENTS / STREAMS) as u64).collect::<Vec<_>>());
        let stream = client.stream("counters", format!("stream-{number}")).await.unwrap().unwrap();
        assert_eq!(stream.last_revision, *revisions.last().unwrap());
        assert_eq!(stream.record_count, revisions.len() as u64);
    }
}
