//! Every part of a term index, as it is and with its checksum made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32};
use quipu_storage::format::terms::block::{Block, BlockIndex, Place};
use quipu_storage::format::terms::filter::Filter;
use quipu_storage::format::terms::postings::{HEAD_BYTES, Numbering, Posting, heads, list};
use quipu_storage::format::terms::{FOOTER_BYTES, HEADER_BYTES, TermsFooter, TermsHeader, crc_at};
use quipu_storage::{Offset, Revision};

const SEED: u32 = 7;
const POSITION: u64 = 64;

fuzz_target!(|bytes: &[u8]| {
    let _ = TermsHeader::decode(bytes);
    if let Some(header) = bytes.get(..HEADER_BYTES) {
        let mut header = header.to_vec();
        let sum = crc(0, &header[..60]);
        put_u32(&mut header, 60, sum);
        if let Ok(decoded) = TermsHeader::decode(&header) {
            assert_eq!(TermsHeader::decode(&decoded.encode()), Ok(decoded));
        }
    }
    if let Some(at) = bytes.len().checked_sub(FOOTER_BYTES) {
        let mut footer = bytes[at..].to_vec();
        let sum = crc_at(SEED, at as u64, &footer[..76]);
        put_u32(&mut footer, 76, sum);
        if let Ok(decoded) = TermsFooter::decode(&footer, SEED, bytes.len() as u64) {
            let end = decoded.index_position + decoded.index_bytes + decoded.filter_bytes;
            assert_eq!(end, at as u64);
            let again = decoded.encode(SEED);
            assert_eq!(TermsFooter::decode(&again, SEED, bytes.len() as u64), Ok(decoded));
        }
    }
    if let Ok(filter) = Filter::new(bytes.to_vec().into()) {
        let _ = filter.may_have(u64::MAX);
    }
    if let Ok(index) = BlockIndex::decode(bytes, bytes.first().copied().unwrap_or(0).into(), 1 << 40) {
        let found = index.find(bytes);
        assert!(found.is_none_or(|number| number < index.blocks().len()));
    }
    let first = Posting { offset: Offset(1), revision: Some(Revision(1)) };
    for numbering in [Numbering::None, Numbering::Dense, Numbering::Listed] {
        if let Ok(postings) = list(bytes, first, numbering) {
            assert!(postings.len() <= bytes.len() + 1);
            assert!(postings.is_sorted_by(|a, b| a.offset < b.offset));
        }
        let whole = bytes.len() / HEAD_BYTES * HEAD_BYTES;
        let sum = crc_at(SEED, POSITION, &bytes[..whole]);
        let _ = heads(SEED, (POSITION, sum), &bytes[..whole], numbering, Some(Revision(3)));
    }
    let mut block = bytes.to_vec();
    block.extend_from_slice(&crc_at(SEED, POSITION, bytes).to_le_bytes());
    if let Ok(mut walk) = Block::new(SEED, POSITION, &block, Offset(5)) {
        let mut before = Vec::new();
        while let Ok(Some(entry)) = walk.step() {
            assert!(before.as_slice() < walk.term());
            assert!(entry.first <= entry.last);
            if let Place::Inline(range) = entry.postings {
                assert!(range.end <= bytes.len());
            }
            before = walk.term().to_vec();
        }
    }
});
