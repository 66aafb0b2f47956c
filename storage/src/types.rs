//! The numbers and names of a log, as types.

use std::fmt;

use crate::error::{Error, Result};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The first one: 0.
            pub const ZERO: Self = Self(0);
            /// The largest one.
            pub const MAX: Self = Self(u64::MAX);

            /// The number itself.
            pub const fn value(self) -> u64 {
                self.0
            }

            /// `count` further on, held at the largest.
            #[must_use]
            pub const fn saturating_add(self, count: u64) -> Self {
                Self(self.0.saturating_add(count))
            }

            /// `count` before, held at 0.
            #[must_use]
            pub const fn saturating_sub(self, count: u64) -> Self {
                Self(self.0.saturating_sub(count))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl std::ops::Add<u64> for $name {
            type Output = Self;
            fn add(self, count: u64) -> Self {
                Self(self.0 + count)
            }
        }

        impl std::ops::Sub for $name {
            type Output = u64;
            fn sub(self, earlier: Self) -> u64 {
                self.0 - earlier.0
            }
        }
    };
}

number! {
    /// Number of a record in its topic: from 0, dense, never reused.
    Offset
}
number! {
    /// Place of a record among the records of its key, from 0.
    Revision
}
number! {
    /// A byte place: in a file, or in the journal, whose positions run on over all its files.
    Position
}
number! {
    /// Milliseconds since the Unix epoch.
    Timestamp
}

/// 16 random bytes that tell one store, or one topic, from every other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uid(pub [u8; 16]);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uid({self})")
    }
}

/// Number of a topic within its store; names its directory. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u32);

impl TopicId {
    /// The topic whose directory has this name, if it can be one's.
    pub(crate) fn of_dir(name: &str) -> Option<Self> {
        let id = Self(u32::from_str_radix(name, 16).ok()?);
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A topic's name: 1 to 255 bytes of `A-Z a-z 0-9 . _ -`, in levels separated by `/`.
///
/// No level is empty, `.` or `..`. A name never becomes a file name, so letter case matters everywhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Box<str>);

impl TopicName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::InvalidTopicName`] says which rule it breaks.
    pub fn new(name: &str) -> Result<Self> {
        let refuse = |rule| Err(Error::InvalidTopicName { name: name.chars().take(64).collect(), rule });
        if name.is_empty() || name.len() > Self::BYTES_MAX {
            return refuse("a name has 1 to 255 bytes");
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/')) {
            return refuse("a name has letters A-Z a-z, digits, '.', '_', '-' and '/'");
        }
        if name.split('/').any(|level| matches!(level, "" | "." | "..")) {
            return refuse("no level between '/' is empty, '.' or '..'");
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

impl std::borrow::Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_the_rules_are_taken_as_they_are() {
        for name in ["a", "orders", "eu/orders.v2", "A-b_c.9", &"x".repeat(255)] {
            assert_eq!(TopicName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_could_leave_a_directory_or_deceive_are_refused() {
        for name in
            ["", ".", "..", "a/..", "/a", "a/", "a//b", "a\\b", "a\0b", "ä", "a b", "a\n", &"x".repeat(256)]
        {
            assert!(TopicName::new(name).is_err(), "{name:?}");
        }
    }
}
