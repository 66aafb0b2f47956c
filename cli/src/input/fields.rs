//! Which fields of an entry become which parts of a record.

use bytes::Bytes;
use quipu_proto::v1 as pb;

use super::Invalid;
use crate::format::json::parse_id;
use crate::units::{parse_time, time_text};

/// A field of an entry by its name; a name that ends in `?` may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldName {
    pub(crate) name: String,
    pub(crate) is_optional: bool,
}

impl std::str::FromStr for FieldName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('?').unwrap_or(text);
        if name.is_empty() {
            return Err("a field needs a name".into());
        }
        Ok(Self { name: name.into(), is_optional: name.len() < text.len() })
    }
}

/// What the command line says about the parts of records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mapping {
    pub(crate) key: Option<FieldName>,
    pub(crate) kind: Option<FieldName>,
    pub(crate) time: Option<FieldName>,
    pub(crate) id: Option<FieldName>,
    pub(crate) payload: Option<FieldName>,
    pub(crate) erasure_key: Option<FieldName>,
    pub(crate) tags: Vec<FieldName>,
    /// Name of the header, and the field.
    pub(crate) headers: Vec<(String, FieldName)>,
    /// Of lines: what separates key and payload.
    pub(crate) key_separator: Option<String>,
    /// What every record has.
    pub(crate) constant: pb::Record,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// There is no such field.
    Missing,
    /// It says nothing: JSON's `null`, an empty column.
    Null,
    /// One value.
    One(Bytes),
    /// Several: a list of JSON.
    Many(Vec<Bytes>),
}

impl Mapping {
    /// Every field that is named, in the order in which [`record`](Self::record) takes their values.
    pub(crate) fn fields(&self) -> Vec<&FieldName> {
        let single = [&self.key, &self.kind, &self.time, &self.id, &self.payload, &self.erasure_key];
        let single = single.into_iter().flatten();
        single.chain(&self.tags).chain(self.headers.iter().map(|(_, field)| field)).collect()
    }

    /// Makes a record of an entry whose `fields` have these values. `payload` is the whole entry.
    pub(crate) fn record(&self, values: Vec<Value>, payload: Bytes) -> Result<pb::Record, Invalid> {
        let mut values = values.into_iter();
        let mut next = || values.next().unwrap_or(Value::Missing);
        let mut record = self.constant.clone();
        record.payload = Some(payload);
        if let Some(field) = &self.key
            && let Some(key) = one(field, next())?
        {
            record.key = Some(key);
        }
        if let Some(field) = &self.kind
            && let Some(kind) = one(field, next())?
        {
            record.r#type = text(field, &kind)?;
        }
        if let Some(field) = &self.time
            && let Some(time) = one(field, next())?
        {
            let value = text(field, &time)?;
            let time = value.parse::<u64>().ok().or_else(|| parse_time(&value));
            let time =
                time.ok_or_else(|| Invalid::new(format!("field {:?} is no time: {value:?}", field.name)))?;
            record.headers.push(pb::Header { name: "time".into(), value: time_text(time).into() });
        }
        if let Some(field) = &self.id
            && let Some(id) = one(field, next())?
        {
            record.id = Some(parse_id(&text(field, &id)?).map_err(Invalid::new)?);
        }
        if let Some(field) = &self.payload {
            record.payload = match next() {
                // A tombstone: the field is there, and says that there is nothing.
                Value::Null => None,
                value => one(field, value)?,
            };
        }
        if let Some(field) = &self.erasure_key
            && let Some(erasure_key) = one(field, next())?
        {
            record.erasure_key = Some(text(field, &erasure_key)?);
        }
        for field in &self.tags {
            match next() {
                Value::Many(tags) => {
                    for tag in tags {
                        record.tags.push(text(field, &tag)?);
                    }
                }
                value => {
                    if let Some(tag) = one(field, value)? {
                        record.tags.push(text(field, &tag)?);
                    }
                }
            }
        }
        for (name, field) in &self.headers {
            if let Some(value) = one(field, next())? {
                record.headers.push(pb::Header { name: name.clone(), value });
            }
        }
        Ok(record)
    }
}

fn one(field: &FieldName, value: Value) -> Result<Option<Bytes>, Invalid> {
    match value {
        Value::One(bytes) => Ok(Some(bytes)),
        Value::Missing | Value::Null if field.is_optional => Ok(None),
        Value::Missing => Err(Invalid::new(format!(
            "there is no field {:?} (write {}? if it may be missing)",
            field.name, field.name
        ))),
        Value::Null => {
            Err(Invalid::new(format!("field {:?} is empty (write {}? if it may be)", field.name, field.name)))
        }
        Value::Many(_) => {
            Err(Invalid::new(format!("field {:?} is a list, where one value is needed", field.name)))
        }
    }
}

fn text(field: &FieldName, bytes: &[u8]) -> Result<String, Invalid> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|_| Invalid::new(format!("field {:?} is not UTF-8", field.name)))
}
