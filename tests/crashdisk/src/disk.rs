//! The block device: its bytes in memory, the log of what it was asked to do, and its faults.
//!
//! One lock orders everything. A write is logged under the lock before the kernel hears that it succeeded, and an
//! acknowledgement of the program takes the same lock, so in the log an acknowledgement never precedes a flush
//! that it had waited for.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::faults::{Access, Faults};
use crate::log::{BlockLog, Op};

/// A share of the device.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

struct State {
    bytes: Vec<u8>,
    /// `None`: nobody wants a log.
    log: Option<Vec<Op>>,
    faults: Faults,
}

/// Why the device refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A fault that was asked for.
    Fault,
    /// There is no such place on it.
    BeyondEnd,
    /// A command it does not know.
    BadCommand,
}

impl Disk {
    pub(crate) fn new(bytes: usize, logged: bool) -> Self {
        let log = logged.then(Vec::new);
        Self(Arc::new(Mutex::new(State { bytes: vec![0; bytes], log, faults: Faults::default() })))
    }

    pub(crate) fn len(&self) -> u64 {
        self.lock().bytes.len() as u64
    }

    /// The bytes at `position`, fewer where the device ends.
    pub(crate) fn read(&self, position: u64, length: u32) -> Result<Vec<u8>, Refusal> {
        let mut state = self.lock();
        let end = position.saturating_add(length.into());
        if state.faults.fails(Access::Read, &(position..end)) {
            return Err(Refusal::Fault);
        }
        let end = end.min(state.bytes.len() as u64);
        Ok(state.bytes[index(&(position.min(end)..end))].to_vec())
    }

    pub(crate) fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.delay();
        let mut state = self.lock();
        let range = position..position.saturating_add(bytes.len() as u64);
        if state.faults.fails(Access::Write, &range) {
            return Err(Refusal::Fault);
        }
        if range.end > state.bytes.len() as u64 {
            return Err(Refusal::BeyondEnd);
        }
        state.bytes[index(&range)].copy_from_slice(bytes);
        state.push(|| Op::Write { position, bytes: bytes.into() });
        Ok(())
    }

    pub(crate) fn flush(&self) -> Result<(), Refusal> {
        self.delay();
        let mut state = self.lock();
        if state.faults.fails(Access::Flush, &(0..1)) {
            return Err(Refusal::Fault);
        }
        if !state.faults.lie {
            state.push(|| Op::Flush);
        }
        Ok(())
    }

    /// Adds an acknowledgement, begin or end to the log.
    pub(crate) fn mark(&self, op: Op) {
        self.lock().push(|| op);
    }

    /// Obeys commands; see [`Faults`].
    pub(crate) fn control(&self, commands: &str) -> Result<(), Refusal> {
        self.lock().faults.obey(commands).map_err(|_| Refusal::BadCommand)
    }

    /// How many operations failed by command.
    pub(crate) fn hits(&self) -> u64 {
        self.lock().faults.hits
    }

    /// Takes the log out; from here on nothing is logged.
    pub(crate) fn take_log(&self) -> BlockLog {
        let mut state = self.lock();
        BlockLog { disk_bytes: state.bytes.len() as u64, ops: state.log.take().unwrap_or_default() }
    }

    fn delay(&self) {
        let delay = self.lock().faults.delay;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, op: impl FnOnce() -> Op) {
        if let Some(log) = &mut self.log {
            log.push(op());
        }
    }
}

fn index(range: &Range<u64>) -> Range<usize> {
    let at = |position| usize::try_from(position).expect("the disk is in memory");
    at(range.start)..at(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_succeeds_is_logged_and_what_fails_is_not() {
        let disk = Disk::new(2048, true);
        disk.write(512, &[7; 512]).unwrap();
        disk.flush().unwrap();
        disk.control("write-eio\nflush-eio 0 1").unwrap();
        assert_eq!(disk.write(0, &[1; 512]), Err(Refusal::Fault));
        assert_eq!(disk.flush(), Err(Refusal::Fault));
        disk.control("clear").unwrap();
        assert_eq!(disk.write(2000, &[1; 512]), Err(Refusal::BeyondEnd));
        disk.mark(Op::Ack("1".into()));
        assert_eq!(disk.read(0, 4096).unwrap().len(), 2048);
        assert_eq!(disk.read(512, 1).unwrap(), [7]);
        assert_eq!(disk.hits(), 2);
        let expected =
            vec![Op::Write { position: 512, bytes: vec![7; 512].into() }, Op::Flush, Op::Ack("1".into())];
        assert_eq!(disk.take_log().ops, expected);
    }

    #[test]
    fn a_lying_disk_says_yes_to_a_flush_and_forgets_it() {
        let disk = Disk::new(512, true);
        disk.control("lie").unwrap();
        disk.flush().unwrap();
        assert_eq!(disk.take_log().ops, []);
    }
}
