//! Append sessions: in order, each record once, whatever happens to the connection.

use std::sync::atomic::Ordering;

use quipu_client::{AppendSession, Client, Durability, Error, Outcome, Record, Visibility};

use quipu_storage::{Append, Producer};

use crate::common::{PATIENCE, Server, client};
use crate::relay::Relay;

async fn payloads(client: &Client, topic: &str) -> Vec<String> {
    let mut records = client.read(topic).visibility(Visibility::Written).records().await.unwrap();
    let mut payloads = Vec::new();
    while let Some(record) = records.next().await {
        payloads.push(String::from_utf8(record.unwrap().payload().unwrap().to_vec()).unwrap());
    }
    payloads
}

async fn open(client: &Client, topic: &str, durability: Durability) -> AppendSession {
    client.append_session(topic).durability(durability).batch_bytes(2000).open().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_session_keep_their_order_and_tickets_know_their_offsets() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let session = open(&client, "t", Durability::Synced).await;
    let mut tickets = Vec::new();
    for n in 0..5000 {
        tickets.push(session.append(format!("{n}")).await.unwrap());
    }
    let together = session.append_all(["5000", "5001"]).await.unwrap();
    session.flush().await.unwrap();
    assert_eq!(session.buffered_bytes(), 0);
    for (n, ticket) in tickets.into_iter().enumerate() {
        let appended = ticket.wait().await.unwrap();
        assert_eq!((appended.first_offset, appended.next_offset), (n as u64, n as u64 + 1));
    }
    let appended = together.wait().await.unwrap();
    assert_eq!((appended.first_offset, appended.next_offset), (5000, 5002));
    session.close().await.unwrap();
    assert_eq!(payloads(&client, "t").await, (0..5002).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_connection_left_in_doubt_is_in_the_topic_once() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let straight = server.client().await;
    straight.create_topic("t").await.unwrap();
    // Others append between, so that offsets alone would not tell.
    let other = open(&straight, "t", Durability::Written).await;
    let mut expected = 0;
    for durability in [Durability::Synced, Durability::Written, Durability::Accepted] {
        let session = open(&client(relay.address).await, "t", durability).await;
        relay.bytes_max.store(40_000, Ordering::SeqCst);
        let mut tickets = Vec::new();
        for n in 0..4000 {
            drop(other.append("other").await.unwrap());
            tickets.push(session.append(format!("{}", expected + n)).await.unwrap());
            if n % 500 == 499 {
                relay.cut();
            }
        }
        let answered = async {
            for ticket in tickets {
                let appended = ticket.wait().await.unwrap();
                let record = straight.record("t", appended.first_offset).await;
                // A record that is not synced yet cannot be had by its offset.
                if let Ok(Some(record)) = record {
                    assert_eq!(record.payload().unwrap(), expected.to_string().as_bytes());
                }
                expected += 1;
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.unwrap();
        session.close().await.unwrap();
        relay.bytes_max.store(0, Ordering::SeqCst);
    }
    other.close().await.unwrap();
    assert!(relay.connections() > 8, "{}", relay.connections());
    let mine: Vec<String> = payloads(&straight, "t").await.into_iter().filter(|p| p != "other").collect();
    assert_eq!(mine, (0..12_000).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_behind_a_restart_of_the_server() {
    let mut server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let session = open(&client, "t", Durability::Synced).await;
    for round in 0..5 {
        for n in 0..200 {
            drop(session.append(format!("{}", round * 200 + n)).await.unwrap());
        }
        server = server.restart().await;
    }
    tokio::time::timeout(PATIENCE, session.close()).await.unwrap().unwrap();
    assert_eq!(payloads(&client, "t").await, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_beyond_a_bound_is_refused_and_the_session_goes_on() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let session = open(&client, "t", Durability::Synced).await;
    drop(session.append("1").await.unwrap());
    for bad in [Record::new(vec![0; 600 << 10]), Record::keyed(vec![0; 5000], "")] {
        assert!(matches!(session.append(bad).await, Err(Error::TooLarge { .. })));
    }
    drop(session.append("2").await.unwrap());
    session.close().await.unwrap();
    assert_eq!(payloads(&client, "t").await, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_ends_the_session_and_every_ticket_says_so() {
    let server = Server::start().await;
    let client = server.client().await;
    assert!(matches!(client.append_session("t").open().await, Err(Error::TopicNotFound { .. })));
    client.create_topic("t").await.unwrap();
    let session = open(&client, "t", Durability::Synced).await;
    session.append("1").await.unwrap().wait().await.unwrap();
    client.delete_topic("t").await.unwrap();
    let ticket = session.append("2").await.unwrap();
    let error = ticket.wait().await.unwrap_err();
    assert!(matches!(error, Error::TopicNotFound { .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(matches!(session.append("3").await, Err(Error::TopicNotFound { .. })));
    assert!(matches!(session.close().await, Err(Error::TopicNotFound { .. })));
}

/// Appended, and the answer lost: the client gets it on another stream, also if the record is gone by then.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_before_the_answer_was_lost_is_answered_and_not_there_twice() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let straight = server.client().await;
    straight.create_topic("t").await.unwrap();
    straight.append("t", ["another's"]).await.unwrap();
    let session = open(&client(relay.address).await, "t", Durability::Synced).await;
    for (end, is_trimmed) in [(2, false), (3, true)] {
        relay.hold_answers(true);
        let ticket = session.append("mine").await.unwrap();
        appended(&straight, end).await;
        if is_trimmed {
            straight.trim_topic("t", end).await.unwrap();
        }
        relay.cut();
        relay.hold_answers(false);
        let found = tokio::time::timeout(PATIENCE, ticket.wait()).await.unwrap().unwrap();
        assert_eq!((found.first_offset, found.next_offset), (end - 1, end));
        if !is_trimmed {
            assert_eq!(payloads(&straight, "t").await, ["another's", "mine"]);
        }
    }
    session.close().await.unwrap();
    assert_eq!(straight.bounds("t").await.unwrap().log_end_offset, 3);
}

/// What a lost stream still has on its way is a repeat only as long as the producer is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_forgets_its_producer_unless_it_has_lost_a_stream_or_was_given_it() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let straight = server.client().await;
    straight.create_topic("t").await.unwrap();
    let names = || server.store.producers(None, 10).into_iter().map(|found| found.name).collect::<Vec<_>>();
    let session = open(&client(relay.address).await, "t", Durability::Synced).await;
    session.append("1").await.unwrap().wait().await.unwrap();
    assert!(names()[0].starts_with('~'), "{:?}", names());
    session.close().await.unwrap();
    assert!(names().is_empty(), "{:?}", names());
    let session = straight.append_session("t").producer("named", 0, 0).open().await.unwrap();
    session.append("2").await.unwrap().wait().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(names(), ["named"]);
    let session = open(&client(relay.address).await, "t", Durability::Synced).await;
    relay.hold_answers(true);
    let ticket = session.append("3").await.unwrap();
    appended(&straight, 3).await;
    relay.cut();
    relay.hold_answers(false);
    tokio::time::timeout(PATIENCE, ticket.wait()).await.unwrap().unwrap();
    session.close().await.unwrap();
    assert_eq!(names().len(), 2, "{:?}", names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_producer_was_forgotten_goes_on_if_nothing_is_in_doubt_and_says_unknown_if_it_is() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let straight = server.client().await;
    straight.create_topic("t").await.unwrap();
    let session = open(&client(relay.address).await, "t", Durability::Synced).await;
    let forget = || {
        let name = &server.store.producers(None, 1)[0].name;
        server.store.forget_producer(name).unwrap();
    };
    for n in 0..3 {
        session.append(format!("{n}")).await.unwrap().wait().await.unwrap();
        forget();
    }
    session.append("3").await.unwrap().wait().await.unwrap();
    session.append("4").await.unwrap().wait().await.unwrap();
    relay.hold_answers(true);
    let ticket = session.append("5").await.unwrap();
    appended(&straight, 6).await;
    forget();
    relay.cut();
    relay.hold_answers(false);
    let error = tokio::time::timeout(PATIENCE, ticket.wait()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
    assert!(session.append("6").await.is_err(), "the session has ended");
    assert_eq!(payloads(&straight, "t").await, (0..6).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// A power cut takes what was answered and not to be synced, and all behind it: the server knows the producer, not so far.
/// Here the producer is set back by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_does_not_ask_for_the_sync_goes_on_when_a_power_cut_took_what_was_answered() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let straight = server.client().await;
    straight.create_topic("t").await.unwrap();
    let topic = server.store.topic("t").unwrap();
    for (durability, goes_on) in [(Durability::Written, true), (Durability::Synced, false)] {
        let begin = topic.log_end_offset().value();
        let session = open(&client(relay.address).await, "t", durability).await;
        for n in 0..3 {
            session.append(format!("{n}")).await.unwrap().wait().await.unwrap();
        }
        relay.hold_answers(true);
        let ticket = session.append("3").await.unwrap();
        appended(&straight, begin + 4).await;
        let named = server.store.producers(None, 1).remove(0);
        server.store.forget_producer(&named.name).unwrap();
        let first = Producer { name: named.name, epoch: named.epoch, sequence: 0 };
        let append = Append::new().records(&topic, &[quipu_storage::Record::new("0")]).unwrap();
        server.store.append(append.producer(first.clone())).unwrap();
        relay.cut();
        relay.hold_answers(false);
        let outcome = tokio::time::timeout(PATIENCE, ticket.wait()).await.unwrap();
        assert_eq!(outcome.is_ok(), goes_on, "{outcome:?}");
        if goes_on {
            session.append("4").await.unwrap().wait().await.unwrap();
            let found = straight.producer(&*first.name).await.unwrap().unwrap();
            assert_eq!((found.epoch, found.last_sequence), (1, 1));
        } else {
            // What was answered was synced: this is no power cut.
            assert!(matches!(outcome, Err(Error::Unknown { .. })), "{outcome:?}");
        }
        server.store.forget_producer(&first.name).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_session_is_taken_up_where_it_was_and_a_higher_epoch_shuts_it_out() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    assert_eq!(client.producer("importer").await.unwrap(), None);
    let named = async |epoch, next| {
        client.append_session("t").producer("importer", epoch, next).open().await.unwrap()
    };
    let first = named(3, 0).await;
    for n in 0..70 {
        drop(first.append_all([format!("{n}"), format!("{n}")]).await.unwrap());
    }
    first.flush().await.unwrap();
    let found = client.producer("importer").await.unwrap().unwrap();
    assert_eq!((found.epoch, found.last_sequence), (3, 69));
    // As one that does not know how far it was: from the beginning, or from where the server says it is.
    let second = named(3, 0).await;
    let mut tickets = Vec::new();
    for n in 0..72 {
        tickets.push(second.append_all([format!("{n}"), format!("{n}")]).await.unwrap());
    }
    for (n, ticket) in tickets.into_iter().enumerate() {
        match ticket.wait().await {
            Ok(appended) => assert_eq!(appended.first_offset, 2 * n as u64),
            Err(error) => assert!(matches!(error, Error::AppendedBefore) && n < 6, "{n} {error:?}"),
        }
    }
    let third = named(3, 72).await;
    assert_eq!(third.append("72").await.unwrap().wait().await.unwrap().first_offset, 144);
    let gap = named(3, 80).await.append("x").await.unwrap().wait().await.unwrap_err();
    assert!(matches!(gap, Error::SequenceGap { expected: 73, .. }), "{gap:?}");
    let reused = named(3, 72).await.append("y").await.unwrap().wait().await.unwrap_err();
    assert!(matches!(reused, Error::RequestIdReused { .. }), "{reused:?}");
    let higher = named(4, 0).await;
    higher.append("higher").await.unwrap().wait().await.unwrap();
    let fenced = third.append("z").await.unwrap().wait().await.unwrap_err();
    assert!(matches!(fenced, Error::ProducerFenced { current: 4, .. }), "{fenced:?}");
    let mut expected: Vec<_> = (0..72).flat_map(|n| [n.to_string(), n.to_string()]).collect();
    expected.extend(["72".to_owned(), "higher".to_owned()]);
    assert_eq!(payloads(&client, "t").await, expected);
    let listed = client.producers(5).await.unwrap();
    assert_eq!(listed.iter().filter(|found| !found.name.starts_with('~')).count(), 1);
    client.forget_producer("importer").await.unwrap();
    let missing = client.forget_producer("importer").await.unwrap_err();
    assert!(
        matches!(missing, Error::ProducerNotFound { ref producer } if producer == "importer"),
        "{missing:?}"
    );
}

/// Waits until the topic has records up to `end`.
async fn appended(client: &Client, end: u64) {
    let mut subscription = client.subscribe("t").send().await.unwrap();
    while subscription.next_offset() < Some(end) {
        tokio::time::timeout(PATIENCE, subscription.next()).await.unwrap().unwrap().unwrap();
    }
}
