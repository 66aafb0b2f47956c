//! Settings of a topic, as a frame of the journal carries them: decoded or refused; what is decoded comes back from its
//! encoding, if it is within the bounds that are checked before anything is written.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32};
use quipu_storage::format::frame::{Change, FrameBuilder, FrameHeader, Place};
use quipu_storage::format::wire::{put_bytes, put_message, put_number};
use quipu_storage::{Position, TopicSettings};

const PLACE: Place = Place { seed: 7, generation: 1, position: Position(0), synced: Position(0) };

fn decode(frame: &Bytes) -> Option<TopicSettings> {
    let header = FrameHeader::decode(frame, PLACE.seed, PLACE.generation, PLACE.position).ok()?;
    match header.changes(frame).ok()?.pop()? {
        Change::TopicAltered { settings, .. } => Some(settings),
        _ => None,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut frame = vec![0; 40];
    put_message(&mut frame, 3, |out| {
        put_number(out, 1, 1);
        put_bytes(out, 4, bytes);
    });
    let meta_bytes = frame.len() - 40;
    put_u32(&mut frame, 32, u32::try_from(meta_bytes).expect("an input is short"));
    frame.resize(frame.len().next_multiple_of(8), 0);
    let length = u32::try_from(frame.len()).expect("an input is short");
    put_u32(&mut frame, 4, length);
    frame[24] = 1;
    let sum = crc(PLACE.seed, &frame[4..40 + meta_bytes]);
    put_u32(&mut frame, 0, sum);
    let Some(settings) = decode(&frame.into()) else { return };
    if settings.check().is_ok() {
        let mut builder = FrameBuilder::default();
        builder.begin();
        let topic = quipu_storage::TopicId(1);
        builder.put(&Change::TopicAltered { topic, settings: settings.clone() });
        builder.finish();
        assert_eq!(decode(&Bytes::copy_from_slice(builder.seal(&PLACE))), Some(settings));
    }
});
