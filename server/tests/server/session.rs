//! Append sessions: pipelined, in order, bounded.

use quipu_proto::v1 as pb;
use quipu_server::Config;
use quipu_storage::{Record, Store, StoreSettings};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::common::*;

/// Both sides of a session, past the grant.
struct Session {
    requests: Option<mpsc::Sender<pb::AppendSessionRequest>>,
    responses: Streaming<pb::AppendSessionResponse>,
    granted_bytes: u64,
}

impl Session {
    async fn open(server: &Server) -> Self {
        let (requests, received) = mpsc::channel(10_000);
        let mut responses =
            server.log().await.append_session(ReceiverStream::new(received)).await.unwrap().into_inner();
        let first = responses.message().await.unwrap().unwrap();
        assert_eq!(first.response, None);
        Self { requests: Some(requests), responses, granted_bytes: first.granted_bytes }
    }

    async fn send(&self, append: pb::AppendRequest) {
        let request = pb::AppendSessionRequest { append: Some(append), opening: None };
        self.requests.as_ref().unwrap().send(request).await.unwrap();
    }

    async fn answer(&mut self) -> Result<Option<pb::TopicAppended>, tonic::Status> {
        let answer = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an answer")?;
        Ok(answer.map(|answer| answer.response.unwrap().appended.remove(0)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_of_a_session_are_applied_and_answered_in_order() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut session = Session::open(&server).await;
    assert_eq!(session.granted_bytes, Config::default().session_bytes_max as u64);
    let durabilities = [pb::Durability::Synced, pb::Durability::Accepted, pb::Durability::Written];
    for number in 0..500_usize {
        let durability = durabilities[number % 3].into();
        let request = append("orders", vec![record(format!("{number}"))]);
        session.send(pb::AppendRequest { durability, ..request }).await;
    }
    session.requests = None;
    for number in 0..500_usize {
        let appended = session.answer().await.unwrap().unwrap();
        assert_eq!(appended.first_offset, number as u64);
        assert_eq!(appended.durability(), durabilities[number % 3]);
    }
    assert_eq!(session.answer().await.unwrap(), None, "it ends well when its client has closed it");
    let request = pb::ReadRequest { topic: "orders".into(), ..Default::default() };
    let (records, _, _) = read_all(&mut server.log().await, request).await.unwrap();
    assert!(records.iter().enumerate().all(|(n, record)| *record == (n as u64, n.to_string())));
    assert_eq!(records.len(), 500);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_ends_a_session_after_the_answers_to_what_came_before() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut session = Session::open(&server).await;
    session.send(append("orders", vec![record("1")])).await;
    session.send(append("orders", vec![record("2")])).await;
    session.send(append("missing", vec![record("3")])).await;
    session.send(append("orders", vec![record("4")])).await;
    assert_eq!(session.answer().await.unwrap().unwrap().first_offset, 0);
    assert_eq!(session.answer().await.unwrap().unwrap().first_offset, 1);
    let error = session.answer().await.unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", "NOT_APPLIED");
    assert_eq!(server.store.topic("orders").unwrap().log_end_offset().value(), 2);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_ends_a_session_with_its_own_error() {
    let settings = StoreSettings { append_bytes_max: 64 << 10, ..StoreSettings::default() };
    let server = Server::with_settings(settings).await;
    server.create("orders").await;
    let mut session = Session::open(&server).await;
    session.send(append("orders", vec![record("1")])).await;
    session.send(append("orders", vec![record(vec![0; 8 << 20])])).await;
    assert_eq!(session.answer().await.unwrap().unwrap().first_offset, 0);
    let error = session.answer().await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "MESSAGE_TOO_LARGE", "NOT_APPLIED");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_reads_no_further_than_it_has_granted() {
    // Nobody syncs: what is read stays unanswered.
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let config = Config { session_bytes_max: 64 << 10, ..Config::default() };
    let server = Server::with(config, Store::builder().settings(settings)).await;
    server.create("orders").await;
    // The first append of a topic is not in question here.
    server.store.topic("orders").unwrap().append(&[Record::new("0")]).unwrap();
    let mut session = Session::open(&server).await;
    assert_eq!(session.granted_bytes, 64 << 10);
    for _ in 0..20 {
        session.send(append("orders", vec![record(vec![0; 20_000])])).await;
    }
    let topic = server.store.topic("orders").unwrap();
    let read = async {
        while topic.log_end_offset().value() < 5 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    // Three fit, the fourth goes beyond; the fifth is not read. A call that goes through after them is the proof that
    // the server had time to.
    for _ in 0..50 {
        server.log().await.get_bounds(pb::GetBoundsRequest { topic: "orders".into() }).await.unwrap();
    }
    assert_eq!(topic.log_end_offset().value(), 5);
    session.requests = None;
    let mut answered = 0;
    while answered < 20 {
        server.store.sync().unwrap();
        while let Ok(answer) =
            tokio::time::timeout(std::time::Duration::from_millis(20), session.responses.message()).await
        {
            assert!(answer.unwrap().is_some());
            answered += 1;
            if answered == 20 {
                break;
            }
        }
    }
    assert_eq!(session.answer().await.unwrap(), None);
    server.stop().await.unwrap();
}

/// Each session was bounded, and a thousand of them were not.
#[tokio::test(flavor = "multi_thread")]
async fn all_sessions_together_have_only_so_much_on_its_way_and_each_goes_on_in_the_end() {
    // Nobody syncs: what is read stays unanswered.
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let config =
        Config { append_bytes_in_flight_max: 128 << 10, session_bytes_max: 128 << 10, ..Config::default() };
    let server = Server::with_metrics_and(config, Store::builder().settings(settings)).await;
    server.create("orders").await;
    let mut log = server.log().await;
    server.store.topic("orders").unwrap().append(&[Record::new("0")]).unwrap();
    let mut sessions = Vec::new();
    for _ in 0..6 {
        let session = Session::open(&server).await;
        for _ in 0..5 {
            session.send(append("orders", vec![record(vec![0; 20_000])])).await;
        }
        sessions.push(session);
    }
    let all_wait = async { while server.metric("quipu_append_sessions_waiting").await < 6 {} };
    tokio::time::timeout(PATIENCE, all_wait).await.expect("all wait");
    // Three quarters of the room are for sessions, four appends.
    assert_eq!(server.store.topic("orders").unwrap().log_end_offset().value(), 1 + 4);
    let in_flight = server.metric("quipu_append_in_flight_bytes").await;
    assert!((80_000..=96 << 10).contains(&in_flight), "{in_flight}");
    let error = log.append(append("orders", vec![record(vec![0; 60_000])])).await.unwrap_err();
    assert_reason(&error, Code::Unavailable, "OVERLOADED", "NOT_APPLIED");
    assert!(tonic_types::StatusExt::get_details_retry_info(&error).unwrap().retry_delay.is_some());
    let mut single = tokio::spawn(async move { log.append(append("orders", vec![record("single")])).await });
    let mut answers = tokio::task::JoinSet::new();
    for mut session in sessions {
        session.requests = None;
        answers.spawn(async move {
            for _ in 0..5 {
                session.answer().await.unwrap().unwrap();
            }
            assert_eq!(session.answer().await.unwrap(), None);
        });
    }
    let store = server.store.clone();
    let all = async {
        let (mut is_single_answered, mut ended) = (false, 0);
        while !is_single_answered || ended < 6 {
            store.sync().unwrap();
            tokio::select! {
                answer = &mut single, if !is_single_answered => {
                    answer.unwrap().unwrap();
                    is_single_answered = true;
                }
                Some(session) = answers.join_next(), if ended < 6 => {
                    session.unwrap();
                    ended += 1;
                }
                () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("each goes on");
    assert_eq!(server.metric("quipu_append_in_flight_bytes").await, 0);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_client_takes_no_answers_keeps_no_room_from_others() {
    let config =
        Config { append_bytes_in_flight_max: 64 << 10, session_bytes_max: 64 << 10, ..Config::default() };
    let server = Server::with(config, Store::builder()).await;
    server.create("orders").await;
    // A window with room for the greeting and an answer or two.
    let narrow = endpoint(server.address).initial_stream_window_size(100);
    let mut log = quipu_proto::v1::log_service_client::LogServiceClient::new(narrow.connect().await.unwrap());
    let (requests, received) = mpsc::channel(100);
    let unread = log.append_session(ReceiverStream::new(received)).await.unwrap().into_inner();
    for _ in 0..20 {
        let append = Some(append("orders", vec![record(vec![0; 10_000])]));
        requests.send(pb::AppendSessionRequest { append, opening: None }).await.unwrap();
    }
    let topic = server.store.topic("orders").unwrap();
    let applied = async {
        while topic.log_end_offset().value() < 20 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, applied).await.expect("it goes on without its client");
    let mut other = Session::open(&server).await;
    other.send(append("orders", vec![record(vec![0; 40_000])])).await;
    assert_eq!(other.answer().await.unwrap().unwrap().first_offset, 20);
    drop((unread, requests));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_that_find_no_room_wait_for_it_and_keep_their_order() {
    let settings = StoreSettings {
        journal_file_bytes: 256 << 10,
        journal_bytes_max: 3 * (256 << 10),
        append_bytes_max: 128 << 10,
        tail_bytes_max: 256 << 10,
        ..StoreSettings::default()
    };
    let server = Server::with_settings(settings).await;
    server.create("orders").await;
    let mut session = Session::open(&server).await;
    for number in 0..200_u8 {
        let durability = pb::Durability::Accepted.into();
        let request = append("orders", vec![record(vec![number; 50_000])]);
        session.send(pb::AppendRequest { durability, ..request }).await;
    }
    for number in 0..200 {
        assert_eq!(session.answer().await.unwrap().unwrap().first_offset, number);
    }
    for offset in 0..200 {
        let stored = server.store.topic("orders").unwrap();
        server.store.sync().unwrap();
        let found = stored.get(quipu_storage::Offset(offset)).unwrap().unwrap();
        assert_eq!(found.payload().unwrap()[0], u8::try_from(offset).unwrap());
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_what_a_session_has_accepted_and_then_ends_it() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut session = Session::open(&server).await;
    for number in 0..50 {
        session.send(append("orders", vec![record(format!("{number}"))])).await;
    }
    // One answer: some are on their way.
    let mut answered = session.answer().await.unwrap().unwrap().next_offset;
    let stopping = tokio::spawn(server.stop());
    let error = loop {
        match session.answer().await {
            Ok(appended) => answered = appended.unwrap().next_offset,
            Err(error) => break error,
        }
    };
    assert_reason(&error, Code::Unavailable, "DRAINING", "NOT_APPLIED");
    let dir = stopping.await.unwrap().unwrap();
    let store = Store::open(dir.path().join("data")).unwrap();
    assert!(store.recovery().was_clean);
    assert_eq!(store.topic("orders").unwrap().log_end_offset().value(), answered);
}

/// A client that lost a connection looks into the topic for what it had sent. What it does not find there it sends again:
/// a request of the lost connection that is applied after the look would be in the topic twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_opened_anew_ends_the_earlier_one_before_it_is_answered() {
    let server = Server::start().await;
    server.create("orders").await;
    let open = async |epoch| {
        let session = Session::open(&server).await;
        let opening = Some(pb::SessionOpening { session_id: vec![7; 16].into(), epoch });
        let request = pb::AppendSessionRequest { append: None, opening };
        session.requests.as_ref().unwrap().send(request).await.unwrap();
        session
    };
    let mut first = open(1).await;
    assert!(first.responses.message().await.unwrap().unwrap().opened);
    first.send(append("orders", vec![record("1")])).await;
    assert_eq!(first.answer().await.unwrap().unwrap().first_offset, 0);
    let mut second = open(2).await;
    assert!(second.responses.message().await.unwrap().unwrap().opened);
    first.send(append("orders", vec![record("late")])).await;
    assert_reason(&first.answer().await.unwrap_err(), Code::FailedPrecondition, "FENCED", "NOT_APPLIED");
    second.send(append("orders", vec![record("2")])).await;
    assert_eq!(second.answer().await.unwrap().unwrap().first_offset, 1);
    let mut stale = open(2).await;
    let error = stale.responses.message().await.unwrap_err();
    assert_reason(&error, Code::FailedPrecondition, "FENCED", "NOT_APPLIED");
    second.requests = None;
    assert_eq!(second.answer().await.unwrap(), None);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_named_by_its_first_request_or_not_at_all() {
    let server = Server::start().await;
    server.create("orders").await;
    let opening = |id_bytes, epoch| {
        let opening = Some(pb::SessionOpening { session_id: vec![7; id_bytes].into(), epoch });
        pb::AppendSessionRequest { append: None, opening }
    };
    let with_append = pb::AppendSessionRequest {
        append: Some(append("orders", vec![record("not applied")])),
        ..opening(16, 1)
    };
    for (request, wrong) in
        [(opening(15, 1), "opening.session_id"), (opening(16, 0), "opening.epoch"), (with_append, "opening")]
    {
        let mut session = Session::open(&server).await;
        session.requests.as_ref().unwrap().send(request).await.unwrap();
        let error = session.answer().await.unwrap_err();
        assert_reason(&error, Code::InvalidArgument, "INVALID_REQUEST", "NOT_APPLIED");
        assert_eq!(fields(&error), [wrong]);
    }
    let mut late = Session::open(&server).await;
    late.send(append("orders", vec![record("1")])).await;
    assert_eq!(late.answer().await.unwrap().unwrap().first_offset, 0);
    late.requests.as_ref().unwrap().send(opening(16, 1)).await.unwrap();
    assert_eq!(fields(&late.answer().await.unwrap_err()), ["opening"]);
    assert_eq!(server.store.topic("orders").unwrap().log_end_offset().value(), 1);
    server.stop().await.unwrap();
}
