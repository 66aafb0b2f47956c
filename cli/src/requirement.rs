//! What must hold for an append, as it is written on the command line.

use quipu_client::ExpectedRevision;
use quipu_proto::v1 as pb;

use crate::key::Key;

/// Conditions that an append has at most.
pub(crate) const REQUIREMENTS_MAX: usize = 100;

/// A condition on a topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Requirement {
    /// The last revision of a key is as expected.
    Revision { key: Vec<u8>, expected: ExpectedRevision },
    /// The topic's next offset is this.
    NextOffset(u64),
    /// No record behind an offset matches; without one, none at all.
    NoMatch { filter: pb::Filter, after: Option<u64> },
}

/// One that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmet {
    /// Its place among all.
    pub(crate) number: usize,
    /// What there is: a last revision or a next offset, if there is any.
    pub(crate) actual: Option<u64>,
    /// The first record that contradicts, if there is one that can be read.
    pub(crate) offset: Option<u64>,
}

/// `7`, `no-stream`, `exists` or `any`.
pub(crate) fn parse_expected(text: &str) -> Result<ExpectedRevision, String> {
    match text {
        "no-stream" => Ok(ExpectedRevision::NoStream),
        "exists" => Ok(ExpectedRevision::Exists),
        "any" => Ok(ExpectedRevision::Any),
        number => match number.parse() {
            Ok(revision) => Ok(ExpectedRevision::Exact(revision)),
            Err(_) => {
                Err(format!("{text:?} is no expectation: use a revision (7), no-stream, exists or any"))
            }
        },
    }
}

/// `tag=T,type=T,key=K,after=OFFSET`: no record behind that offset has all of these; of types and keys any. A comma in a key
/// is written `\x2c`.
pub(crate) fn parse_no_match(text: &str) -> Result<Requirement, String> {
    let (mut filter, mut tags, mut after) = (pb::Filter::default(), Vec::new(), None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tag", tag)) => tags.push(tag.to_owned()),
            Some(("type", kind)) => filter.types.push(kind.into()),
            Some(("key", key)) => filter.keys.push(key.parse::<Key>()?.0),
            Some(("after", offset)) => {
                after = Some(offset.parse().map_err(|_| format!("{offset:?} is no offset"))?);
            }
            _ => return Err(format!("{part:?} is none of tag=, type=, key=, after=")),
        }
    }
    if !tags.is_empty() {
        filter.tags.push(pb::filter::TagSet { all: tags });
    }
    if filter == pb::Filter::default() {
        return Err("name at least a tag, a type or a key".into());
    }
    Ok(Requirement::NoMatch { filter, after })
}

/// How to look at what contradicts.
pub(crate) fn look_at(topic: &str, offset: Option<u64>) -> String {
    match offset {
        Some(offset) => {
            format!("`quipu read {topic} --from {offset} --count 1` shows the record that contradicts")
        }
        None => format!("`quipu streams {topic}` shows the last revision of each key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_filter_may_have_any_byte() {
        let filter = pb::Filter { keys: vec![bytes::Bytes::from_static(b"a,\xff")], ..pb::Filter::default() };
        let wanted = Requirement::NoMatch { filter, after: Some(3) };
        assert_eq!(parse_no_match(r"key=a\x2c\xff,after=3"), Ok(wanted));
        for text in ["", "key", "after=1", "colour=red", "key=a,after=x", r"key=\q"] {
            assert!(parse_no_match(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_expectation_is_a_revision_or_a_word() {
        assert_eq!(parse_expected("0"), Ok(ExpectedRevision::Exact(0)));
        assert_eq!(parse_expected("no-stream"), Ok(ExpectedRevision::NoStream));
        assert_eq!(parse_expected("exists"), Ok(ExpectedRevision::Exists));
        assert_eq!(parse_expected("any"), Ok(ExpectedRevision::Any));
        for text in ["", "-1", "Any", "1x"] {
            assert!(parse_expected(text).is_err(), "{text}");
        }
    }
}
