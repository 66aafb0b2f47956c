//! Calls that are answered once: topics, appends, reads, errors.

use quipu_client::{
    CompactOptions, Durability, Error, Filter, Outcome, ReadEvent, Record, Retry, Start, Visibility, v1,
};

use crate::common::Server;

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_listed_changed_trimmed_looked_after_and_deleted() {
    let server = Server::start().await;
    let client = server.client().await;
    for name in ["a", "b/1", "b/2"] {
        assert_eq!(client.create_topic(name).await.unwrap().name, name);
    }
    assert!(matches!(client.create_topic("a").await, Err(Error::TopicExists { topic }) if topic == "a"));
    assert_eq!(client.topic_or_create("a").await.unwrap().name, "a");
    let names = async |prefix: &str, most| {
        let topics = client.topics(prefix, most).await.unwrap();
        topics.into_iter().map(|topic| topic.name).collect::<Vec<_>>()
    };
    assert_eq!(names("", 10).await, ["a", "b/1", "b/2"]);
    assert_eq!(names("b/", 1).await, ["b/1"]);
    let settings = v1::TopicSettings {
        segment_bytes_max: 8192,
        compaction: Some(v1::topic_settings::Compaction::default()),
        ..Default::default()
    };
    let fields = ["segment_bytes_max", "compaction"];
    let changed = client.update_topic("a", settings, fields).await.unwrap();
    assert_eq!(changed.settings.unwrap().segment_bytes_max, 8192);
    client.append("a", ["1", "2", "3"]).await.unwrap();
    assert_eq!(client.trim_topic("a", 2).await.unwrap(), 2);
    assert_eq!(client.bounds("a").await.unwrap().log_start_offset, 2);
    assert_eq!(client.topic_status("a").await.unwrap().records_appended, 3);
    let dry = CompactOptions { dry_run: true, ..CompactOptions::default() };
    assert!(client.compact_topic("a", dry).await.unwrap().report().await.unwrap().dry_run);
    assert!(client.verify_topic("a").await.unwrap().report().await.unwrap().intact);
    client.delete_topic("a").await.unwrap();
    assert!(matches!(client.topic("a").await, Err(Error::TopicNotFound { topic }) if topic == "a"));
    let status = client.server_status().await.unwrap();
    assert_eq!((status.topics, status.state()), (2, v1::get_server_status_response::State::Serving));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_over_topics_is_answered_for_each_and_read_back_as_it_was() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("a").await.unwrap();
    client.create_topic("b").await.unwrap();
    let record = Record::keyed("k", "v")
        .with_id([5; 16])
        .with_type("t")
        .with_tag("x")
        .with_header("h", "w")
        .with_content_type("text/plain");
    let append = client.append_to("a", [record.clone()]).unwrap().and("b", ["1", "2"]).unwrap();
    let checked = append.clone().validate_only().send().await.unwrap();
    assert!(checked.is_empty());
    let appended = append.durability(Durability::Synced).send().await.unwrap();
    assert_eq!(
        appended.iter().map(|one| (one.first_offset, one.next_offset)).collect::<Vec<_>>(),
        [(0, 1), (0, 2)]
    );
    let stored = client.record("a", 0).await.unwrap().unwrap();
    assert_eq!((stored.to_record(), stored.append_time_ms()), (record.clone(), appended[0].append_time_ms));
    let mut records = client.read("a").visibility(Visibility::Written).records().await.unwrap();
    assert_eq!(records.next().await.unwrap().unwrap().to_record(), record);
    assert!(records.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_forwards_backwards_by_filter_and_to_their_bounds() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let all: Vec<Record> = (0..2000).map(|n| Record::keyed(format!("{}", n % 10), format!("{n}"))).collect();
    for some in all.chunks(150) {
        client.append("t", some.to_vec()).await.unwrap();
    }
    let offsets = async |read: quipu_client::Read| {
        let (mut offsets, mut reading) = (Vec::new(), read.send().await.unwrap());
        loop {
            match reading.next().await.unwrap().unwrap() {
                ReadEvent::Records(batch) => offsets.extend(batch.iter().map(|record| {
                    let record = record.unwrap();
                    assert_eq!(record.payload().unwrap(), record.offset().to_string().as_bytes());
                    record.offset()
                })),
                ReadEvent::Gap(gap) => panic!("{gap:?}"),
                ReadEvent::End(_) => break,
            }
        }
        assert!(reading.next().await.is_none());
        offsets
    };
    assert_eq!(offsets(client.read("t")).await, (0..2000).collect::<Vec<_>>());
    let backwards = client.read("t").backwards().start(Start::Offset(500)).until_offset(480);
    assert_eq!(offsets(backwards).await, (480..=500).rev().collect::<Vec<_>>());
    let filter = Filter { keys: vec!["7".into()], ..Filter::default() };
    let filtered = client.read("t").filter(filter).start(Start::Offset(100)).until_offset(150);
    assert_eq!(offsets(filtered).await, [107, 117, 127, 137, 147]);
    assert_eq!(offsets(client.read("t").start(Start::Last(3)).records_max(2)).await, [1997, 1998]);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_why_and_whether_anything_was_applied() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    client.append("t", ["1", "2", "3"]).await.unwrap();
    client.trim_topic("t", 2).await.unwrap();
    let errors = [
        client.append("missing", ["1"]).await.unwrap_err(),
        client.append("t", [vec![0_u8; 600 << 10]]).await.unwrap_err(),
        client.append("bad name!", ["1"]).await.unwrap_err(),
        client.append::<Record>("t", []).await.unwrap_err(),
        client.record("t", 0).await.unwrap_err(),
        client.record("t", 99).await.unwrap_err(),
        client.read("t").start(Start::Offset(99)).records().await.unwrap_err(),
    ];
    assert!(errors.iter().all(|error| error.outcome() == Outcome::NotApplied), "{errors:?}");
    let [missing, large, name, none, trimmed, unwritten, beyond] = errors;
    assert!(matches!(missing, Error::TopicNotFound { .. }), "{missing:?}");
    assert!(matches!(large, Error::TooLarge { limit: Some(524_288), .. }), "{large:?}");
    assert!(
        matches!(&name, Error::Invalid { violations, .. } if violations[0].field == "appends[0].topic"),
        "{name:?}"
    );
    assert!(matches!(none, Error::Invalid { .. }), "{none:?}");
    assert!(matches!(trimmed, Error::OffsetTrimmed { earliest: 2, .. }), "{trimmed:?}");
    assert!(matches!(unwritten, Error::OffsetUnwritten { next_offset: 3, .. }), "{unwritten:?}");
    assert!(matches!(beyond, Error::OffsetUnwritten { next_offset: 3, .. }), "{beyond:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_listens_an_append_is_certainly_not_applied() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = quipu_client::Client::builder(&url).retry(Retry::NEVER).connect_lazy().unwrap();
    let error = client.append("t", ["1"]).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_answer_was_lost_is_made_again_and_is_there_once() {
    let server = Server::start().await;
    let relay = crate::relay::Relay::start(server.address).await;
    let (straight, client) = (server.client().await, crate::common::client(relay.address).await);
    straight.create_topic("t").await.unwrap();
    for n in 0..10 {
        relay.hold_answers(true);
        let append = client.append_to("t", [Record::keyed("k", format!("{n}"))]).unwrap();
        let append = append.require(quipu_client::Condition::next_offset("t", n));
        let append = tokio::spawn(append.send());
        let mut subscription = straight.subscribe("t").send().await.unwrap();
        while subscription.next_offset() < Some(n + 1) {
            tokio::time::timeout(crate::common::PATIENCE, subscription.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
        }
        relay.cut();
        relay.hold_answers(false);
        let appended = append.await.unwrap().unwrap().remove(0);
        assert_eq!((appended.first_offset, &appended.revisions[..]), (n, &[n][..]));
        assert!(appended.is_duplicate);
    }
    assert_eq!(straight.bounds("t").await.unwrap().log_end_offset, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_last_try_met_says_nothing_about_an_earlier_one_whose_answer_was_lost() {
    let server = Server::start().await;
    let relay = crate::relay::Relay::start(server.address).await;
    let (straight, client) = (server.client().await, crate::common::client(relay.address).await);
    straight.create_topic("t").await.unwrap();
    relay.hold_answers(true);
    let append = tokio::spawn(client.append_to("t", ["x"]).unwrap().send());
    let mut subscription = straight.subscribe("t").send().await.unwrap();
    while subscription.next_offset() < Some(1) {
        tokio::time::timeout(crate::common::PATIENCE, subscription.next()).await.unwrap().unwrap().unwrap();
    }
    straight.delete_topic("t").await.unwrap();
    relay.cut();
    relay.hold_answers(false);
    let error = append.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    let Error::Unknown { cause } = error else { panic!("{error:?}") };
    assert!(matches!(*cause, Error::TopicNotFound { .. }), "{cause:?}");
}

/// A call that says what is to be is made again; that none of it had happened was said although the first try had done it.
#[tokio::test(flavor = "multi_thread")]
async fn a_trim_whose_answer_was_lost_may_have_happened_whatever_a_later_try_meets() {
    let server = Server::start().await;
    let relay = crate::relay::Relay::start(server.address).await;
    let (straight, client) = (server.client().await, crate::common::client(relay.address).await);
    straight.create_topic("t").await.unwrap();
    straight.append("t", ["x", "y"]).await.unwrap();
    relay.hold_answers(true);
    let trim = tokio::spawn(async move { client.trim_topic("t", 1).await });
    let topic = server.store.topic("t").unwrap();
    while topic.log_start_offset().value() < 1 {
        tokio::task::yield_now().await;
    }
    straight.delete_topic("t").await.unwrap();
    relay.cut();
    relay.hold_answers(false);
    let error = trim.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_producers_and_fencing_tokens_are_those_of_the_server() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let one = || client.append_to("t", ["x"]).unwrap();
    let is_duplicate =
        async |append: quipu_client::Append| append.send().await.unwrap().remove(0).is_duplicate;
    assert_eq!([is_duplicate(one()).await, is_duplicate(one()).await], [false; 2], "ids of their own");
    for expected in [false, true] {
        assert_eq!(is_duplicate(one().request_id("id")).await, expected);
        assert_eq!(is_duplicate(one().producer("p", 1, 0)).await, expected);
    }
    let error = client.append_to("t", ["y"]).unwrap().request_id("id").send().await.unwrap_err();
    assert!(
        matches!(error, Error::RequestIdReused { .. }) && error.outcome() == Outcome::NotApplied,
        "{error:?}"
    );
    let error = one().producer("p", 1, 2).send().await.unwrap_err();
    assert!(matches!(error, Error::SequenceGap { expected: 1, .. }), "{error:?}");
    let error = one().producer("p", 0, 0).send().await.unwrap_err();
    assert!(matches!(error, Error::ProducerFenced { current: 1, .. }), "{error:?}");
    let fenced = client.fence_topic("t", 7).await.unwrap();
    assert_eq!((fenced.fencing_token, fenced.log_end_offset), (7, 4));
    let error = one().fencing_token("t", 6).send().await.unwrap_err();
    assert!(matches!(error, Error::TopicFenced { current: 7, .. }), "{error:?}");
    let error = client.fence_topic("t", 6).await.unwrap_err();
    assert!(matches!(error, Error::TopicFenced { current: 7, .. }), "{error:?}");
    assert!(!is_duplicate(one().fencing_token("t", 7)).await);
}
