//! Which records a reader wants.

use bytes::Bytes;
use quipu_proto::v1 as pb;
use quipu_storage::RecordView;

use crate::error::Violations;

/// Keys, prefixes, types, tags and headers of a filter, together.
const ENTRIES_MAX: usize = 256;
/// Entries that make a look at a record about twice as long.
const ENTRIES_OF_A_LOOK: usize = 16;
/// Bytes of them all.
const BYTES_MAX: usize = 64 << 10;
/// Tags of one set.
const TAGS_MAX: usize = 64;

/// A record passes if it satisfies each part that is not empty.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    keys: Vec<Bytes>,
    key_prefixes: Vec<Bytes>,
    types: Vec<String>,
    tags: Vec<Vec<String>>,
    headers: Vec<(String, Bytes)>,
    entries: usize,
}

impl Filter {
    /// The filter of a request; `None` if every record passes.
    pub(crate) fn from_wire(wire: Option<pb::Filter>, violations: &mut Violations) -> Option<Self> {
        let pb::Filter { mut keys, key_prefixes, types, tags, headers } = wire?;
        let all_tags = tags.iter().map(|set| set.all.len()).sum::<usize>();
        let entries =
            keys.len() + key_prefixes.len() + types.len() + all_tags.max(tags.len()) + headers.len();
        let bytes = keys.iter().chain(&key_prefixes).map(Bytes::len).sum::<usize>()
            + types.iter().chain(tags.iter().flat_map(|set| &set.all)).map(String::len).sum::<usize>()
            + headers.iter().map(|header| header.name.len() + header.value.len()).sum::<usize>();
        violations.require(entries <= ENTRIES_MAX, "filter", format!("has at most {ENTRIES_MAX} entries"));
        violations.require(bytes <= BYTES_MAX, "filter", format!("has at most {BYTES_MAX} bytes"));
        let is_set = |set: &pb::filter::TagSet| (1..=TAGS_MAX).contains(&set.all.len());
        violations.require(tags.iter().all(is_set), "filter.tags", format!("each has 1 to {TAGS_MAX} tags"));
        if entries == 0 {
            return None;
        }
        keys.sort_unstable();
        Some(Self {
            keys,
            key_prefixes,
            types,
            tags: tags.into_iter().map(|set| set.all).collect(),
            headers: headers.into_iter().map(|header| (header.name, header.value)).collect(),
            entries,
        })
    }

    /// About how many times as long as a look at a record takes this one.
    pub(crate) fn weight(&self) -> usize {
        1 + self.entries / ENTRIES_OF_A_LOOK
    }

    /// Whether the record passes.
    pub(crate) fn passes(&self, record: &RecordView<'_>) -> bool {
        let Self { keys, key_prefixes, types, tags, headers, entries: _ } = self;
        let has_key =
            || record.key.is_some_and(|key| keys.binary_search_by(|wanted| wanted[..].cmp(key)).is_ok());
        let has_prefix =
            || record.key.is_some_and(|key| key_prefixes.iter().any(|prefix| key.starts_with(prefix)));
        let has_all = |set: &Vec<String>| set.iter().all(|wanted| record.tags().any(|tag| tag == wanted));
        let has_header = |(name, value): &(String, Bytes)| {
            record.headers().any(|(found, content)| found == name && content == &value[..])
        };
        (keys.is_empty() || has_key())
            && (key_prefixes.is_empty() || has_prefix())
            && (types.is_empty() || types.iter().any(|wanted| wanted == record.record_type))
            && (tags.is_empty() || tags.iter().any(has_all))
            && headers.iter().all(has_header)
    }
}

#[cfg(test)]
mod tests {
    use quipu_storage::Record;

    use super::*;

    fn passes(filter: pb::Filter, record: &Record) -> bool {
        let mut violations = Violations::default();
        let filter = Filter::from_wire(Some(filter), &mut violations);
        assert!(violations.is_empty());
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        filter.is_none_or(|filter| filter.passes(&RecordView::decode(&bytes).expect("just encoded")))
    }

    #[test]
    fn a_record_passes_if_it_satisfies_every_part() {
        let record = Record::keyed("order-7", "x")
            .with_type("paid")
            .with_tag("eu")
            .with_tag("vip")
            .with_header("source", "shop");
        let set = |all: &[&str]| pb::filter::TagSet { all: all.iter().map(|tag| (*tag).into()).collect() };
        let header = |value: &'static str| pb::Header {
            name: "source".into(),
            value: Bytes::from_static(value.as_bytes()),
        };
        let any = pb::Filter::default;
        let yes = [
            any(),
            pb::Filter { keys: vec!["a".into(), "order-7".into()], ..any() },
            pb::Filter { key_prefixes: vec!["order-".into()], ..any() },
            pb::Filter { types: vec!["placed".into(), "paid".into()], ..any() },
            pb::Filter { tags: vec![set(&["us"]), set(&["eu", "vip"])], ..any() },
            pb::Filter { headers: vec![header("shop")], types: vec!["paid".into()], ..any() },
        ];
        let no = [
            pb::Filter { keys: vec!["order".into()], ..any() },
            pb::Filter { key_prefixes: vec!["orders".into()], ..any() },
            pb::Filter { types: vec!["placed".into()], ..any() },
            pb::Filter { tags: vec![set(&["eu", "us"])], ..any() },
            pb::Filter { headers: vec![header("web")], ..any() },
            pb::Filter { types: vec!["paid".into()], keys: vec!["other".into()], ..any() },
        ];
        for filter in yes {
            assert!(passes(filter.clone(), &record), "{filter:?}");
        }
        for filter in no {
            assert!(!passes(filter.clone(), &record), "{filter:?}");
        }
    }

    #[test]
    fn a_filter_beyond_its_bounds_is_refused() {
        for filter in [
            pb::Filter { types: vec!["x".into(); ENTRIES_MAX + 1], ..Default::default() },
            pb::Filter { keys: vec![vec![0; BYTES_MAX + 1].into()], ..Default::default() },
            pb::Filter { tags: vec![pb::filter::TagSet::default()], ..Default::default() },
            pb::Filter {
                tags: vec![pb::filter::TagSet { all: vec!["x".into(); TAGS_MAX] }; 5],
                ..Default::default()
            },
        ] {
            let mut violations = Violations::default();
            let _ = Filter::from_wire(Some(filter), &mut violations);
            assert!(!violations.is_empty());
        }
    }
}
