//! Filters of requests: decoded and held to their bounds. What they mean is the engine's.

use quipu_proto::v1 as pb;
use quipu_storage::{Error, Filter};

use crate::error::Violations;

/// Entries that make a look at a record about twice as long.
const ENTRIES_OF_A_LOOK: usize = 16;
/// Tags of one set.
const TAGS_MAX: usize = 64;

/// The filter of a request; `None` if every record passes.
pub(crate) fn from_wire(
    wire: Option<pb::Filter>,
    field: &str,
    violations: &mut Violations,
) -> Option<Filter> {
    let pb::Filter { keys, key_prefixes, types, tags, headers } = wire?;
    let is_set = |set: &pb::filter::TagSet| (1..=TAGS_MAX).contains(&set.all.len());
    let rule = format!("each has 1 to {TAGS_MAX} tags");
    violations.require(tags.iter().all(is_set), format!("{field}.tags"), rule);
    let filter = Filter {
        keys: keys.into_iter().map(Into::into).collect(),
        key_prefixes: key_prefixes.into_iter().map(Into::into).collect(),
        types,
        tags: tags.into_iter().map(|set| set.all).filter(|all| !all.is_empty()).collect(),
        headers: headers.into_iter().map(|header| (header.name, header.value.into())).collect(),
    };
    if let Err(Error::InvalidFilter { rule }) = filter.check() {
        violations.add(field, rule);
    }
    (filter != Filter::default()).then_some(filter)
}

/// About how many times as long as a look at a record takes one with this filter.
pub(crate) fn weight(filter: &Filter) -> usize {
    let tags = filter.tags.iter().flatten().count();
    let entries = filter.keys.len() + filter.key_prefixes.len() + filter.types.len() + tags;
    1 + (entries + filter.headers.len()) / ENTRIES_OF_A_LOOK
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quipu_storage::{Record, RecordView};

    use super::*;

    fn passes(filter: pb::Filter, record: &Record) -> bool {
        let mut violations = Violations::default();
        let filter = from_wire(Some(filter), "filter", &mut violations);
        assert!(violations.is_empty());
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        filter.is_none_or(|filter| filter.matches(&RecordView::decode(&bytes).expect("just encoded")))
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
            pb::Filter { types: vec!["x".into(); Filter::PARTS_MAX + 1], ..Default::default() },
            pb::Filter { keys: vec![vec![0; Filter::BYTES_MAX + 1].into()], ..Default::default() },
            pb::Filter { tags: vec![pb::filter::TagSet::default()], ..Default::default() },
            pb::Filter { types: vec![String::new()], ..Default::default() },
            pb::Filter {
                tags: vec![pb::filter::TagSet { all: vec!["x".into(); TAGS_MAX] }; 5],
                ..Default::default()
            },
        ] {
            let mut violations = Violations::default();
            let _ = from_wire(Some(filter), "filter", &mut violations);
            assert!(!violations.is_empty());
        }
    }
}
