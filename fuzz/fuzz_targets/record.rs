//! A record, and the body of a batch: decoded or refused; what is decoded comes back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quipu_storage::format::record::Records;
use quipu_storage::{Record, RecordView};

fn check(bytes: &[u8]) {
    let Ok(view) = RecordView::decode(bytes) else { return };
    let _ = view.check();
    let record: Record = view.to_record();
    let mut encoded = Vec::new();
    record.encode(&mut encoded);
    assert_eq!(encoded.len(), record.encoded_bytes());
    assert_eq!(RecordView::decode(&encoded).map(|view| view.to_record()), Ok(record));
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    Records::new(bytes).filter_map(Result::ok).for_each(check);
});
