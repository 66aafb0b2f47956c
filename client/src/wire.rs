//! The protobuf wire encoding, as far as batches of records need it.
//!
//! Records are looked into where they lie: the payload of a record that was read is a slice of the message that brought
//! it. Everything else on the wire goes through prost.
//!
//! ```text
//! field = varint(number << 3 | kind) value
//! kind 0: varint      kind 1: 8 bytes      kind 2: varint(length) bytes      kind 5: 4 bytes
//! ```

use std::ops::Range;

use bytes::{BufMut, BytesMut};

/// Appends a varint.
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// How many bytes [`put_varint`] appends.
pub(crate) const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// How many bytes a field of kind 2 with a number below 16 takes.
pub(crate) const fn field_bytes(length: usize) -> usize {
    1 + varint_bytes(length as u64) + length
}

/// Appends the head of a field of kind 2: its value of `length` bytes follows.
pub(crate) fn put_head(out: &mut BytesMut, number: u32, length: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, length as u64);
}

/// Appends a field of kind 2.
pub(crate) fn put_bytes(out: &mut BytesMut, number: u32, value: &[u8]) {
    put_head(out, number, value.len());
    out.put_slice(value);
}

/// What is wrong with a message.
pub(crate) type Malformed = &'static str;

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Kinds 0, 1 and 5.
    Number(u64),
    /// Kind 2: where in the message its bytes lie.
    Bytes(Range<usize>),
}

impl Value {
    /// The number, or what is wrong.
    pub(crate) fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Number(value) => Ok(value),
            Self::Bytes(_) => Err("a number was expected"),
        }
    }

    /// Where the bytes lie, or what is wrong.
    pub(crate) fn range(self) -> Result<Range<usize>, Malformed> {
        match self {
            Self::Bytes(range) => Ok(range),
            Self::Number(_) => Err("bytes were expected"),
        }
    }
}

/// Walks over the fields of a message; ends after the first error.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The fields of `message`.
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    /// Where the next field starts.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    #[inline]
    fn field(&mut self) -> Result<(u32, Value), Malformed> {
        let (tag, at) = varint(self.message, self.at)?;
        let number = u32::try_from(tag >> 3).unwrap_or(0);
        if number == 0 || number >= 1 << 29 {
            return Err("a field number is out of range");
        }
        let fixed = |bytes: usize| {
            let raw = self.message.get(at..at + bytes).ok_or("a number is cut off")?;
            let mut wide = [0; 8];
            wide[..bytes].copy_from_slice(raw);
            Ok::<_, Malformed>((Value::Number(u64::from_le_bytes(wide)), at + bytes))
        };
        let (value, end) = match tag & 7 {
            0 => varint(self.message, at).map(|(value, end)| (Value::Number(value), end))?,
            1 => fixed(8)?,
            5 => fixed(4)?,
            2 => {
                let (length, from) = varint(self.message, at)?;
                let end = usize::try_from(length)
                    .ok()
                    .and_then(|length| from.checked_add(length))
                    .filter(|&end| end <= self.message.len())
                    .ok_or("a field is longer than its message")?;
                (Value::Bytes(from..end), end)
            }
            _ => return Err("a field has an unknown kind"),
        };
        self.at = end;
        Ok((number, value))
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<(u32, Value), Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.message.len();
        }
        Some(field)
    }
}

/// Reads a varint at `at`; returns it and the place behind it.
#[inline]
pub(crate) fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize), Malformed> {
    match bytes.get(at) {
        Some(&byte) if byte < 0x80 => Ok((u64::from(byte), at + 1)),
        _ => long_varint(bytes, at),
    }
}

fn long_varint(bytes: &[u8], at: usize) -> Result<(u64, usize), Malformed> {
    let mut value = 0_u64;
    for (index, &byte) in bytes.get(at..).unwrap_or_default().iter().take(10).enumerate() {
        if index == 9 && byte > 1 {
            return Err("a varint has more than 64 bits");
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Ok((value, at + index + 1));
        }
    }
    Err("a varint has no end")
}
