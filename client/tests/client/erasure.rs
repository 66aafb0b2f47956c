//! Sealed payloads, through the client.

use quipu_client::{Aggregate, Error, EventError, EventRecord, Record, Redaction, Upcasters};

use crate::common::Server;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_redacted_and_takes_no_more_records() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let record = Record::keyed("order-7", "Ada, 12 Hill Road").with_erasure_key("customer-17");
    client.append("t", [record.clone(), Record::tombstone("order-8")]).await.unwrap();
    let session = client.append_session("t").open().await.unwrap();
    session.append(record.clone()).await.unwrap().wait().await.unwrap();
    session.close().await.unwrap();
    let stored = client.record("t", 0).await.unwrap().unwrap();
    assert_eq!((stored.to_record(), stored.redacted()), (record.clone(), None));

    assert_eq!(client.erase_keys(["customer-17"]).await.unwrap().destroyed, 1);
    assert!(client.is_erased("customer-17").await.unwrap());
    let stored = client.record("t", 0).await.unwrap().unwrap();
    assert_eq!((stored.payload(), stored.redacted()), (None, Some(Redaction::Erased)));
    assert_eq!((stored.key(), stored.erasure_key()), (Some(&b"order-7"[..]), Some("customer-17")));
    let tombstone = client.record("t", 1).await.unwrap().unwrap();
    assert_eq!((tombstone.payload(), tombstone.redacted()), (None, None));
    let mut records = client.read("t").records().await.unwrap();
    let mut redacted = Vec::new();
    while let Some(record) = records.next().await {
        redacted.push(record.unwrap().redacted());
    }
    assert_eq!(redacted, [Some(Redaction::Erased), None, Some(Redaction::Erased)]);
    let refused = client.append("t", [record]).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Refused { reason, .. } if reason == "ERASURE_KEY_DESTROYED"),
        "{refused:?}"
    );
}

/// What a customer did, as far as it is known.
#[derive(Default)]
struct Customer {
    known: Vec<String>,
    erased: u64,
}

impl Aggregate for Customer {
    fn apply(&mut self, event: &EventRecord) -> Result<(), EventError> {
        match event.redacted {
            None => self.known.push(event.record.record_type.clone()),
            Some(_) => self.erased += 1,
        }
        Ok(())
    }

    fn to_snapshot(&self) -> Option<Record> {
        Some(Record::new(self.known.join(",")).with_erasure_key("customer-17"))
    }

    fn from_snapshot(snapshot: &Record) -> Result<Option<Self>, EventError> {
        let text = String::from_utf8(snapshot.payload.as_deref().ok_or("no payload")?.to_vec())?;
        Ok(Some(Self { known: text.split(',').map(String::from).collect(), erased: 0 }))
    }
}

/// Its snapshot was sealed as its events were, so there is none any more; upcasters have nothing to read in an event.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_is_told_which_of_its_events_were_erased() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("customers").await.unwrap();
    let upcasters = Upcasters::new().on("moved", |record| {
        let text = String::from_utf8(record.payload.clone().ok_or("no payload")?.to_vec())?;
        Ok(Record { payload: Some(text.into()), ..record.with_type("moved.2") })
    });
    let customers = client.aggregates::<Customer>("customers").upcasters(upcasters).snapshot_every(2);
    for (kind, erasure_key) in [("registered", None), ("moved", Some("customer-17")), ("left", None)] {
        let record = Record::new("Ada, 12 Hill Road").with_type(kind);
        let event = match erasure_key {
            Some(erasure_key) => record.with_erasure_key(erasure_key),
            None => record,
        };
        let decide = |_: &Customer| Ok::<_, &str>(vec![event.clone()]);
        customers.execute("17", decide).await.unwrap();
    }
    let loaded = customers.load("17").await.unwrap();
    assert_eq!(loaded.state.known, ["registered", "moved.2", "left"]);
    client.erase_keys(["customer-17"]).await.unwrap();
    let loaded = customers.load("17").await.unwrap();
    assert_eq!((loaded.state.known, loaded.state.erased), (vec!["registered".into(), "left".into()], 1));
}
