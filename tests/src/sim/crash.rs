//! What a power cut chooses from, and how it chooses.

use crate::rng::Rng;

/// How kind the power cut is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// Everything reached the disk just in time.
    KeepAll,
    /// Nothing did but what was synced.
    LoseAll,
    /// Each sector, length and directory entry on its own: kept, lost, or something between.
    Random,
}

/// How many earlier versions of one thing are remembered. The durable one is never forgotten, so this bounds
/// memory and not what may be lost.
const EARLIER_MAX: usize = 8;

/// What something was before its changes since the last sync.
#[derive(Clone, Debug)]
pub(super) struct Versions<T> {
    /// The durable version first, then those between it and the current one, oldest first. Never empty.
    earlier: Vec<T>,
    /// A sync that covered the last change has failed: the kernel takes it for clean, and no later sync
    /// writes it (D5).
    stuck: bool,
}

impl<T> Versions<T> {
    pub(super) fn new(durable: T) -> Self {
        Self { earlier: vec![durable], stuck: false }
    }

    /// Notes that `replaced` is no longer current; returns the version that is forgotten for it, if any.
    pub(super) fn push(&mut self, replaced: T) -> Option<T> {
        self.stuck = false;
        let forgotten = (self.earlier.len() == EARLIER_MAX).then(|| self.earlier.remove(1));
        self.earlier.push(replaced);
        forgotten
    }

    pub(super) fn fail_sync(&mut self) {
        self.stuck = true;
    }

    /// Whether a sync leaves this alone.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck
    }

    pub(super) fn earlier(&self) -> &[T] {
        &self.earlier
    }

    pub(super) fn earlier_mut(&mut self) -> &mut [T] {
        &mut self.earlier
    }
}

/// Makes the choices of one power cut.
#[derive(Debug)]
pub(super) struct Dice<'a> {
    mode: CrashMode,
    rng: &'a mut Rng,
    /// The odds for every node, where this power cut treats all alike.
    shared_percent: Option<u64>,
    keep_percent: u64,
}

/// How likely the current version of something is to be kept. With the same odds always, a large file would
/// never lose just one sector, nor all, and a store would never lose just one file.
const KEEP_PERCENTS: [u64; 6] = [0, 10, 50, 90, 98, 100];

impl<'a> Dice<'a> {
    pub(super) fn new(mode: CrashMode, rng: &'a mut Rng) -> Self {
        let shared_percent =
            (mode == CrashMode::Random && rng.chance(25)).then(|| *rng.choose(&KEEP_PERCENTS));
        Self { mode, rng, shared_percent, keep_percent: 0 }
    }

    /// Decides how much of the next file or directory is kept on the whole.
    pub(super) fn next_node(&mut self) {
        if self.mode == CrashMode::Random {
            self.keep_percent = self.shared_percent.unwrap_or_else(|| *self.rng.choose(&KEEP_PERCENTS));
        }
    }

    /// Whether the current version of something is on the disk.
    pub(super) fn keeps(&mut self) -> bool {
        match self.mode {
            CrashMode::KeepAll => true,
            CrashMode::LoseAll => false,
            CrashMode::Random => self.rng.chance(self.keep_percent),
        }
    }

    /// The earlier version that is on the disk, or `None` if it is the current one.
    pub(super) fn pick<'v, T>(&mut self, versions: &'v Versions<T>) -> Option<&'v T> {
        if self.keeps() {
            return None;
        }
        match self.mode {
            CrashMode::Random => Some(self.rng.choose(&versions.earlier)),
            CrashMode::KeepAll | CrashMode::LoseAll => versions.earlier.first(),
        }
    }
}
