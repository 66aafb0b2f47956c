use std::collections::BTreeMap;

use proptest::prelude::*;

use super::block::{Block, BlockIndex, Entry, Place};
use super::build::TermsBuilder;
use super::filter::Filter;
use super::hash::hash;
use super::postings::{Numbering, Posting, Revisions, heads, list};
use super::*;
use crate::types::Revision;

const BASE: u64 = 1000;

fn header() -> TermsHeader {
    TermsHeader {
        content: Content::Segment,
        topic: Uid([7; 16]),
        base_offset: Offset(BASE),
        next_offset: Offset(1 << 40),
        batch_hash: 99,
    }
}

/// Everything that is in a file, or what of it is damaged.
#[derive(Debug, Default, PartialEq)]
struct Read {
    terms: BTreeMap<Vec<u8>, Vec<Posting>>,
    filter: Option<Vec<bool>>,
}

fn postings(file: &[u8], block: &[u8], entry: &Entry, seed: u32) -> Result<Vec<Posting>, Invalid> {
    let first = Posting { offset: entry.first, revision: entry.revisions.map(|(first, _)| first) };
    let last = Posting { offset: entry.last, revision: entry.revisions.map(|(_, last)| last) };
    let slice = |at: u64, bytes: u64| {
        let (at, bytes) = (usize::try_from(at).unwrap(), usize::try_from(bytes).unwrap());
        file.get(at..at + bytes).ok_or(Invalid::new("behind the file", at))
    };
    let found = match &entry.postings {
        Place::Ends if entry.count == 1 => vec![first],
        Place::Ends => vec![first, last],
        Place::Inline(range) => list(&block[range.clone()], first, entry.numbering)?,
        Place::Run { position, heads_bytes, crc } => {
            let heads = heads(
                seed,
                (*position, *crc),
                slice(*position, *heads_bytes)?,
                entry.numbering,
                first.revision,
            )?;
            let mut all = Vec::new();
            for chunk in heads {
                assert_eq!(chunk.number, all.len() as u64);
                let bytes = slice(chunk.position, chunk.bytes.into())?;
                all.extend(chunk.postings(seed, bytes, entry.numbering)?);
            }
            all
        }
    };
    assert_eq!((found.len() as u64, found[0]), (entry.count, first));
    assert_eq!(found[found.len() - 1], last);
    Ok(found)
}

fn read(file: &[u8]) -> Result<Read, HeaderProblem> {
    let header = TermsHeader::decode(file)?;
    let seed = header.seed();
    let at = file.len().saturating_sub(FOOTER_BYTES);
    let footer = TermsFooter::decode(&file[at..], seed, file.len() as u64)?;
    let index_at = usize::try_from(footer.index_position).unwrap();
    let filter_at = index_at + usize::try_from(footer.index_bytes).unwrap();
    let (index, filter) = (&file[index_at..filter_at], &file[filter_at..at]);
    let check = |holds| if holds { Ok(()) } else { Err(Invalid::new("checksum", 0)) };
    let decoded = (|| {
        check(crc_at(seed, index_at as u64, index) == footer.index_crc)?;
        check(crc_at(seed, filter_at as u64, filter) == footer.filter_crc)?;
        let index = BlockIndex::decode(index, footer.block_count, footer.index_position)?;
        let filter = Filter::new(filter.to_vec().into())?;
        let mut read = Read::default();
        for (number, place) in index.blocks().iter().enumerate() {
            let at = usize::try_from(place.position).unwrap();
            let bytes = &file[at..at + place.bytes as usize];
            let mut block = Block::new(seed, place.position, bytes, header.base_offset)?;
            while let Some(entry) = block.step()? {
                let term = block.term().to_vec();
                assert_eq!(index.find(&term), Some(number));
                assert!(filter.may_have(hash(header.topic, &term)));
                read.terms.insert(term, postings(file, bytes, &entry, seed)?);
            }
        }
        assert_eq!(read.terms.len() as u64, footer.term_count);
        Ok(read)
    })();
    decoded.map_err(HeaderProblem::Invalid)
}

fn build(terms: &BTreeMap<Vec<u8>, Vec<Posting>>) -> Vec<u8> {
    let mut builder = TermsBuilder::new(header(), terms.len() as u64);
    let mut file = Vec::new();
    for (term, postings) in terms {
        let offsets: Vec<_> = postings.iter().map(|posting| posting.offset).collect();
        let listed: Option<Vec<_>> = postings.iter().map(|posting| posting.revision).collect();
        let revisions = match &listed {
            None => Revisions::None,
            Some(list) if list[list.len() - 1] - list[0] == list.len() as u64 - 1 => {
                Revisions::Dense(list[0])
            }
            Some(list) => Revisions::Listed(list),
        };
        builder.add(term, &offsets, revisions);
        if builder.ready_bytes() > 500 {
            file.extend(builder.take());
        }
    }
    file.extend(builder.finish());
    file
}

/// Rising numbers, some of them far apart.
fn rising(most: usize) -> impl Strategy<Value = Vec<u64>> {
    let steps = prop::collection::vec(prop_oneof![4 => 1_u64..3, 1 => 1_u64..1 << 20], 1..most);
    steps.prop_map(|steps| {
        steps
            .iter()
            .scan(0, |sum, step| {
                *sum += step;
                Some(*sum - 1)
            })
            .collect()
    })
}

fn any_postings() -> impl Strategy<Value = Vec<Posting>> {
    let length = prop_oneof![6 => Just(4_usize), 3 => Just(80), 1 => Just(2000)];
    let numbers = length.prop_flat_map(|most| (rising(most), rising(most), 0..3));
    numbers.prop_map(|(offsets, revisions, numbering)| {
        let revision =
            |number: usize| match numbering {
                0 => None,
                1 => Some(Revision(revisions[0] + number as u64)),
                // The shorter list goes on without gaps.
                _ => Some(Revision(revisions.get(number).copied().unwrap_or_else(|| {
                    revisions[revisions.len() - 1] + (number - revisions.len() + 1) as u64
                }))),
            };
        let posting = |(number, offset): (usize, &u64)| Posting {
            offset: Offset(BASE + offset),
            revision: revision(number),
        };
        offsets.iter().enumerate().map(posting).collect()
    })
}

fn any_terms(most: usize) -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<Posting>>> {
    let bytes = prop_oneof![
        "[ab]{0,12}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..40),
        (0_u8..9).prop_map(|byte| vec![byte; 3000]),
    ];
    let any_term = (prop::sample::select(vec![Kind::Key, Kind::Type, Kind::Tag]), bytes, any_postings());
    prop::collection::vec(any_term, 0..most).prop_map(|terms| {
        let put = |(kind, bytes, mut postings): (Kind, Vec<u8>, Vec<Posting>)| {
            if kind != Kind::Key {
                postings.iter_mut().for_each(|posting| posting.revision = None);
            }
            (term(kind, &bytes), postings)
        };
        terms.into_iter().map(put).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_term_comes_back_with_its_postings_and_no_other(terms in any_terms(120)) {
        let found = read(&build(&terms)).unwrap();
        prop_assert_eq!(found.terms, terms);
    }

    #[test]
    fn any_bytes_are_an_index_or_an_error(bytes: Vec<u8>, position: u64) {
        let _ = (TermsHeader::decode(&bytes), TermsFooter::decode(&bytes, 3, position));
        let _ = BlockIndex::decode(&bytes, 1, position);
        for numbering in [Numbering::None, Numbering::Dense, Numbering::Listed] {
            let first = Posting { offset: Offset(position), revision: Some(Revision(1)) };
            let _ = list(&bytes, first, numbering);
        }
        let mut block = bytes.clone();
        block.extend_from_slice(&crc_at(5, position, &bytes).to_le_bytes());
        if let Ok(mut block) = Block::new(5, position, &block, Offset(position)) {
            while let Ok(Some(_)) = block.step() {}
        }
    }
}

#[test]
fn keys_of_the_past_come_back_with_their_last_revisions() {
    let header = TermsHeader { content: Content::Past, base_offset: Offset::ZERO, ..header() };
    let mut builder = TermsBuilder::new(header, 3000);
    let key = |number: u64| term(Kind::Key, format!("key {number:05}").as_bytes());
    (0..3000).for_each(|number| builder.add_past(&key(number), Revision(number * 3)));
    let file = builder.finish();
    let at = file.len() - FOOTER_BYTES;
    let footer = TermsFooter::decode(&file[at..], header.seed(), file.len() as u64).unwrap();
    let index_at = usize::try_from(footer.index_position).unwrap();
    let index = &file[index_at..index_at + usize::try_from(footer.index_bytes).unwrap()];
    let index = BlockIndex::decode(index, footer.block_count, footer.index_position).unwrap();
    assert!(index.blocks().len() > 2);
    for number in 0..3001 {
        let place = index.blocks()[index.find(&key(number)).unwrap()];
        let at = usize::try_from(place.position).unwrap();
        let bytes = &file[at..at + place.bytes as usize];
        let block = Block::new(header.seed(), place.position, bytes, Offset::ZERO).unwrap();
        let found = block.find(&key(number)).unwrap().map(|entry| (entry.count, entry.revisions.unwrap().1));
        assert_eq!(found, (number < 3000).then_some((0, Revision(number * 3))));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let dense = |count: u64| {
        (0..count).map(|n| Posting { offset: Offset(BASE + 7 * n), revision: Some(Revision(n)) })
    };
    let terms = BTreeMap::from([
        (term(Kind::Key, b"a"), dense(1).collect()),
        (term(Kind::Key, b"b"), dense(20).collect::<Vec<_>>()),
        (term(Kind::Type, b"c"), dense(700).map(|posting| Posting { revision: None, ..posting }).collect()),
    ]);
    let file = build(&terms);
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(read(&damaged), Err(HeaderProblem::Invalid(_))), "bit {bit}");
    }
    for cut in 0..file.len() {
        assert!(read(&file[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn the_index_of_another_content_does_not_verify() {
    let file = build(&BTreeMap::from([(
        term(Kind::Key, b"a"),
        vec![Posting { offset: Offset(BASE), revision: None }],
    )]));
    let mut other = file.clone();
    other[..HEADER_BYTES].copy_from_slice(&TermsHeader { batch_hash: 98, ..header() }.encode());
    assert!(read(&file).is_ok());
    assert!(read(&other).is_err());
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let mut start = header().encode();
    start[8] = 2;
    let sum = crc(0, &start[..60]);
    start[60..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(TermsHeader::decode(&start), Err(HeaderProblem::Newer(2)));
}
