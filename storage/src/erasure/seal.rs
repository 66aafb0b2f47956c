//! A sealed payload, in the place of a record's payload.
//!
//! ```text
//! | version 1 (1) | nonce (12) | ciphertext | tag (16) |
//! ```
//!
//! ChaCha20-Poly1305 with the key of the record's erasure key and a random nonce. What is sealed opens only in the record
//! that it was sealed for: topic, erasure key and record key are under the tag. The topic's uid is enough to tell stores
//! apart; the offset cannot be under it, because it is not known yet. With random nonces a key is good for 2^32 payloads.
//!
//! A batch that has such records is flagged. It is opened when it leaves a cursor, and then looks as if it had been stored
//! with the payloads, or with a [`Redaction`] where there is none any more: nobody behind a cursor meets anything sealed. Who
//! wants one record of it opens that one only.
//! Journal, segments, tails, compaction and verification have the sealed bytes only.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::crypto::{Crypto, NONCE_BYTES, Secret, TAG_BYTES};
use super::master_key::MasterKey;
use crate::context::random;
use crate::error::{Error, Result};
use crate::format::Invalid;
use crate::format::batch::Batch;
use crate::format::record::{RecordView, Records, Redaction, field, limit};
use crate::format::wire::{Fields, put_bytes, put_number};
use crate::topic::TopicInner;
use crate::types::{Offset, Position, Uid};

const VERSION: u8 = 1;
/// Bytes before the ciphertext.
const HEAD_BYTES: usize = 1 + NONCE_BYTES;

/// Whether an erasure key may have this name. That it is not too long is checked with the other bounds of a record.
pub(crate) fn check_name(erasure_key: &str) -> Result<()> {
    if (1..=limit::ERASURE_KEY_BYTES_MAX).contains(&erasure_key.len()) {
        return Ok(());
    }
    Err(Error::InvalidErasureKey { rule: "it must have 1 to 255 bytes" })
}

/// The body of a batch with the payloads sealed of those records that name an erasure key.
pub(crate) fn seal_body(master_key: &MasterKey, topic: Uid, body: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len() + body.len() / 8 + HEAD_BYTES + TAG_BYTES);
    let mut sealed_record = Vec::new();
    let mut records = Records::new(body);
    for index in 0.. {
        let Some(record) = records.next() else { break };
        // The records were checked when they were added to the append.
        let unreadable = |invalid: Invalid| Error::InvalidEncoding {
            detail: invalid.detail,
            position: records.position().max(invalid.position),
        };
        let view = record.and_then(RecordView::decode).map_err(unreadable)?;
        let Some(erasure_key) = view.erasure_key else {
            put_bytes(&mut out, field::RECORD, view.as_bytes());
            continue;
        };
        let nonce = random()?;
        let context = context(topic, erasure_key, view.key);
        let sealed = master_key.with_key(erasure_key, |key| {
            view.payload.map(|payload| seal(master_key.crypto(), key, nonce, &context, payload))
        });
        let Some(sealed) = sealed else {
            return Err(Error::ErasureKeyDestroyed { index, erasure_key: erasure_key.into() });
        };
        sealed_record.clear();
        let content = sealed.as_deref().map_or(Content::None, Content::Sealed);
        put_with(&view, content, &mut sealed_record).map_err(unreadable)?;
        put_bytes(&mut out, field::RECORD, &sealed_record);
    }
    Ok(out)
}

/// A batch as readers get it: nothing in it is sealed.
pub(crate) fn open_batch(topic: &TopicInner, batch: Batch) -> Result<Batch> {
    if !batch.header().has_sealed {
        return Ok(batch);
    }
    let opened = batch.with_records(topic.seed, |bytes, out| {
        let view = RecordView::decode(bytes)?;
        match view.sealed {
            Some(sealed) => open_into(topic, &view, sealed, out)?,
            None => out.extend_from_slice(bytes),
        }
        Ok(())
    });
    opened.map_err(|invalid| not_sealed_here(topic, batch.base_offset()..batch.next_offset(), invalid))
}

/// The same of one record: nothing else of its batch is opened.
pub(crate) fn open_record(topic: &TopicInner, offset: Offset, bytes: Bytes) -> Result<Bytes> {
    let open = || {
        let view = RecordView::decode(&bytes)?;
        let Some(sealed) = view.sealed else { return Ok(None) };
        let mut out = Vec::with_capacity(bytes.len());
        open_into(topic, &view, sealed, &mut out)?;
        Ok(Some(out))
    };
    let opened = open().map_err(|invalid| not_sealed_here(topic, offset..offset + 1, invalid))?;
    Ok(opened.map_or(bytes, Bytes::from))
}

fn open_into(
    topic: &TopicInner,
    view: &RecordView<'_>,
    sealed: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Invalid> {
    match open(topic.context.master_key(), topic.uid, view, sealed)? {
        Ok(payload) => put_with(view, Content::Payload(&payload), out),
        Err(redaction) => {
            topic.context.counters.records_redacted.add(1);
            put_with(view, Content::Redacted(redaction), out)
        }
    }
}

/// What is told of a sealed payload that was put where it does not belong. The checksums hold: it was not damaged since.
fn not_sealed_here(topic: &TopicInner, offsets: Range<Offset>, invalid: Invalid) -> Error {
    topic.context.counters.damage_found.add(1);
    Error::Corrupt {
        topic: topic.name.clone(),
        offsets,
        path: topic.dir.clone(),
        position: Position::ZERO,
        detail: invalid.detail,
    }
}

/// The payload, or why it cannot be had; [`Invalid`] if it was never sealed so.
fn open(
    master_key: Option<&MasterKey>,
    topic: Uid,
    view: &RecordView<'_>,
    sealed: &[u8],
) -> Result<Result<Vec<u8>, Redaction>, Invalid> {
    if sealed.is_empty() {
        return Ok(Err(Redaction::Erased));
    }
    let Some(master_key) = master_key else { return Ok(Err(Redaction::Locked)) };
    let Some(erasure_key) = view.erasure_key else {
        return Err(Invalid::new("a sealed payload has no erasure key", 0));
    };
    if sealed.len() < HEAD_BYTES + TAG_BYTES || sealed[0] != VERSION {
        return Err(Invalid::new("a sealed payload has another form than is known here", 0));
    }
    let (head, ciphertext) = sealed.split_at(HEAD_BYTES);
    let nonce: [u8; NONCE_BYTES] = head[1..].try_into().expect("the head without the version");
    let context = context(topic, erasure_key, view.key);
    let mut content = ciphertext.to_vec();
    let length =
        master_key.with_key(erasure_key, |key| master_key.crypto().open(key, nonce, &context, &mut content));
    match length {
        None => Ok(Err(Redaction::Erased)),
        Some(None) => Err(Invalid::new("a sealed payload was not sealed for its record", 0)),
        Some(Some(length)) => {
            content.truncate(length);
            Ok(Ok(content))
        }
    }
}

/// Whether the payload of a stored record cannot be opened any more and still takes room.
pub(crate) fn is_reclaimable(master_key: &MasterKey, view: &RecordView<'_>) -> bool {
    let is_sealed = view.sealed.is_some_and(|sealed| !sealed.is_empty());
    is_sealed && view.erasure_key.is_some_and(|erasure_key| master_key.is_destroyed(erasure_key))
}

/// A stored record without its sealed payload: it reads as erased for ever.
pub(crate) fn reclaimed(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Invalid> {
    let view = RecordView::decode(bytes)?;
    let mut out = Vec::with_capacity(bytes.len());
    put_with(&view, Content::Sealed(&[]), &mut out)?;
    Ok(out.into())
}

fn seal(crypto: Crypto, key: &Secret, nonce: [u8; NONCE_BYTES], context: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(payload.len() + TAG_BYTES);
    content.extend_from_slice(payload);
    crypto.seal(key, nonce, context, &mut content);
    let mut sealed = Vec::with_capacity(HEAD_BYTES + content.len());
    sealed.push(VERSION);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&content);
    sealed
}

/// ```text
/// | topic uid (16) | bytes of the erasure key (1) | erasure key | 1 if there is a record key, else 0 (1) | record key |
/// ```
fn context(topic: Uid, erasure_key: &str, key: Option<&[u8]>) -> Vec<u8> {
    let mut context = Vec::with_capacity(18 + erasure_key.len() + key.map_or(0, <[u8]>::len));
    context.extend_from_slice(&topic.0);
    context.push(u8::try_from(erasure_key.len()).unwrap_or(u8::MAX));
    context.extend_from_slice(erasure_key.as_bytes());
    context.push(u8::from(key.is_some()));
    context.extend_from_slice(key.unwrap_or_default());
    context
}

/// What a record has for a payload.
#[derive(Clone, Copy)]
enum Content<'a> {
    None,
    Payload(&'a [u8]),
    Sealed(&'a [u8]),
    Redacted(Redaction),
}

impl Content<'_> {
    fn field(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Payload(_) => field::PAYLOAD,
            Self::Sealed(_) => field::SEALED,
            Self::Redacted(_) => field::REDACTED,
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Payload(bytes) | Self::Sealed(bytes) => put_bytes(out, self.field(), bytes),
            Self::Redacted(redaction) => put_number(out, self.field(), redaction.code()),
        }
    }
}

/// Every field as it came, with this in the place of whatever payload there is. Fields that rise go on rising, so that who
/// decodes a record and encodes it again has the same bytes.
fn put_with(view: &RecordView<'_>, content: Content<'_>, out: &mut Vec<u8>) -> Result<(), Invalid> {
    let bytes = view.as_bytes();
    let mut fields = Fields::new(bytes);
    let mut start = 0;
    let mut waiting = Some(content);
    while let Some(next) = fields.next() {
        let (number, _) = next?;
        if number > content.field()
            && let Some(content) = waiting.take()
        {
            content.put(out);
        }
        if ![field::PAYLOAD, field::SEALED, field::REDACTED].contains(&number) {
            out.extend_from_slice(&bytes[start..fields.position()]);
        }
        start = fields.position();
    }
    if let Some(content) = waiting {
        content.put(out);
    }
    Ok(())
}
