//! A build without the feature `erasure`.

#![cfg(not(feature = "erasure"))]

use quipu_storage::{Error, ErrorKind, Record, Store};

#[test]
fn a_build_without_erasure_refuses_master_keys_and_erasure_keys_and_does_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Store::builder().master_key(dir.path().join("master.key")).create_master_key(true);
    let error = builder.open(dir.path().join("store")).unwrap_err();
    assert!(matches!(error, Error::ErasureUnavailable), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let store = Store::open(dir.path().join("store")).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    let error = topic.append(&[Record::new("x").with_erasure_key("k")]).unwrap_err();
    assert!(matches!(error, Error::MasterKeyMissing), "{error}");
    topic.append(&[Record::new("x")]).unwrap();
}
