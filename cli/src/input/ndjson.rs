//! A record for each line of JSON. The payload is the line as it stands, or one of its fields. Empty lines are passed over.

use std::fmt;

use bytes::Bytes;
use quipu_proto::v1 as pb;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value as Json;

use super::fields::Value;
use super::lines::next_line;
use super::{Entries, Feed, Invalid, Mapping};

pub(super) struct Ndjson<'a> {
    feed: Feed<'a>,
    mapping: Mapping,
    /// The path of each field that is wanted.
    paths: Vec<Vec<String>>,
    bytes_max: usize,
    number: u64,
}

impl<'a> Ndjson<'a> {
    pub(super) fn new(feed: Feed<'a>, mapping: Mapping, bytes_max: usize) -> Self {
        let path = |name: &str| name.split('.').map(str::to_owned).collect();
        let paths = mapping.fields().into_iter().map(|field| path(&field.name)).collect();
        Self { feed, mapping, paths, bytes_max, number: 0 }
    }

    fn record(&self, line: Bytes) -> Result<pb::Record, Invalid> {
        let invalid = |error: serde_json::Error| Invalid::new(format!("it is no JSON: {error}"));
        let mut parser = serde_json::Deserializer::from_slice(&line);
        if self.paths.is_empty() {
            parser.deserialize_ignored_any(IgnoredAny).map_err(invalid)?;
            parser.end().map_err(invalid)?;
            return self.mapping.record(Vec::new(), line);
        }
        let found = Wanted(&self.paths)
            .deserialize(&mut parser)
            .map_err(|error| Invalid::new(format!("it is no object of JSON: {error}")))?;
        parser.end().map_err(invalid)?;
        let values = found.into_iter().map(value).collect();
        self.mapping.record(values, line)
    }
}

impl Entries for Ndjson<'_> {
    fn next(&mut self) -> Option<Result<pb::Record, Invalid>> {
        loop {
            let line = match next_line(&mut self.feed, self.bytes_max, &mut self.number)? {
                Ok(line) => line,
                Err(invalid) => return Some(Err(invalid)),
            };
            if !line.trim_ascii().is_empty() {
                return Some(self.record(line));
            }
        }
    }

    fn number(&self) -> u64 {
        self.number
    }
}

/// Takes the wanted fields out of an object and passes over the others without keeping them.
struct Wanted<'a>(&'a [Vec<String>]);

impl<'de> DeserializeSeed<'de> for Wanted<'_> {
    type Value = Vec<Option<Json>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Vec<Option<Json>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = vec![None; self.0.len()];
        while let Some(is_wanted) = map.next_key_seed(Key(self.0))? {
            let Some(name) = is_wanted else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value: Json = map.next_value()?;
            for (path, found) in self.0.iter().zip(&mut found) {
                if path[0] == name {
                    *found = path[1..].iter().try_fold(&value, |value, name| value.get(name)).cloned();
                }
            }
        }
        Ok(found)
    }
}

/// A key of the object, if it is one of those wanted.
struct Key<'a>(&'a [Vec<String>]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<String>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().any(|path| path[0] == name).then(|| name.to_owned()))
    }
}

fn value(found: Option<Json>) -> Value {
    match found {
        None => Value::Missing,
        Some(Json::Null) => Value::Null,
        Some(Json::Array(items)) => Value::Many(items.into_iter().map(text).collect()),
        Some(value) => Value::One(text(value)),
    }
}

/// Text as it is, everything else as JSON writes it.
fn text(value: Json) -> Bytes {
    match value {
        Json::String(text) => text.into(),
        value => value.to_string().into(),
    }
}
