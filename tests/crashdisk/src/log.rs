//! What reached the disk, and what the program had acknowledged by then, in the order it happened.
//!
//! The file, all numbers little-endian:
//!
//! ```text
//!   magic "QCRASH01" | disk_bytes u64 | op ...
//!   op:  'W' position u64, length u32, bytes     a write
//!        'F'                                     a flush: all earlier writes are durable from here on
//!        'A' length u32, text                    the program printed "ack TEXT"
//!        'B'  'E'                                the program's begin and end
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::Path;

use crate::error::{Context, Error, Result};

const MAGIC: &[u8; 8] = b"QCRASH01";

/// One thing that happened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Write { position: u64, bytes: Box<[u8]> },
    Flush,
    Ack(String),
    Begin,
    End,
}

/// Everything that happened to a disk that began as zeros.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BlockLog {
    pub(crate) disk_bytes: u64,
    pub(crate) ops: Vec<Op>,
}

/// How much happened while the program ran.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) acks: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) written_bytes: u64,
}

impl BlockLog {
    /// The positions at which the power may be cut: from the program's begin to its end.
    pub(crate) fn program(&self) -> RangeInclusive<usize> {
        let begin = self.ops.iter().position(|op| *op == Op::Begin).unwrap_or(0);
        let end = self.ops.iter().position(|op| *op == Op::End).unwrap_or(self.ops.len());
        begin..=end
    }

    /// What happened between the program's begin and end.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let (begin, end) = self.program().into_inner();
        for op in &self.ops[begin..end] {
            match op {
                Op::Write { bytes, .. } => {
                    totals.writes += 1;
                    totals.written_bytes += bytes.len() as u64;
                }
                Op::Flush => totals.flushes += 1,
                Op::Ack(_) => totals.acks += 1,
                Op::Begin | Op::End => {}
            }
        }
        totals
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        self.write_to(path).context(|| format!("write the log {}", path.display()))
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(MAGIC)?;
        out.write_all(&self.disk_bytes.to_le_bytes())?;
        for op in &self.ops {
            match op {
                Op::Write { position, bytes } => {
                    out.write_all(b"W")?;
                    out.write_all(&position.to_le_bytes())?;
                    write_sized(&mut out, bytes)?;
                }
                Op::Flush => out.write_all(b"F")?,
                Op::Ack(text) => {
                    out.write_all(b"A")?;
                    write_sized(&mut out, text.as_bytes())?;
                }
                Op::Begin => out.write_all(b"B")?,
                Op::End => out.write_all(b"E")?,
            }
        }
        out.flush()
    }

    /// Reads a log and proves that each of its writes is within the disk, so that nobody after needs to ask.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).context(|| format!("read the log {}", path.display()))?;
        let mut reader = Reader { path, bytes: &bytes, position: 0 };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(reader.damaged("not a log of this tool"));
        }
        let disk_bytes = reader.u64()?;
        let mut ops = Vec::new();
        while reader.position < bytes.len() {
            ops.push(match reader.take(1)? {
                b"W" => {
                    let position = reader.u64()?;
                    let bytes: Box<[u8]> = reader.sized()?.into();
                    if position.checked_add(bytes.len() as u64).is_none_or(|end| end > disk_bytes) {
                        return Err(reader.damaged("a write beyond the disk"));
                    }
                    Op::Write { position, bytes }
                }
                b"F" => Op::Flush,
                b"A" => Op::Ack(String::from_utf8_lossy(reader.sized()?).into_owned()),
                b"B" => Op::Begin,
                b"E" => Op::End,
                _ => return Err(reader.damaged("unknown operation")),
            });
        }
        Ok(Self { disk_bytes, ops })
    }
}

fn write_sized(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(bytes)
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let taken =
            self.bytes[self.position..].get(..length).ok_or_else(|| self.damaged("it ends too early"))?;
        self.position += length;
        Ok(taken)
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("took 8 bytes")))
    }

    fn sized(&mut self) -> Result<&'a [u8]> {
        let length = u32::from_le_bytes(self.take(4)?.try_into().expect("took 4 bytes"));
        self.take(length as usize)
    }

    fn damaged(&self, why: &'static str) -> Error {
        Error::DamagedLog { path: self.path.to_owned(), position: self.position, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(position: u64, bytes: &[u8]) -> Op {
        Op::Write { position, bytes: bytes.into() }
    }

    #[test]
    fn a_saved_log_is_read_back_unchanged() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = BlockLog {
            disk_bytes: 4096,
            ops: vec![
                write(0, &[7; 512]),
                Op::Begin,
                Op::Flush,
                Op::Ack("orders 17 é".into()),
                write(512, &[1]),
                Op::End,
            ],
        };
        log.save(file.path()).unwrap();
        assert_eq!(BlockLog::load(file.path()).unwrap(), log);
        assert_eq!(log.totals(), Totals { acks: 1, writes: 1, flushes: 1, written_bytes: 1 });
        assert_eq!(log.program(), 1..=5);
    }

    #[test]
    fn a_write_beyond_the_disk_and_a_cut_log_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        BlockLog { disk_bytes: 512, ops: vec![write(1, &[0; 512])] }.save(file.path()).unwrap();
        assert!(BlockLog::load(file.path()).unwrap_err().to_string().contains("beyond the disk"));

        BlockLog { disk_bytes: 512, ops: vec![write(0, &[0; 512])] }.save(file.path()).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        fs::write(file.path(), &bytes[..bytes.len() - 1]).unwrap();
        assert!(BlockLog::load(file.path()).unwrap_err().to_string().contains("too early"));
    }
}
