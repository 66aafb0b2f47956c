//! Damage on the disk: every bit of a small store flipped in turn.
//!
//! After each flip the store is opened and read in every direction; after one of each byte it is also verified, and read
//! as by another process. Then:
//!
//! - never is a wrong record delivered, and never a panic, and none of it goes on for ever;
//! - no intact record is lost: what cannot be read is the batch whose bit it was, an error names its offsets, and what
//!   lies outside is there. A bit of the journal may cost the opening, which then names the file. The one exception is
//!   the journal's last group of a store that was not closed: whether its bytes were damaged or never got to the disk
//!   cannot be told, so it is cut off, and the opening reports a torn end;
//! - damage is reported: by an error of the opening or of a reader, in [`RecoveryReport::damaged`], or by the count of
//!   damage that readers met; and then by [`verify()`] too. Only bytes that nothing uses may be damaged without a word, see
//!   [`Use`]. Of those one bit in each eight bytes is tried, or all with `QUIPU_ROT_ALL=1`.
//!
//! | Module | What it does |
//! |---|---|
//! | [`mod@sample`] | the small store, closed or killed |
//! | [`uses`] | which of its bytes matter |
//! | [`look`] | what a damaged copy of it delivers and reports |
//!
//! [`RecoveryReport::damaged`]: quipu_storage::RecoveryReport::damaged
//! [`verify()`]: quipu_storage::verify::verify

pub mod look;
pub mod sample;
pub mod uses;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ensure;
use crate::model::Check;
use look::Seen;
use sample::{Sample, sample};
use uses::{Lost, Use};

/// How long one flip may take before it counts as looked at for ever; it takes less than a millisecond.
const FLIP_DURATION_MAX: Duration = Duration::from_secs(60);

/// What was flipped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flipped {
    /// Bits flipped.
    pub bits: u64,
    /// Those whose damage was reported.
    pub reported: u64,
    /// Those that were taken for a torn write.
    pub torn: u64,
    /// Those that cost a record or more, without costing the opening.
    pub lossy: u64,
}

/// One bit of one file.
#[derive(Clone, Debug)]
struct Flip {
    of_closed: bool,
    path: PathBuf,
    bit: u64,
    used: Use,
}

impl fmt::Display for Flip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of_closed, path, bit, used } = self;
        let sample = if *of_closed { "closed" } else { "killed" };
        write!(f, "{sample} store, {} bit {bit} (byte {}, {used:?})", path.display(), bit / 8)
    }
}

/// What a thread is at, and whether it should stop.
#[derive(Debug, Default)]
struct Share {
    /// The flip that is looked at, with its number.
    current: Mutex<(u64, Option<Flip>)>,
    is_stopped: AtomicBool,
}

impl Share {
    fn current(&self) -> MutexGuard<'_, (u64, Option<Flip>)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flips every bit of a killed and of a closed store, one at a time, on so many threads. Complains also of a flip that is
/// looked at for ever; its thread is left behind.
///
/// # Errors
/// The first complaint.
pub fn run_on(threads: usize) -> Check<Flipped> {
    let shares: Vec<Arc<Share>> = (0..threads).map(|_| Arc::default()).collect();
    let outcome = watch(&shares);
    shares.iter().for_each(|share| share.is_stopped.store(true, Ordering::Relaxed));
    outcome
}

fn watch(shares: &[Arc<Share>]) -> Check<Flipped> {
    let (tell, outcomes) = mpsc::channel();
    for (number, share) in shares.iter().enumerate() {
        let (tell, share, count) = (tell.clone(), Arc::clone(share), shares.len());
        // That nobody listens any more is no loss.
        std::thread::spawn(move || tell.send(flip_share((number, count), &share)));
    }
    drop(tell);
    let mut all = Flipped::default();
    let mut before = vec![0; shares.len()];
    loop {
        match outcomes.recv_timeout(FLIP_DURATION_MAX) {
            Ok(outcome) => {
                let flipped = outcome?;
                all.bits += flipped.bits;
                all.reported += flipped.reported;
                all.torn += flipped.torn;
                all.lossy += flipped.lossy;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(all),
            Err(RecvTimeoutError::Timeout) => {
                for (share, before) in shares.iter().zip(&mut before) {
                    if let (number, Some(flip)) = &*share.current() {
                        ensure!(number != before, "for ever: {flip}");
                        *before = *number;
                    }
                }
            }
        }
    }
}

/// Flips the bits of the bytes whose number modulo `shards` is `shard`, on this thread.
///
/// # Errors
/// The first complaint.
pub fn run((shard, shards): (usize, usize)) -> Check<Flipped> {
    flip_share((shard, shards), &Share::default())
}

fn flip_share((shard, shards): (usize, usize), share: &Share) -> Check<Flipped> {
    let flips_all = std::env::var_os("QUIPU_ROT_ALL").is_some();
    let mut flipped = Flipped::default();
    for is_closed in [false, true] {
        let sample = sample(is_closed)?;
        let seen = sample.look(&sample.disk.after_kill())?;
        let is_quiet = !seen.is_reported && !seen.is_torn && seen.lost.is_empty();
        ensure!(is_quiet && seen.was_clean == is_closed, "an intact store: {seen:?}");
        for (path, bytes) in sample.files()? {
            let bytes_of_file = sample.uses(&path, &bytes);
            for (byte, (used, lost)) in bytes_of_file.iter().enumerate() {
                if byte % shards != shard {
                    continue;
                }
                let tries_all = flips_all || *used != Use::Unused;
                for bit in byte as u64 * 8..byte as u64 * 8 + 8 {
                    // One of the 64 bits of each eight bytes, each time another one.
                    if !tries_all && bit % 64 != bit / 64 % 64 {
                        continue;
                    }
                    let flip = Flip { of_closed: is_closed, path: path.clone(), bit, used: *used };
                    if share.is_stopped.load(Ordering::Relaxed) {
                        return Ok(flipped);
                    }
                    *share.current() = (flipped.bits + 1, Some(flip.clone()));
                    let seen =
                        try_flip(&sample, &flip, lost).map_err(|complaint| format!("{flip}: {complaint}"))?;
                    flipped.bits += 1;
                    flipped.reported += u64::from(seen.is_reported);
                    flipped.torn += u64::from(seen.is_torn);
                    flipped.lossy += u64::from(!seen.lost.is_empty());
                }
            }
        }
    }
    *share.current() = (flipped.bits, None);
    Ok(flipped)
}

/// Looks at a copy with one bit flipped, which may cost what `lost` says.
fn try_flip(sample: &Sample, flip: &Flip, lost: &Lost) -> Check<Seen> {
    let disk = sample.disk.after_kill();
    disk.flip_bit(&flip.path, flip.bit).map_err(|error| error.to_string())?;
    // A verification and a reader in another process are tried with one bit of each byte: they cost as much again.
    let is_thorough = flip.bit % 8 == flip.bit / 8 % 8;
    let look = std::panic::AssertUnwindSafe(|| {
        if is_thorough { sample.look(&disk) } else { sample.open_and_look(&disk) }
    });
    let seen = std::panic::catch_unwind(look).unwrap_or_else(|_| Err("panic".to_owned()))?;
    let is_noticed = match flip.used {
        Use::Used => seen.is_reported,
        Use::Last => seen.is_reported || seen.is_torn,
        Use::Clean => !seen.was_clean,
        Use::Unused => true,
    };
    ensure!(is_noticed, "nobody noticed: {seen:?}");
    for (topic, offset) in &seen.lost {
        let may_go = seen.is_torn
            || matches!(lost, Some((name, offsets)) if name == topic && offsets.contains(offset));
        ensure!(may_go, "{topic}: record {offset} is intact and lost");
    }
    Ok(seen)
}
