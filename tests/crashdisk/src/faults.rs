//! How the disk misbehaves on command. The commands are written to the file `ctl` beside the disk, one a line:
//!
//! ```text
//!   write-eio [LOW HIGH [SKIP [COUNT]]]   writes that touch the bytes LOW..HIGH fail
//!   read-eio  [LOW HIGH [SKIP [COUNT]]]   reads
//!   flush-eio [SKIP [COUNT]]              flushes
//!   delay-us MICROSECONDS                 every write and flush takes that much longer
//!   lie                                   flushes succeed without making anything durable
//!   clear                                 a healthy disk again
//! ```
//!
//! SKIP matching operations pass first, then COUNT fail (0, the default: all from then on).

use std::ops::Range;
use std::time::Duration;

/// The faults in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    write: Option<Failure>,
    read: Option<Failure>,
    flush: Option<Failure>,
    pub(crate) delay: Duration,
    pub(crate) lie: bool,
    /// How many operations have failed so far: a test asks, to know that its fault was met at all.
    pub(crate) hits: u64,
}

/// The operations that a failure may meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    Read,
    Write,
    Flush,
}

#[derive(Debug)]
struct Failure {
    range: Range<u64>,
    skip: u64,
    /// `None`: for ever.
    left: Option<u64>,
}

impl Faults {
    /// Obeys commands, one a line. At the first that it does not understand it stops and answers that line.
    pub(crate) fn obey<'a>(&mut self, commands: &'a str) -> Result<(), &'a str> {
        commands
            .lines()
            .filter(|line| !line.trim().is_empty())
            .try_for_each(|line| self.obey_line(line).ok_or(line))
    }

    fn obey_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        match (name, numbers.as_slice()) {
            ("write-eio", rest) => self.write = Some(Failure::of_range(rest)?),
            ("read-eio", rest) => self.read = Some(Failure::of_range(rest)?),
            ("flush-eio", rest) => self.flush = Some(Failure::new(0..u64::MAX, rest)?),
            ("delay-us", [micros]) => self.delay = Duration::from_micros(*micros),
            ("lie", []) => self.lie = true,
            ("clear", []) => *self = Self { hits: self.hits, ..Self::default() },
            _ => return None,
        }
        Some(())
    }

    /// Whether this operation is to fail; counts it if so.
    pub(crate) fn fails(&mut self, access: Access, range: &Range<u64>) -> bool {
        let failure = match access {
            Access::Read => &mut self.read,
            Access::Write => &mut self.write,
            Access::Flush => &mut self.flush,
        };
        let fails = failure.as_mut().is_some_and(|failure| failure.meets(range));
        self.hits += u64::from(fails);
        fails
    }
}

impl Failure {
    fn of_range(numbers: &[u64]) -> Option<Self> {
        match numbers {
            [] => Self::new(0..u64::MAX, &[]),
            [low, high, rest @ ..] if low < high => Self::new(*low..*high, rest),
            _ => None,
        }
    }

    fn new(range: Range<u64>, skip_and_count: &[u64]) -> Option<Self> {
        let (skip, count) = match *skip_and_count {
            [] => (0, 0),
            [skip] => (skip, 0),
            [skip, count] => (skip, count),
            _ => return None,
        };
        Some(Self { range, skip, left: (count > 0).then_some(count) })
    }

    fn meets(&mut self, range: &Range<u64>) -> bool {
        if range.start >= self.range.end || range.end <= self.range.start {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.left {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(commands: &str) -> Faults {
        let mut faults = Faults::default();
        faults.obey(commands).unwrap();
        faults
    }

    #[test]
    fn the_skipped_pass_the_counted_fail_and_the_rest_pass() {
        let mut faults = faults("write-eio 0 1000 2 1\n");
        let met: Vec<bool> = (0..5).map(|_| faults.fails(Access::Write, &(0..512))).collect();
        assert_eq!(met, [false, false, true, false, false]);
        assert_eq!(faults.hits, 1);
    }

    #[test]
    fn only_operations_that_touch_the_range_fail() {
        let mut faults = faults("read-eio 512 1024");
        assert!(!faults.fails(Access::Read, &(0..512)));
        assert!(!faults.fails(Access::Read, &(1024..1536)));
        assert!(!faults.fails(Access::Write, &(512..1024)));
        assert!(faults.fails(Access::Read, &(0..4096)));
    }

    #[test]
    fn clear_heals_and_keeps_the_count() {
        let mut faults = faults("flush-eio\nlie\ndelay-us 10");
        assert!(faults.fails(Access::Flush, &(0..1)));
        faults.obey("clear").unwrap();
        assert!(!faults.fails(Access::Flush, &(0..1)) && !faults.lie && faults.delay.is_zero());
        assert_eq!(faults.hits, 1);
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for line in ["write-oi", "write-eio 5 1", "write-eio x", "flush-eio 1 2 3", "delay-us", "lie 1"] {
            assert_eq!(Faults::default().obey(&format!("clear\n{line}\n")), Err(line));
        }
    }
}
