//! Keys as text: what is shown can be given back.
//!
//! A key is bytes. Shown, UTF-8 stands as it is, but for what could steer a terminal, and for the backslash; everything
//! else stands as an escape. Wherever a key is given on the command line the same escapes are read.
//!
//! | Escape | Stands for |
//! |---|---|
//! | `\\` | a backslash |
//! | `\"` `\'` | that quote; `quipu dump` shows them so |
//! | `\n` `\r` `\t` | that character |
//! | `\u{HEX}` | the character of that number |
//! | `\xHH` | that byte |

use std::fmt;
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use serde_json::Value;

use crate::output::ShownBytes;

/// A key, or the beginning of one, as it is given on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) Bytes);

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut key = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(place) = rest.find('\\') {
            key.extend_from_slice(&rest.as_bytes()[..place]);
            rest = unescape(&rest[place + 1..], &mut key).ok_or_else(|| {
                let at = text.len() - rest.len() + place;
                format!(
                    "the backslash at byte {at} begins no escape: write \\\\ for a backslash, \\xHH for a byte"
                )
            })?;
        }
        key.extend_from_slice(rest.as_bytes());
        Ok(Self(key.into()))
    }
}

/// Puts a key into a line of JSON: as text under `key`, or what is not UTF-8 as base64 under `key_base64`.
pub(crate) fn put_key(key: &[u8], line: &mut Value) {
    match std::str::from_utf8(key) {
        Ok(key) => line["key"] = key.into(),
        Err(_) => line["key_base64"] = BASE64_STANDARD.encode(key).into(),
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ShownKey(&self.0).fmt(f)
    }
}

/// Takes in what stands behind a backslash; hands back what comes behind that.
fn unescape<'a>(escape: &'a str, key: &mut Vec<u8>) -> Option<&'a str> {
    let hex = |digits: &str| {
        let is_hex = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let byte = match escape.chars().next()? {
        '\\' => b'\\',
        '"' => b'"',
        '\'' => b'\'',
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'x' => {
            key.push(u8::try_from(hex(escape.get(1..3)?)?).ok()?);
            return escape.get(3..);
        }
        'u' => {
            let (digits, rest) = escape.strip_prefix("u{")?.split_once('}')?;
            let character = char::from_u32(hex(digits)?)?;
            key.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(rest);
        }
        _ => return None,
    };
    key.push(byte);
    escape.get(1..)
}

/// A key for a person, and for the command line.
pub(crate) struct ShownKey<'a>(pub(crate) &'a [u8]);

impl fmt::Display for ShownKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, part) in self.0.split(|byte| *byte == b'\\').enumerate() {
            if number > 0 {
                f.write_str("\\\\")?;
            }
            write!(f, "{}", ShownBytes(part))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_shown_can_be_given_back() {
        let characters = "a \\\n\r\t\u{0}\u{1b}\u{200b}\u{feff}é日\u{10ffff}{}x";
        let mut parts: Vec<Vec<u8>> = characters.chars().map(|c| c.to_string().into_bytes()).collect();
        parts.extend((0..=255).map(|byte| vec![byte]));
        for first in &parts {
            for second in &parts {
                let key = [&first[..], second].concat();
                let key = Key(key.into());
                let shown = key.to_string();
                assert_eq!(shown.parse(), Ok(key), "{shown}");
                assert!(!shown.contains(char::is_control), "{shown:?}");
            }
        }
        assert_eq!(ShownKey(b"a\\b\xff\n").to_string(), r"a\\b\xff\n");
        assert_eq!(r"grün\u{a}\x41,".parse(), Ok(Key("grün\nA,".into())));
    }

    /// `quipu dump` has a form of its own.
    #[test]
    fn a_key_from_a_dump_is_taken_as_well() {
        let key: Vec<u8> = (0..=255).collect();
        assert_eq!(key.escape_ascii().to_string().parse(), Ok(Key(key.into())));
    }

    #[test]
    fn a_backslash_that_begins_no_escape_is_refused_with_its_place() {
        for (text, place) in [
            ("\\", "byte 0"),
            ("ab\\", "byte 2"),
            ("\\n\\q", "byte 2"),
            ("\\x4", "byte 0"),
            ("\\x+1", "byte 0"),
            ("\\xé0", "byte 0"),
            ("\\u{}", "byte 0"),
            ("\\u{+41}", "byte 0"),
            ("\\u{d800}", "byte 0"),
            ("\\u{110000}", "byte 0"),
            ("\\u{41", "byte 0"),
        ] {
            let error = text.parse::<Key>().unwrap_err();
            assert!(error.contains(place) && error.contains(r"\xHH"), "{text}: {error}");
        }
    }
}
