//! `quipu publish` of a file.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::program;
use crate::row::{Bar, Contender, Pair, Row, Sample, Unit};
use crate::service::{Served, runtime};

const TOPIC: &str = "publish";
const LINES: u64 = 1_000_000;

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "service-publish/ndjson",
            "reading the file and parsing each line into a value, on one thread",
            Bar::RatioAtLeast(0.5),
            |line| Ok(serde_json::from_slice::<Value>(line).map(drop)?),
        ),
        // Nobody gets less from a line than that it is JSON, and that is all that `quipu publish` wants to know of one that
        // it keeps as it stands.
        row(
            "service-publish/ndjson-checked",
            "reading the file and checking that each line is JSON, on one thread",
            Bar::FigureOnly,
            |line| Ok(serde_json::from_slice::<IgnoredAny>(line).map(drop)?),
        ),
    ]
}

fn row(name: &str, against: &'static str, bar: Bar, parse_line: fn(&[u8]) -> Result<()>) -> Row {
    Row {
        name: name.into(),
        what: "quipu publish, a file of 1 M lines of JSON of 150 bytes, SYNCED",
        against,
        unit: Unit::RecordsPerSecond,
        bar,
        prepare: Box::new(move |scene| {
            let file = scene.dir.join("orders.ndjson");
            let count = scene.scaled(LINES);
            write_lines(&file, count)?;
            let served = Served::with_topic(&runtime()?, &scene.dir.join("served"), TOPIC)?;
            let parsed = file.clone();
            let reference = move || {
                let begun = Instant::now();
                let found = parse(&parsed, parse_line)?;
                let elapsed = begun.elapsed();
                ensure!(found == count, "{found} lines were found");
                Ok(Sample::rate(count, elapsed))
            };
            Ok(Pair::new(Publish { served, file, count, next: 0 }, reference))
        }),
    }
}

fn write_lines(path: &Path, count: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for number in 0..count {
        let cents = number * 7919 % 100_000;
        writeln!(
            file,
            r#"{{"id":{number},"kind":"placed","customer":{{"id":"c-{:05}","country":"PE"}},"total":{}.{:02},"items":["a-{}","b-{}"],"note":"leave it at the \"old\" door"}}"#,
            number % 50_021,
            cents / 100,
            cents % 100,
            number % 977,
            number % 89,
        )?;
    }
    Ok(file.flush()?)
}

/// Reads and parses alone.
fn parse(path: &Path, parse_line: fn(&[u8]) -> Result<()>) -> Result<u64> {
    let mut lines = BufReader::with_capacity(256 << 10, File::open(path)?);
    let (mut line, mut found) = (Vec::new(), 0);
    while lines.read_until(b'\n', &mut line)? > 0 {
        parse_line(&line)?;
        found += 1;
        line.clear();
    }
    Ok(found)
}

/// The real binary, start and end of the process included.
struct Publish {
    served: Served,
    file: PathBuf,
    count: u64,
    next: u64,
}

impl Contender for Publish {
    fn round(&mut self) -> Result<Sample> {
        let (first, end) = (self.next, self.next + self.count);
        self.next = end;
        let mut command = program::command()?;
        command.args(["publish", TOPIC, "--quiet", "--server", self.served.url()]).arg(&self.file);
        let begun = Instant::now();
        let status = command.status().context("run quipu publish")?;
        let elapsed = begun.elapsed();
        ensure!(status.success(), "quipu publish ended with {status}");
        let text = std::fs::read(&self.file)?;
        let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
        let line = |offset: u64| lines[usize::try_from(offset - first).unwrap_or(0)];
        self.served.check_and_trim(TOPIC, first, end, line)?;
        Ok(Sample::rate(self.count, elapsed))
    }
}
