//! How outcomes are shown: an aligned table, or a JSON object a line.

use std::fmt::Write;

use crate::json::Object;
use crate::measure::{Outcome, Side};
use crate::row::{Bar, Row, digits};

/// Widths of the columns behind the name.
const COLUMNS: [(&str, usize); 7] = [
    ("figure", 10),
    ("reference", 10),
    ("ratio", 7),
    ("bar", 10),
    ("", 5),
    ("p50 / p99 µs", 15),
    ("ref. p50 / p99", 15),
];

/// The table's first line, for rows whose names are at most `name_width` wide.
pub fn head(name_width: usize) -> String {
    let mut line = format!("{:name_width$}", "row");
    for (title, width) in COLUMNS {
        let _ = write!(line, "  {title:>width$}");
    }
    line.trim_end().to_owned()
}

/// One line of the table.
pub fn line(outcome: &Outcome, name_width: usize) -> String {
    let reference = outcome.reference;
    let cells = [
        outcome.unit.show(outcome.measured.figure),
        reference.map_or("-".to_owned(), |side| outcome.unit.show(side.figure)),
        outcome.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2} x")),
        outcome.bar.show(outcome.unit),
        verdict(outcome).to_owned(),
        percentiles(Some(outcome.measured)),
        percentiles(reference),
    ];
    let mut line = format!("{:name_width$}", outcome.name);
    for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
        let _ = write!(line, "  {cell:>width$}");
    }
    line.trim_end().to_owned()
}

fn verdict(outcome: &Outcome) -> &'static str {
    match (outcome.bar, outcome.holds()) {
        (Bar::FigureOnly, _) => "",
        (_, true) => "ok",
        (_, false) => "SHORT",
    }
}

fn percentiles(side: Option<Side>) -> String {
    side.and_then(|side| side.p50_p99_us)
        .map_or(String::new(), |(p50, p99)| format!("{} / {}", digits(p50), digits(p99)))
}

/// One outcome as a JSON object on one line.
pub fn json(outcome: &Outcome) -> String {
    let mut object = Object::default();
    object.text("name", &outcome.name);
    object.text("what", outcome.what);
    object.text("against", outcome.against);
    object.text("unit", outcome.unit.name());
    object.number("figure", Some(outcome.measured.figure));
    object.number("reference", outcome.reference.map(|side| side.figure));
    object.number("ratio", outcome.ratio);
    let (kind, bar) = match outcome.bar {
        Bar::RatioAtLeast(bar) => ("ratio_at_least", Some(bar)),
        Bar::RatioAtMost(bar) => ("ratio_at_most", Some(bar)),
        Bar::FigureBelow(bar) => ("figure_below", Some(bar)),
        Bar::FigureOnly => ("figure_only", None),
    };
    object.text("bar_kind", kind);
    object.number("bar", bar);
    object.raw("held", if outcome.holds() { "true" } else { "false" });
    let (p50, p99) = outcome.measured.p50_p99_us.unzip();
    object.number("p50_us", p50);
    object.number("p99_us", p99);
    let (p50, p99) = outcome.reference.and_then(|side| side.p50_p99_us).unzip();
    object.number("reference_p50_us", p50);
    object.number("reference_p99_us", p99);
    object.raw("rounds", &outcome.rounds.to_string());
    object.number("seconds", Some(outcome.elapsed.as_secs_f64()));
    object.finish()
}

/// One row of `--list`.
pub fn list_line(row: &Row, name_width: usize) -> String {
    let against = if row.against.is_empty() { String::new() } else { format!("; against: {}", row.against) };
    format!("{:name_width$}  {:>10}  {}{against}", row.name, row.bar.show(row.unit), row.what)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::row::Unit;

    fn outcome() -> Outcome {
        Outcome {
            name: "sync-64/1KiB".to_owned(),
            what: "64 \"writers\"",
            against: "one",
            unit: Unit::RecordsPerSecond,
            bar: Bar::RatioAtLeast(15.0),
            measured: Side { figure: 80_000.0, p50_p99_us: Some((600.0, 1500.0)) },
            reference: Some(Side { figure: 5_000.0, p50_p99_us: None }),
            ratio: Some(16.0),
            rounds: 7,
            elapsed: Duration::from_millis(1500),
        }
    }

    #[test]
    fn json_has_one_shape_on_one_line() {
        assert_eq!(
            json(&outcome()),
            r#"{"name":"sync-64/1KiB","what":"64 \"writers\"","against":"one","unit":"records/s","figure":80000,"reference":5000,"ratio":16,"bar_kind":"ratio_at_least","bar":15,"held":true,"p50_us":600,"p99_us":1500,"reference_p50_us":null,"reference_p99_us":null,"rounds":7,"seconds":1.5}"#
        );
    }

    #[test]
    fn json_says_null_for_what_is_not_there() {
        let alone = Outcome { reference: None, ratio: None, bar: Bar::FigureOnly, ..outcome() };
        let line = json(&alone);
        assert!(
            line.contains(r#""reference":null,"ratio":null,"bar_kind":"figure_only","bar":null,"held":true"#)
        );
    }

    #[test]
    fn the_table_is_aligned_and_shouts_what_fell_short() {
        let short = Outcome { ratio: Some(14.0), ..outcome() };
        let lines = [head(14), line(&outcome(), 14), line(&short, 14)];
        let column = |line: &str, word: &str| {
            let end = line.find(word).unwrap() + word.len();
            line[..end].chars().count()
        };
        assert_eq!(column(&lines[0], "ratio"), column(&lines[1], "16.00 x"));
        assert_eq!(column(&lines[0], "µs"), column(&lines[1], "600 / 1500"));
        assert!(lines[1].contains(" ok "));
        assert!(lines[2].contains("SHORT"));
    }
}
