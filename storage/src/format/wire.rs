//! The protobuf wire encoding, as far as records and settings need it.
//!
//! Written by hand because the engine stores the bytes of its clients as they came: it has to look into them
//! without turning them into objects and back. A message is a sequence of fields:
//!
//! ```text
//! field = varint(number << 3 | kind) value
//! kind 0: varint      kind 1: 8 bytes      kind 2: varint(length) bytes      kind 5: 4 bytes
//! ```

use super::Invalid;

/// The longest varint: ten bytes.
pub const VARINT_BYTES_MAX: usize = 10;

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`put_varint`] appends.
pub const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Reads a varint at `at`; returns it and the place behind it.
#[inline]
pub fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize), Invalid> {
    match bytes.get(at) {
        Some(&byte) if byte < 0x80 => Ok((u64::from(byte), at + 1)),
        _ => long_varint(bytes, at),
    }
}

fn long_varint(bytes: &[u8], at: usize) -> Result<(u64, usize), Invalid> {
    let mut value = 0_u64;
    for (index, &byte) in bytes.get(at..).unwrap_or_default().iter().take(VARINT_BYTES_MAX).enumerate() {
        if index == VARINT_BYTES_MAX - 1 && byte > 1 {
            return Err(Invalid::new("a varint has more than 64 bits", at));
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Ok((value, at + index + 1));
        }
    }
    Err(Invalid::new("a varint has no end", at))
}

/// Appends a number field; 0 is the default and is left out.
pub fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        put_varint(out, u64::from(field) << 3);
        put_varint(out, value);
    }
}

/// Appends a bytes field, also when it is empty.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends a message field whose content `fill` writes.
pub fn put_message(out: &mut Vec<u8>, field: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut message = Vec::new();
    fill(&mut message);
    put_bytes(out, field, &message);
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Kinds 0, 1 and 5.
    Number(u64),
    /// Kind 2.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number, or what is wrong.
    pub fn number(self) -> Result<u64, Invalid> {
        match self {
            Self::Number(value) => Ok(value),
            Self::Bytes(_) => Err(Invalid::new("a number was expected", 0)),
        }
    }

    /// The bytes, or what is wrong.
    pub fn bytes(self) -> Result<&'a [u8], Invalid> {
        match self {
            Self::Bytes(value) => Ok(value),
            Self::Number(_) => Err(Invalid::new("bytes were expected", 0)),
        }
    }

    /// The bytes as text, or what is wrong.
    pub fn text(self) -> Result<&'a str, Invalid> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Invalid::new("text is not UTF-8", 0))
    }

    /// The number as a `u32`, or what is wrong.
    pub fn small(self) -> Result<u32, Invalid> {
        u32::try_from(self.number()?).map_err(|_| Invalid::new("a number is too large", 0))
    }
}

/// Walks over the fields of a message; ends after the first error.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The fields of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Where the next field starts.
    pub fn position(&self) -> usize {
        self.at
    }

    #[inline]
    fn field(&mut self) -> Result<(u32, Value<'a>), Invalid> {
        let start = self.at;
        let (tag, at) = varint(self.bytes, start)?;
        let number = u32::try_from(tag >> 3).unwrap_or(0);
        if number == 0 || number >= 1 << 29 {
            return Err(Invalid::new("a field number is out of range", start));
        }
        let fixed = |bytes: usize| {
            let raw = self.bytes.get(at..at + bytes).ok_or(Invalid::new("a number is cut off", at))?;
            let mut wide = [0; 8];
            wide[..bytes].copy_from_slice(raw);
            Ok((Value::Number(u64::from_le_bytes(wide)), at + bytes))
        };
        let (value, end) = match tag & 7 {
            0 => varint(self.bytes, at).map(|(value, end)| (Value::Number(value), end))?,
            1 => fixed(8)?,
            5 => fixed(4)?,
            2 => {
                let (length, from) = varint(self.bytes, at)?;
                let bytes = usize::try_from(length)
                    .ok()
                    .and_then(|length| self.bytes.get(from..from.checked_add(length)?))
                    .ok_or(Invalid::new("a field is longer than its message", at))?;
                (Value::Bytes(bytes), from + bytes.len())
            }
            _ => return Err(Invalid::new("a field has an unknown kind", start)),
        };
        self.at = end;
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Invalid>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_comes_back_and_has_the_length_foretold(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_bytes(value));
            prop_assert_eq!(varint(&out, 0), Ok((value, out.len())));
            for cut in 0..out.len() {
                prop_assert!(varint(&out[..cut], 0).is_err());
            }
        }

        #[test]
        fn fields_come_back_in_order(numbers: Vec<u64>, bytes: Vec<u8>) {
            let mut out = Vec::new();
            for &number in &numbers {
                put_number(&mut out, 3, number);
            }
            put_bytes(&mut out, 400, &bytes);
            let mut fields = Fields::new(&out);
            for &number in numbers.iter().filter(|&&number| number != 0) {
                prop_assert_eq!(fields.next(), Some(Ok((3, Value::Number(number)))));
            }
            prop_assert_eq!(fields.next(), Some(Ok((400, Value::Bytes(&bytes)))));
            prop_assert_eq!(fields.next(), None);
        }

        #[test]
        fn any_bytes_are_walked_to_an_end(bytes: Vec<u8>) {
            prop_assert!(Fields::new(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        assert!(varint(&[0xff; 10], 0).is_err());
        assert_eq!(varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 0), Ok((u64::MAX, 10)));
    }
}
