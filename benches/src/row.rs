//! A row: one claim about speed or size, with the bar it is held to.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::latency::Latency;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Records a second.
    RecordsPerSecond,
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
    /// Bytes.
    Bytes,
    /// Millions of bytes a second.
    MegabytesPerSecond,
    /// Hundredths: of a processor's time.
    Percent,
}

impl Unit {
    /// The unit as JSON spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RecordsPerSecond => "records/s",
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::Bytes => "bytes",
            Self::MegabytesPerSecond => "MB/s",
            Self::Percent => "%",
        }
    }

    /// A figure for people: `2.41 M/s`, `18.2 µs`, `153 MiB`.
    pub fn show(self, figure: f64) -> String {
        match self {
            Self::RecordsPerSecond if figure >= 1e6 => format!("{} M/s", digits(figure / 1e6)),
            Self::RecordsPerSecond if figure >= 1e3 => format!("{} k/s", digits(figure / 1e3)),
            Self::RecordsPerSecond => format!("{} /s", digits(figure)),
            Self::Micros => format!("{} µs", digits(figure)),
            Self::Millis => format!("{} ms", digits(figure)),
            Self::Bytes if figure >= 1024.0 * 1024.0 => format!("{} MiB", digits(figure / 1024.0 / 1024.0)),
            Self::Bytes => format!("{} B", digits(figure)),
            Self::MegabytesPerSecond => format!("{} MB/s", digits(figure)),
            Self::Percent => format!("{} %", digits(figure)),
        }
    }
}

/// Three significant digits, as far as a decimal point helps.
pub fn digits(figure: f64) -> String {
    match figure.abs() {
        size if size >= 99.95 => format!("{figure:.0}"),
        size if size >= 9.995 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// What a row must reach. A ratio is measured ÷ reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// For rates: at least this share of the reference.
    RatioAtLeast(f64),
    /// For times: at most this multiple of the reference.
    RatioAtMost(f64),
    /// The figure itself stays below this.
    FigureBelow(f64),
    /// Nothing to reach: the figure is for reading only.
    FigureOnly,
}

impl Bar {
    /// Whether a measured row reaches the bar. A figure that is no number reaches none.
    pub fn holds(self, figure: f64, ratio: Option<f64>) -> bool {
        match self {
            Self::RatioAtLeast(least) => ratio.is_some_and(|ratio| ratio >= least),
            Self::RatioAtMost(most) => ratio.is_some_and(|ratio| ratio <= most),
            Self::FigureBelow(bound) => figure < bound,
            Self::FigureOnly => true,
        }
    }

    /// Whether the bar needs a reference to be judged.
    pub fn needs_reference(self) -> bool {
        matches!(self, Self::RatioAtLeast(_) | Self::RatioAtMost(_))
    }

    /// The bar for people.
    pub fn show(self, unit: Unit) -> String {
        match self {
            Self::RatioAtLeast(least) => format!(">= {least} x"),
            Self::RatioAtMost(most) => format!("<= {most} x"),
            Self::FigureBelow(bound) => format!("< {}", unit.show(bound)),
            Self::FigureOnly => "-".to_owned(),
        }
    }
}

/// What one round of one contender gave.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The figure, in the row's unit.
    pub figure: f64,
    /// The latencies of the single calls, where they matter.
    pub latency: Option<Latency>,
}

impl Sample {
    /// A figure without latencies.
    pub fn of(figure: f64) -> Self {
        Self { figure, latency: None }
    }

    /// So many records in so much time.
    #[expect(clippy::cast_precision_loss, reason = "no run counts to 2^53")]
    pub fn rate(records: u64, elapsed: Duration) -> Self {
        Self::of(records as f64 / elapsed.as_secs_f64())
    }

    /// So many bytes in so much time, in MB/s.
    #[expect(clippy::cast_precision_loss, reason = "no run counts to 2^53")]
    pub fn bytes_rate(bytes: u64, elapsed: Duration) -> Self {
        Self::of(bytes as f64 / 1e6 / elapsed.as_secs_f64())
    }

    /// The median of these latencies, in microseconds.
    pub fn median(latency: Latency) -> Self {
        Self::of(latency.micros_at(50.0)).with_latency(latency)
    }

    /// The same sample with latencies.
    #[must_use]
    pub fn with_latency(self, latency: Latency) -> Self {
        Self { latency: Some(latency), ..self }
    }
}

/// One side of a row. It is made once, runs a warm-up round and then several measured ones, and in each round
/// reads back and checks what it wrote, outside the time it measures.
pub trait Contender {
    /// Does the work once.
    fn round(&mut self) -> Result<Sample>;
}

impl<F: FnMut() -> Result<Sample>> Contender for F {
    fn round(&mut self) -> Result<Sample> {
        self()
    }
}

/// Both sides of a row, ready to run.
pub struct Pair {
    /// What the row is about.
    pub measured: Box<dyn Contender>,
    /// What it is held against.
    pub reference: Option<Box<dyn Contender>>,
}

impl Pair {
    /// A side with something to hold it against.
    pub fn new(measured: impl Contender + 'static, reference: impl Contender + 'static) -> Self {
        Self { measured: Box::new(measured), reference: Some(Box::new(reference)) }
    }

    /// A side alone.
    pub fn alone(measured: impl Contender + 'static) -> Self {
        Self { measured: Box::new(measured), reference: None }
    }
}

/// Where and at what size a row runs.
#[derive(Clone, Debug)]
pub struct Scene {
    /// An empty directory of the row's own, removed afterwards.
    pub dir: PathBuf,
    /// A short run that shows whether everything works; its figures are rough.
    pub quick: bool,
}

impl Scene {
    /// How many measured rounds each side gets, if time allows.
    pub fn rounds(&self) -> usize {
        if self.quick { 3 } else { 7 }
    }

    /// How long a contender that runs by the clock measures in one round.
    pub fn round_time(&self) -> Duration {
        Duration::from_millis(if self.quick { 50 } else { 1000 })
    }

    /// `full`, or a sixteenth of it in a quick run.
    pub fn scaled(&self, full: u64) -> u64 {
        if self.quick { full / 16 } else { full }
    }
}

/// Sets up both sides of a row.
pub type Prepare = Box<dyn Fn(&Scene) -> Result<Pair>>;

/// One line of the report.
pub struct Row {
    /// `group` or `group/variant`; asking for the group runs all its variants.
    pub name: String,
    /// One line: what is measured.
    pub what: &'static str,
    /// One line: what it is held against, empty if nothing.
    pub against: &'static str,
    /// What the figures count.
    pub unit: Unit,
    /// What must be reached.
    pub bar: Bar,
    /// Sets up both sides.
    pub prepare: Prepare,
}

impl Row {
    /// Whether `name` asks for this row.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.split_once('/').is_some_and(|(group, _)| group == name)
    }
}

/// The sizes of payload that most rows come in, with the variant's name.
pub const PAYLOADS: [(usize, &str); 2] = [(100, "100B"), (1024, "1KiB")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_on_a_rate_is_reached_from_above() {
        assert!(Bar::RatioAtLeast(0.6).holds(1.0, Some(0.6)));
        assert!(!Bar::RatioAtLeast(0.6).holds(1.0, Some(0.599)));
        assert!(!Bar::RatioAtLeast(0.6).holds(1.0, None));
    }

    #[test]
    fn a_bar_on_a_time_is_reached_from_below() {
        assert!(Bar::RatioAtMost(3.0).holds(1.0, Some(3.0)));
        assert!(!Bar::RatioAtMost(3.0).holds(1.0, Some(3.01)));
        assert!(!Bar::RatioAtMost(3.0).holds(1.0, None));
    }

    #[test]
    fn a_bar_on_a_figure_ignores_the_ratio() {
        assert!(Bar::FigureBelow(20.0).holds(19.9, None));
        assert!(!Bar::FigureBelow(20.0).holds(20.0, Some(0.1)));
        assert!(Bar::FigureOnly.holds(f64::MAX, None));
    }

    #[test]
    fn no_number_reaches_no_bar() {
        assert!(!Bar::RatioAtLeast(0.0).holds(1.0, Some(f64::NAN)));
        assert!(!Bar::RatioAtMost(9.0).holds(1.0, Some(f64::NAN)));
        assert!(!Bar::FigureBelow(9.0).holds(f64::NAN, None));
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(Unit::RecordsPerSecond.show(2_412_345.0), "2.41 M/s");
        assert_eq!(Unit::RecordsPerSecond.show(99_960.0), "100 k/s");
        assert_eq!(Unit::RecordsPerSecond.show(280.4), "280 /s");
        assert_eq!(Unit::Micros.show(18.24), "18.2 µs");
        assert_eq!(Unit::Bytes.show(153.2 * 1024.0 * 1024.0), "153 MiB");
        assert_eq!(Bar::FigureBelow(20.0).show(Unit::Micros), "< 20.0 µs");
    }

    #[test]
    fn a_row_answers_to_its_name_and_its_group() {
        let row = Row {
            name: "log-append/100B".to_owned(),
            what: "",
            against: "",
            unit: Unit::Micros,
            bar: Bar::FigureOnly,
            prepare: Box::new(|_| Ok(Pair::alone(|| Ok(Sample::of(1.0))))),
        };
        assert!(row.is_called("log-append/100B"));
        assert!(row.is_called("log-append"));
        assert!(!row.is_called("log"));
        assert!(!row.is_called("log-append/1KiB"));
    }
}
