//! Output as a template says, like kcat's and rpk's.
//!
//! | Token | Stands for |
//! |---|---|
//! | `%t` `%o` `%r` | topic, offset, revision among the records of the key (-1 without a key) |
//! | `%T` `%d` | append time: milliseconds since the Unix epoch; RFC 3339 |
//! | `%k` `%K` | key; its length in bytes, -1 without one |
//! | `%v` or `%s`, `%V` or `%S` | payload; its length in bytes, -1 without one |
//! | `%y` `%c` `%i` | type, content type, id |
//! | `%g` | tags, with commas between them |
//! | `%h` `%H` | headers as `name=value`, with commas between them; how many |
//! | `%%` | a percent sign |
//! | `\n` `\t` `\r` `\0` `\\` `\xHH` | that byte |
//!
//! `{hex}`, `{base64}` or `{json}` behind a token encodes it, as in `%v{hex}`; another word in braces there is refused, and
//! `\x7b` is a brace that begins none. Everything else goes out as it stands, and values as they are, byte for byte.

use std::io::{self, Write};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::backend::Item;
use crate::units::time_text;

/// A template, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Bytes(Vec<u8>),
    Field(Field, Encoding),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Topic,
    Offset,
    Revision,
    TimeMs,
    Time,
    Key,
    KeyBytes,
    Payload,
    PayloadBytes,
    Type,
    ContentType,
    Id,
    Tags,
    Headers,
    HeaderCount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Plain,
    Hex,
    Base64,
    Json,
}

impl std::str::FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let at = text.len() - rest.len();
            rest = &rest[c.len_utf8()..];
            match c {
                '%' => {
                    let token =
                        rest.chars().next().ok_or(format!("a token is missing behind % at byte {at}"))?;
                    rest = &rest[token.len_utf8()..];
                    if token == '%' {
                        literal.push(b'%');
                        continue;
                    }
                    let field = field(token).ok_or_else(|| {
                        format!("%{token} at byte {at} is no token: use %t %o %r %T %d %k %K %v %V %y %c %i %g %h %H or %%")
                    })?;
                    let (encoding, behind) = encoding(rest)?;
                    rest = behind;
                    if !literal.is_empty() {
                        pieces.push(Piece::Bytes(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Field(field, encoding));
                }
                '\\' => {
                    let (byte, used) = escape(rest).ok_or_else(|| {
                        format!(
                            "the backslash at byte {at} begins no escape: use \\n \\t \\r \\0 \\xHH or \\\\"
                        )
                    })?;
                    literal.push(byte);
                    rest = &rest[used..];
                }
                c => literal.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Bytes(literal));
        }
        Ok(Self(pieces))
    }
}

fn field(token: char) -> Option<Field> {
    Some(match token {
        't' => Field::Topic,
        'o' => Field::Offset,
        'r' => Field::Revision,
        'T' => Field::TimeMs,
        'd' => Field::Time,
        'k' => Field::Key,
        'K' => Field::KeyBytes,
        'v' | 's' => Field::Payload,
        'V' | 'S' => Field::PayloadBytes,
        'y' => Field::Type,
        'c' => Field::ContentType,
        'i' => Field::Id,
        'g' => Field::Tags,
        'h' => Field::Headers,
        'H' => Field::HeaderCount,
        _ => return None,
    })
}

/// A `{` behind a token that is followed by no word in braces is text.
fn encoding(rest: &str) -> Result<(Encoding, &str), String> {
    let named = [("{hex}", Encoding::Hex), ("{base64}", Encoding::Base64), ("{json}", Encoding::Json)];
    for (name, encoding) in named {
        if let Some(behind) = rest.strip_prefix(name) {
            return Ok((encoding, behind));
        }
    }
    let word = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(word, _)| word);
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(format!(
            "{{{word}}} is no encoding: use {{hex}}, {{base64}} or {{json}}, and \\x7b for a brace"
        ));
    }
    Ok((Encoding::Plain, rest))
}

/// The byte, and how many bytes of text stood for it.
fn escape(rest: &str) -> Option<(u8, usize)> {
    let byte = match rest.bytes().next()? {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'0' => 0,
        b'\\' => b'\\',
        b'x' => {
            let digits =
                rest.get(1..3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
            return Some((u8::from_str_radix(digits, 16).ok()?, 3));
        }
        _ => return None,
    };
    Some((byte, 1))
}

impl Template {
    /// Text with escapes and without tokens, as bytes.
    pub(crate) fn literal(text: &str) -> Result<Vec<u8>, String> {
        let Self(pieces) = text.replace('%', "%%").parse()?;
        Ok(pieces
            .into_iter()
            .flat_map(|piece| if let Piece::Bytes(bytes) = piece { bytes } else { Vec::new() })
            .collect())
    }

    /// Writes a record of `topic`.
    pub(crate) fn write(&self, out: &mut impl Write, topic: &str, item: &Item) -> io::Result<()> {
        for piece in &self.0 {
            match piece {
                Piece::Bytes(bytes) => out.write_all(bytes)?,
                Piece::Field(field, encoding) => write_field(out, *field, *encoding, topic, item)?,
            }
        }
        Ok(())
    }
}

fn write_field(
    out: &mut impl Write,
    field: Field,
    encoding: Encoding,
    topic: &str,
    item: &Item,
) -> io::Result<()> {
    let record = &item.record;
    let mut put = |bytes: &[u8]| put(out, encoding, bytes);
    let length = |value: &Option<bytes::Bytes>| value.as_ref().map_or(-1, |value| value.len() as i64);
    match field {
        Field::Topic => put(topic.as_bytes()),
        Field::Offset => put(item.offset.to_string().as_bytes()),
        Field::Revision => match item.revision {
            Some(revision) => put(revision.to_string().as_bytes()),
            None => put(b"-1"),
        },
        Field::TimeMs => put(item.append_time_ms.to_string().as_bytes()),
        Field::Time => put(time_text(item.append_time_ms).as_bytes()),
        Field::Key => put(record.key.as_deref().unwrap_or_default()),
        Field::KeyBytes => put(length(&record.key).to_string().as_bytes()),
        Field::Payload => put(record.payload.as_deref().unwrap_or_default()),
        Field::PayloadBytes => put(length(&record.payload).to_string().as_bytes()),
        Field::Type => put(record.r#type.as_bytes()),
        Field::ContentType => put(record.content_type.as_bytes()),
        Field::Id => put(item.id_text().as_bytes()),
        Field::Tags => put(record.tags.join(",").as_bytes()),
        Field::Headers => {
            let mut joined = Vec::new();
            for header in &record.headers {
                if !joined.is_empty() {
                    joined.push(b',');
                }
                joined.extend_from_slice(header.name.as_bytes());
                joined.push(b'=');
                joined.extend_from_slice(&header.value);
            }
            put(&joined)
        }
        Field::HeaderCount => put(record.headers.len().to_string().as_bytes()),
    }
}

fn put(out: &mut impl Write, encoding: Encoding, bytes: &[u8]) -> io::Result<()> {
    match encoding {
        Encoding::Plain => out.write_all(bytes),
        Encoding::Hex => bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}")),
        Encoding::Base64 => out.write_all(BASE64_STANDARD.encode(bytes).as_bytes()),
        Encoding::Json => {
            serde_json::to_writer(&mut *out, &String::from_utf8_lossy(bytes)).map_err(io::Error::from)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_proto::v1::{Header, Record};

    fn item() -> Item {
        let record = Record {
            key: Some("k".into()),
            r#type: "placed".into(),
            tags: vec!["a".into(), "b".into()],
            headers: vec![Header { name: "n".into(), value: "v".into() }],
            payload: Some(bytes::Bytes::from_static(b"hi\xff")),
            ..Record::default()
        };
        Item { offset: 7, append_time_ms: 1_795_338_000_000, revision: Some(3), record }
    }

    fn write(template: &str) -> Vec<u8> {
        let mut out = Vec::new();
        template.parse::<Template>().unwrap().write(&mut out, "orders", &item()).unwrap();
        out
    }

    #[test]
    fn every_token_stands_for_its_field() {
        assert_eq!(write("%t %o %r %k %y %g %h %H\\n"), b"orders 7 3 k placed a,b n=v 1\n");
        assert_eq!(write("%T %d"), b"1795338000000 2026-11-22T09:00:00.000Z");
        assert_eq!(write("%v|%s|%V|%S|%K"), b"hi\xff|hi\xff|3|3|1");
        assert_eq!(write("100%% %v{hex} %v{base64} %k{json}{x}"), b"100% 6869ff aGn/ \"k\"{x}");
        assert_eq!(write("{%o{ }%o\\x7bx}%o{}"), b"{7{ }7{x}7{}");
        assert_eq!(write("\\x41\\0\\t\\\\"), b"A\0\t\\");
    }

    #[test]
    fn a_template_that_says_nothing_is_refused_with_its_place() {
        for (template, place) in [
            ("ab%", "byte 2"),
            ("%z", "byte 0"),
            ("a\\q", "byte 1"),
            ("\\x4", "byte 0"),
            ("\\", "byte 0"),
            ("\\xé0", "byte 0"),
            ("%k{base46}", "{base46}"),
            ("%o{HEX}", "{HEX}"),
        ] {
            let error = template.parse::<Template>().unwrap_err();
            assert!(error.contains(place), "{template}: {error}");
        }
    }
}
