//! Sizes, durations and times: how they are written on a command line and in a file, and how they are shown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

/// A number of bytes: `4096`, `64KiB`, `64K`, `1.5MiB`, `10MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

const SIZE_UNITS: [(&str, u64); 13] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let refuse = || format!("{text:?} is no size: write it like 4096, 64KiB or 1.5GiB");
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
        let number = text[..digits].replace('_', "");
        let unit = text[digits..].trim().to_ascii_lowercase();
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        if let Ok(number) = number.parse::<u64>() {
            return number
                .checked_mul(*factor)
                .map(Self)
                .ok_or_else(|| format!("{text:?} is too large a size"));
        }
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let bytes = number * *factor as f64;
        // Far above every bound there is, and far below where the conversion would saturate.
        if bytes >= 1e18 { Err(format!("{text:?} is too large a size")) } else { Ok(Self(bytes as u64)) }
    }
}

/// Exactly: what can be read back.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// About so many bytes, for a person.
pub(crate) fn about_bytes(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, factor)| bytes >= *factor) {
        Some((name, factor)) => format!("{:.1} {name}", bytes as f64 / *factor as f64),
        None => format!("{bytes} B"),
    }
}

/// Digits in groups of three.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// So many of something that is counted in English by adding an s.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// So many batches.
pub(crate) fn batches(number: u64) -> String {
    format!("{} {}", grouped(number), if number == 1 { "batch" } else { "batches" })
}

/// A duration in whole milliseconds: `100ms`, `30s`, `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

const SPAN_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Span {
    /// In milliseconds.
    pub(crate) fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let refuse = || format!("{text:?} is no duration: write it like 100ms, 30s, 1h30m or 7d");
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if text.is_empty() {
            return Err(refuse());
        }
        let mut rest = text;
        let mut millis: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
            let number: u64 = rest[..digits].parse().map_err(|_| refuse())?;
            rest = &rest[digits..];
            let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit = rest[..unit_end].trim();
            let (_, factor) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
            millis = number
                .checked_mul(*factor)
                .and_then(|part| millis.checked_add(part))
                .ok_or_else(|| format!("{text:?} is too long a duration"))?;
            rest = &rest[unit_end..];
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

/// Exactly, in the largest unit that fits: what can be read back.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.millis();
        // Days, not weeks: the words people use for retention.
        match SPAN_UNITS[1..].iter().find(|(_, factor)| millis >= *factor && millis.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", millis / factor),
            None => write!(f, "{millis}"),
        }
    }
}

/// A value, or `none`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OrNone<T> {
    None,
    Value(T),
}

impl<T: FromStr<Err: fmt::Display>> FromStr for OrNone<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" | "default" => Ok(Self::None),
            "" => Err("it must say something, or none".into()),
            text => text.parse().map(Self::Value).map_err(|error: T::Err| error.to_string()),
        }
    }
}

impl<T> OrNone<T> {
    /// The value, if there is one.
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::None => None,
            Self::Value(value) => Some(value),
        }
    }
}

/// Appends a time in milliseconds since the Unix epoch as RFC 3339 in UTC with milliseconds. One beyond the calendar is
/// shown as its number.
pub(crate) fn put_time(out: &mut String, time_ms: u64) {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let time = i64::try_from(time_ms).ok().and_then(|time_ms| Timestamp::from_millisecond(time_ms).ok());
    let is_put = time.is_some_and(|time| PRINTER.print_timestamp(&time, &mut *out).is_ok());
    if !is_put {
        out.push_str(&time_ms.to_string());
    }
}

/// See [`put_time`].
pub(crate) fn time_text(time_ms: u64) -> String {
    let mut text = String::with_capacity(24);
    put_time(&mut text, time_ms);
    text
}

/// The time now, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// Reads a time: RFC 3339 with or without seconds, a date, both in UTC unless an offset is given.
pub(crate) fn parse_time(text: &str) -> Option<u64> {
    let time = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| {
            let local: jiff::civil::DateTime = text.strip_suffix(['Z', 'z']).unwrap_or(text).parse().ok()?;
            Some(local.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
        })?
        .as_millisecond();
    u64::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them_and_read_back_as_shown() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65536),
            ("64k", 65536),
            ("1.5MiB", 1_572_864),
            ("10 MB", 10_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        for text in
            ["", "x", "-1", "1.2.3", "12 parsecs", "99999999999999999999", "9e9", "18446744073709551615K"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them_and_read_back_as_shown() {
        for (text, millis) in
            [("0", 0), ("100ms", 100), ("30s", 30_000), ("1h30m", 5_400_000), ("7d", 604_800_000)]
        {
            let span = Span(Duration::from_millis(millis));
            assert_eq!(text.parse(), Ok(span), "{text}");
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for text in ["", "5", "h", "1y", "-1s", "1.5h", "99999999999999999999s", "9999999999999999w"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_read_with_and_without_seconds_and_offset() {
        let nine = 1_795_338_000_000;
        for text in
            ["2026-11-22T09:00Z", "2026-11-22T09:00:00Z", "2026-11-22T10:00:00+01:00", "2026-11-22T09:00"]
        {
            assert_eq!(parse_time(text), Some(nine), "{text}");
        }
        assert_eq!(time_text(nine), "2026-11-22T09:00:00.000Z");
        assert_eq!(parse_time("2026-11-22"), Some(nine - 9 * 3_600_000));
        assert_eq!(parse_time("1960-01-01T00:00:00Z"), None);
        assert_eq!(time_text(u64::MAX), u64::MAX.to_string());
    }
}
