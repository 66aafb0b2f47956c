//! A term index and an index of past keys, byte by byte.

use std::collections::BTreeMap;

use quipu_storage::format::terms::build::TermsBuilder;
use quipu_storage::format::terms::postings::Revisions;
use quipu_storage::format::terms::{Content, Kind, TermsHeader, term};
use quipu_storage::{Offset, Revision, Uid};

use super::Golden;

/// The first offset of the segment.
pub const BASE: u64 = 5000;

/// What the golden index is of.
pub fn header() -> TermsHeader {
    TermsHeader {
        content: Content::Segment,
        topic: Uid([0x77; 16]),
        base_offset: Offset(BASE),
        next_offset: Offset(BASE + 3000),
        batch_hash: 0x0bad_cafe,
    }
}

/// The terms of the golden index in order, with their offsets and revisions: alone, in pairs, in a list, in a run.
pub fn terms() -> Vec<(Vec<u8>, Vec<Offset>, Vec<Revision>)> {
    let offsets =
        |numbers: &mut dyn Iterator<Item = u64>| numbers.map(|number| Offset(BASE + number)).collect();
    let key = |bytes: &[u8]| term(Kind::Key, bytes);
    let mut terms = vec![
        (key(b""), offsets(&mut [7].into_iter()), vec![Revision(0)]),
        (key(b"listed"), offsets(&mut (0..2000)), (0..2000).map(|n| Revision(n + n / 3)).collect()),
        (key(b"old"), offsets(&mut [1, 9, 2001].into_iter()), Vec::new()),
        (key(b"pair"), offsets(&mut [3, 2999].into_iter()), vec![Revision(40), Revision(42)]),
    ];
    let many = (0..500).map(|n| {
        let name = format!("stream-{n:04}");
        (key(name.as_bytes()), offsets(&mut (0..5).map(|m| 2000 + n + m)), (0..5).map(Revision).collect())
    });
    terms.extend(many);
    terms.push((term(Kind::Type, "gelöscht".as_bytes()), offsets(&mut (0..1500).map(|n| 2 * n)), Vec::new()));
    terms.push((term(Kind::Tag, b"a"), offsets(&mut [0, 1, 2, 1000].into_iter()), Vec::new()));
    terms
}

/// The last revision of each key of the golden index of the past.
pub fn past() -> Vec<(Vec<u8>, Revision)> {
    let key = |n: u64| (term(Kind::Key, format!("gone {n:04}").as_bytes()), Revision(n * n));
    (0..1000).map(key).collect()
}

pub(super) fn golden() -> Golden {
    let terms = terms();
    let mut builder = TermsBuilder::new(header(), terms.len() as u64);
    for (term, offsets, revisions) in &terms {
        let revisions = match revisions.first() {
            None => Revisions::None,
            Some(&first) if revisions[revisions.len() - 1] - first == revisions.len() as u64 - 1 => {
                Revisions::Dense(first)
            }
            Some(_) => Revisions::Listed(revisions),
        };
        builder.add(term, offsets, revisions);
    }
    let past = past();
    let of_past =
        TermsHeader { content: Content::Past, base_offset: Offset::ZERO, batch_hash: 0, ..header() };
    let mut of_past = TermsBuilder::new(of_past, past.len() as u64);
    past.iter().for_each(|(key, revision)| of_past.add_past(key, *revision));
    let files = BTreeMap::from([
        (format!("{BASE:020}-0.terms"), builder.finish()),
        ("00000000000000000000.past".to_owned(), of_past.finish()),
    ]);
    Golden { name: "terms", files, topics: BTreeMap::new() }
}
