//! Power cuts and failures at every disk operation of compaction, and of what goes on around it.
#![forbid(unsafe_code)]

use quipu_storage::Codec;
use quipu_tests::compaction_crash::{
    append, compact, fail_each_operation, fail_the_sync_of_a_new_segment, sweep,
};
use quipu_tests::faults::honest as honest_faults;
use quipu_tests::model::run::honest;

/// Under a sanitizer each takes far longer: only each so many operations are looked at.
fn every() -> u64 {
    std::env::var("QUIPU_COMPACTION_EVERY").map_or(1, |text| text.parse().expect("a number"))
}

#[test]
fn a_crash_at_any_operation_of_compaction_leaves_every_record_that_stays() {
    let cuts = sweep(honest, Codec::None, &[("compact", compact)], every());
    assert!(cuts > 200 / every(), "only {cuts} cuts");
}

#[test]
fn the_same_with_compressed_batches() {
    let cuts = sweep(honest, Codec::Lz4, &[("compact", compact)], every());
    assert!(cuts > 200 / every(), "only {cuts} cuts");
}

#[test]
fn what_was_compacted_may_be_compacted_again_and_trimmed_with_a_crash_at_any_operation() {
    let cuts = sweep(
        honest,
        Codec::None,
        &[
            ("compact", compact),
            ("append", |_, topic, _| append(topic, 80..120)),
            ("compact again", compact),
            ("trim", |_, topic, _| topic.trim(quipu_storage::Offset(60)).expect("it is synced")),
            ("append more", |_, topic, _| append(topic, 120..140)),
            ("compact what was trimmed", compact),
            ("let tombstones go", |store, topic, clock| {
                clock.set(clock.millis() + 20_000);
                compact(store, topic, clock);
            }),
            ("checkpoint", |store, _, _| store.checkpoint().expect("nothing fails")),
            ("trim all", |_, topic, _| topic.trim(topic.high_watermark()).expect("it is synced")),
        ],
        every(),
    );
    assert!(cuts > 200 / every(), "only {cuts} cuts");
}

#[test]
fn a_failure_of_any_operation_of_compaction_loses_nothing_and_the_next_run_goes_on() {
    let failed = fail_each_operation(honest_faults, every());
    let least = if every() == 1 { 20 } else { 0 };
    assert!(failed > least, "only {failed} runs failed");
}

#[test]
fn a_new_segment_that_cannot_be_synced_is_thrown_away_and_the_next_run_writes_another_file() {
    fail_the_sync_of_a_new_segment();
}
