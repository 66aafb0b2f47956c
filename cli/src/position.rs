//! Where to start and to end reading, as it is written on the command line.
//!
//! | Text | Means |
//! |---|---|
//! | `earliest`, `start` | the first record there is |
//! | `latest`, `end` | behind the last record there is |
//! | `1500` | that offset |
//! | `-10` | the last 10 records; as an end, 10 records before the end |
//! | `2h`, `1h30m`, `7d` | so long ago |
//! | `2026-11-22T09:00Z`, `2026-11-22` | at that time (UTC unless it says otherwise) |
//! | `@1795338000000` | the same in milliseconds since the Unix epoch |

use std::str::FromStr;

use crate::units::{Span, now_ms, parse_time};

/// A place in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// The first record there is.
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// This offset.
    Offset(u64),
    /// So many records before the end.
    Last(u64),
    /// The first record appended at this time or later, in milliseconds since the Unix epoch.
    Time(u64),
    /// The record of the one key that is read which has this revision. Not written as a position, but with `--revision`.
    Revision(u64),
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is no position: use an offset (1500), the last n (-10), a duration ago (2h), a time \
                 (2026-11-22T09:00Z, @1795338000000), earliest or latest"
            )
        };
        match text {
            "earliest" | "start" | "beginning" => return Ok(Self::Earliest),
            "latest" | "end" => return Ok(Self::Latest),
            _ => {}
        }
        if let Some(millis) = text.strip_prefix('@') {
            return millis.parse().map(Self::Time).map_err(|_| refuse());
        }
        if let Some(count) = text.strip_prefix('-')
            && count.bytes().all(|byte| byte.is_ascii_digit())
        {
            return count.parse().map(Self::Last).map_err(|_| refuse());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Offset).map_err(|_| refuse());
        }
        if let Ok(span) = text.parse::<Span>() {
            return Ok(Self::Time(now_ms().saturating_sub(span.millis())));
        }
        parse_time(text).map(Self::Time).ok_or_else(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood() {
        assert_eq!("earliest".parse(), Ok(Position::Earliest));
        assert_eq!("end".parse(), Ok(Position::Latest));
        assert_eq!("0".parse(), Ok(Position::Offset(0)));
        assert_eq!("-10".parse(), Ok(Position::Last(10)));
        assert_eq!("@5".parse(), Ok(Position::Time(5)));
        assert_eq!("2026-11-22T09:00Z".parse(), Ok(Position::Time(1_795_338_000_000)));
        let before = now_ms();
        let Ok(Position::Time(ago)) = "2h".parse::<Position>() else { panic!("a time") };
        assert!((before - 7_200_000..=now_ms() - 7_200_000).contains(&ago));
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in [
            "",
            "-",
            "--1",
            "-x",
            "2h-",
            "@",
            "@-1",
            "99999999999999999999",
            "-99999999999999999999",
            "tomorrow",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text:?}");
        }
    }
}
