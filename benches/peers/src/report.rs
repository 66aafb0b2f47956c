//! The figures of all systems side by side, and what quipu holds itself to among them.

use quipu_benches::json::Object;
use quipu_benches::measure::median;
use quipu_benches::row::{Sample, digits};

use crate::workload::Workload;

/// Ours, as the adapter calls it.
pub const OURS: &str = "quipu";

/// A bare write and fdatasync at the end of a growing file.
pub const PROBE: &str = "probe";

/// The same into a file filled with zeros ahead: the floor.
pub const PROBE_AHEAD: &str = "probe-ahead";

/// What quipu holds itself to in one workload.
#[derive(Clone, Copy, Debug)]
pub enum Hold {
    /// A rate ÷ the best of these is at least so much.
    RateOver(&'static [&'static str], f64),
    /// A time ÷ the best of these is at most so much.
    TimeUnder(&'static [&'static str], f64),
    /// The 99th percentile ÷ that of whichever of these has the best rate is at most so much.
    P99Under(&'static [&'static str], f64),
    /// The figure itself is at most so much.
    AtMost(f64),
    /// The figure less the payload is at most so much.
    OverheadAtMost(f64),
}

/// The bars of a workload.
pub fn holds(workload: Workload) -> &'static [Hold] {
    use Hold::{AtMost, OverheadAtMost, P99Under, RateOver, TimeUnder};
    match workload {
        Workload::E1 => &[RateOver(&["open-wal", "raft-engine"], 1.0), RateOver(&[PROBE], 1.2)],
        Workload::E2 => &[
            RateOver(&["raft-engine", "okaywal", "wal-db"], 1.1),
            P99Under(&["raft-engine", "okaywal", "wal-db"], 1.0),
        ],
        Workload::E3 => &[RateOver(&["open-wal"], 1.2)],
        Workload::E4 => &[RateOver(&["wal-db"], 1.0), RateOver(&["seglog"], 0.9)],
        Workload::E5 => &[RateOver(&["commitlog", "seglog"], 1.0)],
        Workload::E6 => &[RateOver(&["commitlog"], 1.0)],
        Workload::E7 => &[TimeUnder(&["lmdb"], 1.0)],
        Workload::E8 => &[AtMost(5.0)],
        Workload::E8Killed => &[TimeUnder(&["raft-engine"], 0.5)],
        Workload::E9 => &[OverheadAtMost(16.0)],
    }
}

/// The samples of one workload at one size of record.
pub struct Table {
    pub workload: Workload,
    pub record_bytes: usize,
    /// By system, one sample a round; all systems have the same rounds.
    pub systems: Vec<(&'static str, Vec<Sample>)>,
}

impl Table {
    fn samples(&self, name: &str) -> Option<&[Sample]> {
        let (_, samples) = self.systems.iter().find(|(system, _)| *system == name)?;
        (!samples.is_empty()).then_some(&samples[..])
    }

    fn figure(&self, name: &str) -> Option<f64> {
        Some(median(&self.samples(name)?.iter().map(|sample| sample.figure).collect::<Vec<_>>()))
    }

    fn percentile(&self, name: &str, percentile: f64) -> Option<f64> {
        let latencies = self.samples(name)?.iter().map(|sample| sample.latency.as_ref());
        let figures = latencies.map(|latency| Some(latency?.micros_at(percentile)));
        Some(median(&figures.collect::<Option<Vec<_>>>()?))
    }

    /// The median of the rounds' ratios: a round's halves ran within seconds of each other.
    fn ratio(&self, name: &str, other: &str) -> Option<f64> {
        let pairs = self.samples(name)?.iter().zip(self.samples(other)?);
        Some(median(&pairs.map(|(one, two)| one.figure / two.figure).collect::<Vec<_>>()))
    }

    fn best(&self, names: &[&'static str], lower_is_better: bool) -> Option<&'static str> {
        let figures = names.iter().filter_map(|name| Some((*name, self.figure(name)?)));
        let best = if lower_is_better {
            figures.min_by(|one, two| one.1.total_cmp(&two.1))
        } else {
            figures.max_by(|one, two| one.1.total_cmp(&two.1))
        };
        Some(best?.0)
    }

    /// One bar: what it says, what was reached if both sides ran, and whether it holds.
    fn judge(&self, hold: Hold) -> (String, Option<(f64, bool)>) {
        match hold {
            Hold::RateOver(names, least) => {
                let reached = self.best(names, false).and_then(|best| self.ratio(OURS, best));
                (
                    format!("{OURS} / {} >= {least}", one_of(names)),
                    reached.map(|ratio| (ratio, ratio >= least)),
                )
            }
            Hold::TimeUnder(names, most) => {
                let reached = self.best(names, true).and_then(|best| self.ratio(OURS, best));
                (format!("{OURS} / {} <= {most}", one_of(names)), reached.map(|ratio| (ratio, ratio <= most)))
            }
            Hold::P99Under(names, most) => {
                let theirs = self.best(names, false).and_then(|best| self.percentile(best, 99.0));
                let reached = self.percentile(OURS, 99.0).zip(theirs).map(|(ours, theirs)| ours / theirs);
                (
                    format!("p99 {OURS} / {} <= {most}", one_of(names)),
                    reached.map(|ratio| (ratio, ratio <= most)),
                )
            }
            Hold::AtMost(most) => {
                let text = format!("{OURS} <= {}", self.workload.unit().show(most));
                (text, self.figure(OURS).map(|figure| (figure, figure <= most)))
            }
            Hold::OverheadAtMost(most) => {
                #[expect(clippy::cast_precision_loss, reason = "a record is a few KiB")]
                let overhead = self.figure(OURS).map(|figure| figure - self.record_bytes as f64);
                (
                    format!("{OURS} less the payload <= {}", self.workload.unit().show(most)),
                    overhead.map(|overhead| (overhead, overhead <= most)),
                )
            }
        }
    }

    /// Whether a bar was judged and fell short.
    pub fn falls_short(&self) -> bool {
        holds(self.workload).iter().any(|hold| matches!(self.judge(*hold).1, Some((_, false))))
    }

    /// The table for people.
    pub fn show(&self) -> String {
        let mut lines =
            vec![format!("{} {}, {} B", self.workload.name(), self.workload.what(), self.record_bytes)];
        for (name, samples) in &self.systems {
            let Some(figure) = self.figure(name) else { continue };
            let mut line = format!("  {name:12}  {:>10}", self.workload.unit().show(figure));
            if let Some(ratio) = self.ratio(name, PROBE) {
                line += &format!("  {ratio:6.2} x probe");
            }
            if let Some((p50, p99)) = self.percentile(name, 50.0).zip(self.percentile(name, 99.0)) {
                line += &format!("  p50 {:>6} µs  p99 {:>6} µs", digits(p50), digits(p99));
            }
            let figures: Vec<_> =
                samples.iter().map(|sample| self.workload.unit().show(sample.figure)).collect();
            line += &format!("  ({})", figures.join(", "));
            lines.push(line);
        }
        for hold in holds(self.workload) {
            let (text, reached) = self.judge(*hold);
            lines.push(match reached {
                Some((reached, held)) => {
                    format!("  bar: {text}: {reached:.2} {}", if held { "ok" } else { "SHORT" })
                }
                None => format!("  bar: {text}: not measured"),
            });
        }
        lines.join("\n")
    }

    /// One JSON object a system, and one a bar.
    pub fn json(&self) -> Vec<String> {
        let object = |kind: &str| {
            let mut object = Object::default();
            object.text("kind", kind);
            object.text("workload", self.workload.name());
            object.raw("record_bytes", &self.record_bytes.to_string());
            object
        };
        let systems =
            self.systems.iter().filter(|(_, samples)| !samples.is_empty()).map(|(name, samples)| {
                let mut object = object("figure");
                object.text("system", name);
                object.text("unit", self.workload.unit().name());
                object.number("figure", self.figure(name));
                object.number("over_probe", self.ratio(name, PROBE));
                object.number("over_quipu", self.ratio(name, OURS));
                object.number("p50_us", self.percentile(name, 50.0));
                object.number("p99_us", self.percentile(name, 99.0));
                object.raw("rounds", &samples.len().to_string());
                object.finish()
            });
        let bars = holds(self.workload).iter().map(|hold| {
            let (text, reached) = self.judge(*hold);
            let mut object = object("bar");
            object.text("bar", &text);
            object.number("reached", reached.map(|(reached, _)| reached));
            object.raw("held", reached.map_or("null", |(_, held)| if held { "true" } else { "false" }));
            object.finish()
        });
        systems.chain(bars).collect()
    }
}

fn one_of(names: &[&str]) -> String {
    if let [name] = names { (*name).to_owned() } else { format!("best of {{{}}}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(workload: Workload, systems: &[(&'static str, &[f64])]) -> Table {
        let samples = |figures: &[f64]| figures.iter().map(|figure| Sample::of(*figure)).collect();
        let systems = systems.iter().map(|(name, figures)| (*name, samples(figures))).collect();
        Table { workload, record_bytes: 100, systems }
    }

    #[test]
    fn a_bar_without_us_is_not_judged() {
        let table = table(Workload::E3, &[("open-wal", &[5.0, 5.0, 5.0])]);
        assert!(!table.falls_short());
        assert!(table.show().contains("quipu / open-wal >= 1.2: not measured"), "{}", table.show());
    }

    #[test]
    fn we_are_held_against_the_best_round_by_round() {
        let ours = [12.0, 1.2, 120.0];
        let best = [10.0, 1.0, 100.0];
        let held = table(Workload::E5, &[(OURS, &ours), ("commitlog", &best), ("seglog", &[0.1; 3])]);
        assert!(!held.falls_short());
        assert!(held.show().contains(": 1.20 ok"), "{}", held.show());
        let short = table(Workload::E5, &[(OURS, &best), ("commitlog", &ours)]);
        assert!(short.falls_short());
    }

    #[test]
    fn of_times_the_best_is_the_shortest() {
        let table = table(Workload::E8Killed, &[(OURS, &[4.0; 3]), ("raft-engine", &[9.0; 3])]);
        assert!(!table.falls_short());
    }

    #[test]
    fn the_overhead_leaves_the_payload_out() {
        assert!(!table(Workload::E9, &[(OURS, &[116.0])]).falls_short());
        assert!(table(Workload::E9, &[(OURS, &[117.0])]).falls_short());
    }
}
