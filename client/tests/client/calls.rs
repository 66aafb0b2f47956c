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
