//! Runs a row: a warm-up round of each side, then rounds of both in turn.
//!
//! - The sides alternate, and swap who goes first, so that a disk or a neighbour that slows down meets both.
//! - The ratio is the median of the rounds' ratios, not the ratio of the medians: the two halves of one round
//!   ran within seconds of each other, the two medians perhaps not.
//! - A row ends within a minute: no round begins that would, as long as the longest so far, end after
//!   [`BUDGET`].

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::row::{Bar, Contender, Row, Sample, Scene, Unit};

/// How long a row may take, from its preparation on, before it starts no further round.
pub const BUDGET: Duration = Duration::from_secs(55);

/// A measured row.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The row's name.
    pub name: String,
    /// What was measured.
    pub what: &'static str,
    /// What it was held against.
    pub against: &'static str,
    /// What the figures count.
    pub unit: Unit,
    /// What was to be reached.
    pub bar: Bar,
    /// Median over the rounds.
    pub measured: Side,
    /// The same of the reference.
    pub reference: Option<Side>,
    /// Median over the rounds of measured ÷ reference.
    pub ratio: Option<f64>,
    /// How many rounds of each side were measured.
    pub rounds: usize,
    /// How long all of it took.
    pub elapsed: Duration,
}

impl Outcome {
    /// Whether the row reached its bar.
    pub fn holds(&self) -> bool {
        self.bar.holds(self.measured.figure, self.ratio)
    }
}

/// The medians of one side.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// In the row's unit.
    pub figure: f64,
    /// Medians over the rounds of the 50th and the 99th percentile, in microseconds.
    pub p50_p99_us: Option<(f64, f64)>,
}

impl Side {
    fn of(samples: &[Sample]) -> Self {
        let latencies: Vec<_> = samples.iter().filter_map(|sample| sample.latency.as_ref()).collect();
        let percentile =
            |p: f64| median(&latencies.iter().map(|latency| latency.micros_at(p)).collect::<Vec<_>>());
        Self {
            figure: median(&samples.iter().map(|sample| sample.figure).collect::<Vec<_>>()),
            p50_p99_us: (!latencies.is_empty()).then(|| (percentile(50.0), percentile(99.0))),
        }
    }
}

/// Prepares and runs a row.
pub fn measure(row: &Row, scene: &Scene) -> Result<Outcome> {
    let start = Instant::now();
    let mut pair = (row.prepare)(scene).with_context(|| format!("prepare {}", row.name))?;
    ensure!(
        pair.reference.is_some() || !row.bar.needs_reference(),
        "row {} has a bar on a ratio and no reference",
        row.name
    );

    run(&mut *pair.measured, row, "warm up")?;
    if let Some(reference) = &mut pair.reference {
        run(&mut **reference, row, "warm up the reference of")?;
    }

    let (mut measured, mut references) = (Vec::new(), Vec::new());
    let mut round_longest = Duration::ZERO;
    for round in 0..scene.rounds() {
        if round > 0 && start.elapsed() + round_longest > BUDGET {
            break;
        }
        let round_start = Instant::now();
        // Who goes second finds the caches and the disk as the other left them: share that out.
        let reference_first = round % 2 == 1;
        if !reference_first {
            measured.push(run(&mut *pair.measured, row, "measure")?);
        }
        if let Some(reference) = &mut pair.reference {
            references.push(run(&mut **reference, row, "measure the reference of")?);
        }
        if reference_first {
            measured.push(run(&mut *pair.measured, row, "measure")?);
        }
        round_longest = round_longest.max(round_start.elapsed());
    }

    let ratios: Vec<f64> =
        measured.iter().zip(&references).map(|(ours, theirs)| ours.figure / theirs.figure).collect();
    Ok(Outcome {
        name: row.name.clone(),
        what: row.what,
        against: row.against,
        unit: row.unit,
        bar: row.bar,
        measured: Side::of(&measured),
        reference: pair.reference.is_some().then(|| Side::of(&references)),
        ratio: pair.reference.is_some().then(|| median(&ratios)),
        rounds: measured.len(),
        elapsed: start.elapsed(),
    })
}

fn run(contender: &mut dyn Contender, row: &Row, verb: &str) -> Result<Sample> {
    let sample = contender.round().with_context(|| format!("{verb} {}", row.name))?;
    // Only a share may be nothing.
    let is_one = sample.figure > 0.0 || (sample.figure == 0.0 && row.unit == Unit::Percent);
    ensure!(sample.figure.is_finite() && is_one, "{verb} {}: the figure is {}", row.name, sample.figure);
    Ok(sample)
}

/// The middle figure, or the mean of the middle two. NaN if there is none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;
    use std::rc::Rc;

    use super::*;
    use crate::row::Pair;

    fn scene() -> Scene {
        Scene { dir: PathBuf::new(), quick: true }
    }

    fn row(bar: Bar, prepare: impl Fn(&Scene) -> Result<Pair> + 'static) -> Row {
        Row {
            name: "test".to_owned(),
            what: "",
            against: "",
            unit: Unit::RecordsPerSecond,
            bar,
            prepare: Box::new(prepare),
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_sides_alternate_and_swap_who_goes_first() {
        let order = Rc::new(RefCell::new(String::new()));
        let log = Rc::clone(&order);
        let row = row(Bar::RatioAtLeast(1.0), move |_| {
            let side = |letter| {
                let log = Rc::clone(&log);
                move || {
                    log.borrow_mut().push(letter);
                    Ok(Sample::of(1.0))
                }
            };
            Ok(Pair::new(side('m'), side('r')))
        });
        let outcome = measure(&row, &scene()).unwrap();
        assert_eq!(*order.borrow(), "mr mrrmmr".replace(' ', ""), "a warm-up, then three rounds");
        assert_eq!(outcome.rounds, 3);
    }

    #[test]
    fn the_warm_up_does_not_count_and_the_ratio_is_taken_round_by_round() {
        let row = row(Bar::RatioAtLeast(2.0), |_| {
            let mut ours = [1e9, 10.0, 200.0, 3000.0].into_iter();
            let mut theirs = [1e-9, 5.0, 100.0, 1000.0].into_iter();
            Ok(Pair::new(
                move || Ok(Sample::of(ours.next().unwrap())),
                move || Ok(Sample::of(theirs.next().unwrap())),
            ))
        });
        let outcome = measure(&row, &scene()).unwrap();
        assert_eq!(outcome.measured.figure, 200.0);
        assert_eq!(outcome.reference.unwrap().figure, 100.0);
        assert_eq!(outcome.ratio, Some(2.0));
        assert!(outcome.holds());
    }

    #[test]
    fn a_failed_check_names_the_row() {
        let row = row(Bar::FigureOnly, |_| Ok(Pair::alone(|| anyhow::bail!("record 7 differs"))));
        let error = format!("{:#}", measure(&row, &scene()).unwrap_err());
        assert_eq!(error, "warm up test: record 7 differs");
    }

    #[test]
    fn a_bar_on_a_ratio_wants_a_reference() {
        let row = row(Bar::RatioAtMost(1.0), |_| Ok(Pair::alone(|| Ok(Sample::of(1.0)))));
        assert!(measure(&row, &scene()).is_err());
    }

    #[test]
    fn a_figure_that_is_none_is_an_error() {
        for figure in [f64::NAN, f64::INFINITY, 0.0] {
            let row = row(Bar::FigureOnly, move |_| Ok(Pair::alone(move || Ok(Sample::of(figure)))));
            assert!(measure(&row, &scene()).is_err());
        }
    }
}
