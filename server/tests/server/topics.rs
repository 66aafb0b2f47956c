//! Topics: making, changing, listing, compacting, verifying.

use quipu_proto::v1 as pb;
use tonic::Code;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_lives_from_create_to_delete() {
    let server = Server::start().await;
    let mut topics = server.topics().await;
    let retention = pb::topic_settings::Retention { records_max: Some(1000), ..Default::default() };
    let settings =
        pb::TopicSettings { retention: Some(retention), segment_bytes_max: 1 << 20, ..Default::default() };
    let made = server.create_with("orders", settings).await;
    assert_eq!(made.uid.len(), 16);
    let settings = made.settings.unwrap();
    assert_eq!((settings.segment_bytes_max, settings.codec()), (1 << 20, pb::Codec::None));
    server.log().await.append(append("orders", vec![record("a"), record("b")])).await.unwrap();

    let update = pb::UpdateTopicRequest {
        name: "orders".into(),
        settings: Some(pb::TopicSettings { segment_bytes_max: 2 << 20, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["segment_bytes_max".into()] }),
    };
    let updated = topics.update_topic(update).await.unwrap().into_inner().topic.unwrap().settings.unwrap();
    assert_eq!((updated.segment_bytes_max, updated.retention), (2 << 20, settings.retention));
    let unknown = pb::UpdateTopicRequest {
        name: "orders".into(),
        settings: None,
        update_mask: Some(prost_types::FieldMask { paths: vec!["colour".into()] }),
    };
    assert_eq!(fields(&topics.update_topic(unknown).await.unwrap_err()), ["update_mask.paths"]);
    let moved = pb::UpdateTopicRequest {
        name: "orders".into(),
        settings: Some(pb::TopicSettings {
            memory: Some(pb::topic_settings::MemoryStorage { bytes_max: 1 << 20 }),
            ..Default::default()
        }),
        update_mask: None,
    };
    assert_eq!(fields(&topics.update_topic(moved).await.unwrap_err()), ["settings.memory"]);

    let trim = pb::TrimTopicRequest { name: "orders".into(), before_offset: 1 };
    assert_eq!(topics.trim_topic(trim).await.unwrap().into_inner().log_start_offset, 1);
    let status = topics
        .get_topic_status(pb::GetTopicStatusRequest { name: "orders".into() })
        .await
        .unwrap()
        .into_inner();
    let topic = status.topic.unwrap();
    assert_eq!((topic.log_start_offset, topic.high_watermark, topic.log_end_offset), (1, 2, 2));
    assert_eq!((status.records_appended, status.subscribers), (2, 0));

    topics.delete_topic(pb::DeleteTopicRequest { name: "orders".into() }).await.unwrap();
    let error = topics.get_topic(pb::GetTopicRequest { name: "orders".into() }).await.unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", "NOT_APPLIED");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_listed_in_pages_by_name() {
    let server = Server::start().await;
    for number in 0..7 {
        server.create(&format!("eu/{number}")).await;
        server.create(&format!("us/{number}")).await;
    }
    let mut topics = server.topics().await;
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListTopicsRequest { prefix: "eu/".into(), page_size: 3, page_token };
        let page = topics.list_topics(request).await.unwrap().into_inner();
        assert!((1..=3).contains(&page.topics.len()));
        names.extend(page.topics.into_iter().map(|topic| topic.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, (0..7).map(|number| format!("eu/{number}")).collect::<Vec<_>>());
    let foreign =
        pb::ListTopicsRequest { prefix: "us/".into(), page_size: 0, page_token: "after:eu/1".into() };
    assert_eq!(fields(&topics.list_topics(foreign).await.unwrap_err()), ["page_token"]);
    let all = topics.list_topics(pb::ListTopicsRequest::default()).await.unwrap().into_inner();
    assert_eq!((all.topics.len(), all.next_page_token.as_str()), (14, ""));
    server.stop().await.unwrap();
}

/// A topic whose keys have many records in many sealed segments.
async fn superseded(server: &Server) {
    let settings = pb::TopicSettings {
        segment_bytes_max: 64 << 10,
        compaction: Some(pb::topic_settings::Compaction::default()),
        ..Default::default()
    };
    server.create_with("profiles", settings).await;
    let mut log = server.log().await;
    for round in 0..40 {
        let records = (0..50).map(|key| keyed(&format!("k{key}"), &format!("{round:0>200}"))).collect();
        log.append(append("profiles", records)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_tells_first_what_it_would_do_and_then_does_it() {
    use pb::compact_topic_response::Event;
    let server = Server::start().await;
    superseded(&server).await;
    let mut topics = server.topics().await;
    let mut compact = async |dry_run: bool| {
        let request = pb::CompactTopicRequest {
            name: "profiles".into(),
            dry_run,
            bytes_per_second_max: Some(0),
            erased_only: false,
        };
        let mut responses = topics.compact_topic(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(response) = responses.message().await.unwrap() {
            assert!(!matches!(last, Some(Event::Report(_))), "the report is last");
            last = response.event;
        }
        match last {
            Some(Event::Report(report)) => report,
            other => panic!("{other:?}"),
        }
    };
    let forecast = compact(true).await;
    assert!(forecast.dry_run && forecast.records_removed["superseded"] > 1000, "{forecast:?}");
    let done = compact(false).await;
    assert!(done.complete && !done.dry_run);
    assert_eq!(done.records_removed, forecast.records_removed);
    assert_eq!(done.keys, 50);
    let request = pb::ReadRequest { topic: "profiles".into(), ..Default::default() };
    let (records, gaps, end) = read_all(&mut server.log().await, request).await.unwrap();
    assert!(records.len() < 1000 && gaps.is_empty() && end.next_offset == 2000);
    assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(records.last().map(|(offset, _)| *offset), Some(1999));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_ends_when_its_caller_goes() {
    let server = Server::start().await;
    superseded(&server).await;
    let mut topics = server.topics().await;
    // So slow that it would take seconds.
    let request = pb::CompactTopicRequest {
        name: "profiles".into(),
        bytes_per_second_max: Some(64 << 10),
        ..Default::default()
    };
    let responses = topics.compact_topic(request.clone()).await.unwrap().into_inner();
    let mut second = topics.compact_topic(request.clone()).await.unwrap().into_inner();
    let error = loop {
        match second.message().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_reason(&error, Code::FailedPrecondition, "ALREADY_RUNNING", "NOT_APPLIED");
    drop(responses);
    let fast = pb::CompactTopicRequest { bytes_per_second_max: Some(0), ..request };
    let again = async {
        loop {
            let mut responses = topics.compact_topic(fast.clone()).await.unwrap().into_inner();
            let outcome = loop {
                match responses.message().await {
                    Ok(Some(_)) => {}
                    outcome => break outcome,
                }
            };
            match outcome {
                Ok(_) => break,
                Err(error) => {
                    assert_reason(&error, Code::FailedPrecondition, "ALREADY_RUNNING", "NOT_APPLIED")
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the first one was cancelled");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_set_to_be_compacted_says_so() {
    let server = Server::start().await;
    server.create("orders").await;
    let request = pb::CompactTopicRequest { name: "orders".into(), ..Default::default() };
    let mut responses = server.topics().await.compact_topic(request).await.unwrap().into_inner();
    let error = responses.message().await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "INVALID_REQUEST", "NOT_APPLIED");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_reports_what_it_looked_at() {
    use pb::verify_topic_response::Event;
    let server = Server::start().await;
    superseded(&server).await;
    server.store.checkpoint().unwrap();
    let request = pb::VerifyTopicRequest { name: "profiles".into() };
    let mut responses = server.topics().await.verify_topic(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(response) = responses.message().await.unwrap() {
        last = response.event;
    }
    let Some(Event::Report(report)) = last else { panic!("{last:?}") };
    assert!(report.intact && report.readable, "{report:?}");
    assert_eq!(report.records, 2000);
    server.stop().await.unwrap();
}
