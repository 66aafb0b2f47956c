//! Which records are wanted: the meaning of the contract's `Filter`, for the embedded engine.

use quipu_proto::v1 as pb;
use quipu_storage::RecordView;

/// Whether everything is wanted.
pub(super) fn is_empty(filter: &pb::Filter) -> bool {
    filter.keys.is_empty()
        && filter.key_prefixes.is_empty()
        && filter.types.is_empty()
        && filter.tags.is_empty()
        && filter.headers.is_empty()
}

/// Whether a record is wanted.
pub(super) fn matches(filter: &pb::Filter, record: &RecordView<'_>) -> bool {
    let of = |is_unset: bool, matches: &dyn Fn() -> bool| is_unset || matches();
    of(filter.keys.is_empty(), &|| {
        record.key.is_some_and(|key| filter.keys.iter().any(|wanted| wanted == key))
    }) && of(filter.key_prefixes.is_empty(), &|| {
        record.key.is_some_and(|key| filter.key_prefixes.iter().any(|prefix| key.starts_with(prefix)))
    }) && of(filter.types.is_empty(), &|| filter.types.iter().any(|wanted| wanted == record.record_type))
        && of(filter.tags.is_empty(), &|| {
            let has = |wanted: &String| record.tags().any(|tag| tag == wanted);
            filter.tags.iter().any(|set| set.all.iter().all(has))
        })
        && filter
            .headers
            .iter()
            .all(|wanted| record.headers().any(|(name, value)| name == wanted.name && value == wanted.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_storage::Record;

    fn wants(filter: &pb::Filter) -> bool {
        let record = Record::keyed("order-7", "x")
            .with_type("placed")
            .with_tag("eu")
            .with_tag("vip")
            .with_header("h", "v");
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        matches(filter, &RecordView::decode(&bytes).unwrap())
    }

    #[test]
    fn a_record_must_satisfy_every_field_that_is_set() {
        let tags = |tags: &[&str]| pb::filter::TagSet { all: tags.iter().map(|tag| (*tag).into()).collect() };
        let yes = pb::Filter {
            keys: vec!["order-7".into(), "other".into()],
            key_prefixes: vec!["ord".into()],
            types: vec!["paid".into(), "placed".into()],
            tags: vec![tags(&["us"]), tags(&["eu", "vip"])],
            headers: vec![pb::Header { name: "h".into(), value: "v".into() }],
        };
        assert!(wants(&pb::Filter::default()) && is_empty(&pb::Filter::default()));
        assert!(wants(&yes) && !is_empty(&yes));
        assert!(!wants(&pb::Filter { keys: vec!["order".into()], ..yes.clone() }));
        assert!(!wants(&pb::Filter { key_prefixes: vec!["x".into()], ..yes.clone() }));
        assert!(!wants(&pb::Filter { types: vec!["paid".into()], ..yes.clone() }));
        assert!(!wants(&pb::Filter { tags: vec![tags(&["eu", "us"])], ..yes.clone() }));
        let headers = vec![pb::Header { name: "h".into(), value: "w".into() }];
        assert!(!wants(&pb::Filter { headers, ..yes }));
    }
}
