//! A record for each line of JSON. The payload is the line as it stands, or one of its fields. Empty lines are passed over.
//!
//! No value is computed with: what is no text is taken as it stands in the line. A number that went through a float would
//! come out as another, and two keys would become one.

use std::fmt;

use bytes::Bytes;
use quipu_proto::v1 as pb;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

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
        let paths: Vec<&[String]> = self.paths.iter().map(Vec::as_slice).collect();
        let found = Wanted(&paths)
            .deserialize(&mut parser)
            .map_err(|error| Invalid::new(format!("it is no object of JSON: {error}")))?;
        parser.end().map_err(invalid)?;
        let values = found.into_iter().map(value).collect::<Result<_, _>>().map_err(invalid)?;
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

/// Takes the wanted fields out of an object and passes over the others.
struct Wanted<'a>(&'a [&'a [String]]);

impl<'de> DeserializeSeed<'de> for Wanted<'_> {
    type Value = Vec<Option<&'de RawValue>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Vec<Option<&'de RawValue>>;

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
            let value: &RawValue = map.next_value()?;
            for (path, found) in self.0.iter().zip(&mut found) {
                if path[0] == name {
                    *found = within(value, &path[1..]).map_err(serde::de::Error::custom)?;
                }
            }
        }
        Ok(found)
    }
}

/// The field of that path within a value; what is no object has no fields.
fn within<'de>(value: &'de RawValue, path: &[String]) -> serde_json::Result<Option<&'de RawValue>> {
    if path.is_empty() {
        return Ok(Some(value));
    }
    if !value.get().starts_with('{') {
        return Ok(None);
    }
    let mut parser = serde_json::Deserializer::from_str(value.get());
    Ok(Wanted(&[path]).deserialize(&mut parser)?.into_iter().next().flatten())
}

/// A key of the object, if it is one of those wanted.
struct Key<'a>(&'a [&'a [String]]);

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

fn value(found: Option<&RawValue>) -> serde_json::Result<Value> {
    let Some(found) = found else { return Ok(Value::Missing) };
    Ok(match found.get() {
        "null" => Value::Null,
        list if list.starts_with('[') => {
            let items: Vec<&RawValue> = serde_json::from_str(list)?;
            Value::Many(items.into_iter().map(text).collect::<Result<_, _>>()?)
        }
        _ => Value::One(text(found)?),
    })
}

/// Text as it is, everything else as it stands.
fn text(value: &RawValue) -> serde_json::Result<Bytes> {
    let shown = value.get();
    if shown.starts_with('"') {
        return serde_json::from_str::<String>(shown).map(Bytes::from);
    }
    Ok(Bytes::copy_from_slice(shown.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(line: &str) -> Result<Bytes, Invalid> {
        let mapping = Mapping { key: Some("a.k".parse().unwrap()), ..Mapping::default() };
        let feed = Feed::new(std::io::Cursor::new(line.as_bytes().to_vec()), Box::new(|| Ok(())));
        let record = Ndjson::new(feed, mapping, 1 << 20).next().unwrap()?;
        Ok(record.key.unwrap())
    }

    // Numbers went through a float: 12345678901234567890 and 12345678901234567891 became one key, and compaction then
    // removed the one for the other.
    #[test]
    fn a_number_is_taken_to_its_last_digit_as_it_stands() {
        for number in [
            "12345678901234567890",
            "12345678901234567891",
            "123456789012345678901234567890",
            "1e400",
            "1E+2",
            "-0",
            "-0.0",
            "1.0",
            "1.10",
            "0.1000000000000000055",
            "0.1",
        ] {
            assert_eq!(key_of(&format!("{{\"a\":{{\"k\": {number} }}}}")).unwrap(), number);
        }
    }

    #[test]
    fn text_is_unescaped_and_what_has_parts_stands_as_it_is() {
        for (value, key) in [
            (r#""x\u0041\n""#, "xA\n"),
            (r#""""#, ""),
            ("true", "true"),
            (r#"{"z": 1,"b":1.50}"#, r#"{"z": 1,"b":1.50}"#),
        ] {
            assert_eq!(key_of(&format!("{{\"b\":0,\"a\":{{\"j\":1,\"k\":{value}}}}}")).unwrap(), key);
        }
        // The last one counts if a name comes twice.
        assert_eq!(key_of(r#"{"a":{"k":1},"a":{"k":2,"k":3}}"#).unwrap(), "3");
        for line in
            [r#"{"a":{"k":"\ud800"}}"#, r#"{"a":{"k":01}}"#, r#"{"a":{}}"#, r#"{"a":1}"#, r#"{"a":{"k":1e}}"#]
        {
            assert!(key_of(line).is_err(), "{line}");
        }
    }
}
