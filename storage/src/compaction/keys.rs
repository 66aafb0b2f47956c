//! Which keys were seen, going backwards, in bounded memory.
//!
//! When there are more keys than may be held, the share of them that is looked at in this pass is halved, as often
//! as it takes, and the other halves wait for passes of their own. Shares are told apart by the low bits of the hash.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};

use super::Rules;
use crate::types::Timestamp;

/// As many as fill a hash table of 2^20 places.
pub(super) const KEYS_MAX: usize = (1 << 20) / 8 * 7;

/// What stands for a key: 128 bits that nobody outside can foresee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyHash {
    high: u64,
    low: u64,
}

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

/// Makes [`KeyHash`]es; all of one run must come from the same.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(RandomState);

impl KeyHasher {
    pub(super) fn hash(&self, key: &[u8]) -> KeyHash {
        let half = |prefix: u8| self.0.hash_one((prefix, key));
        KeyHash { high: half(0), low: half(1) }
    }
}

/// For keys that are hashes already.
#[derive(Debug, Default)]
pub(super) struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a hash is one number");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// What the records behind say about a key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    newer: u32,
    /// The latest is a tombstone that goes: all before it go too, however many would stay.
    is_deleted: bool,
    /// The latest is a tombstone that stays for its age.
    pub(super) is_tombstone_young: bool,
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stays,
    Superseded,
    TombstoneExpired,
}

impl Seen {
    /// Judges the next older record of the key. `may_go`: whether it lies where records may be removed.
    pub(super) fn judge(
        &mut self,
        rules: &Rules,
        may_go: bool,
        is_tombstone: bool,
        time: Timestamp,
    ) -> Verdict {
        let newer = self.newer;
        self.newer = newer.saturating_add(1);
        if !may_go || rules.is_young(time) {
            return Verdict::Stays;
        }
        if newer == 0 && is_tombstone {
            if rules.is_tombstone_young(time) {
                self.is_tombstone_young = true;
                return Verdict::Stays;
            }
            self.is_deleted = true;
            return Verdict::TombstoneExpired;
        }
        if self.is_deleted || newer >= rules.records_per_key {
            return Verdict::Superseded;
        }
        Verdict::Stays
    }
}

/// The keys whose hash ends with the low `bits` of `value`.
#[derive(Clone, Copy, Debug)]
struct Share {
    bits: u32,
    value: u64,
}

impl Share {
    fn covers(self, hash: &KeyHash) -> bool {
        (hash.high ^ self.value) & ((1 << self.bits) - 1) == 0
    }
}

/// See the [module](self).
pub(super) struct Keys {
    seen: HashMap<KeyHash, Seen, BuildHasherDefault<Unhashed>>,
    keys_max: usize,
    share: Share,
    waiting: Vec<Share>,
}

impl Keys {
    pub(super) fn new(keys_max: usize) -> Self {
        let all = Share { bits: 0, value: 0 };
        Self { seen: HashMap::default(), keys_max, share: all, waiting: vec![all] }
    }

    /// Begins the next pass; `false` if every key has had one.
    pub(super) fn next_pass(&mut self) -> bool {
        let Some(share) = self.waiting.pop() else { return false };
        self.share = share;
        self.seen.clear();
        true
    }

    /// Whether this pass looks at the key.
    pub(super) fn covers(&self, hash: &KeyHash) -> bool {
        self.share.covers(hash)
    }

    /// What is known about a key, or `None` if another pass looks at it.
    pub(super) fn seen(&mut self, hash: KeyHash) -> Option<&mut Seen> {
        while self.covers(&hash) {
            if self.seen.len() < self.keys_max || self.seen.contains_key(&hash) {
                return Some(self.seen.entry(hash).or_default());
            }
            self.halve();
        }
        None
    }

    fn halve(&mut self) {
        let Share { bits, value } = self.share;
        assert!(bits < 63, "random hashes differ in their first 63 bits");
        self.share.bits += 1;
        self.waiting.push(Share { bits: bits + 1, value: value | 1 << bits });
        let share = self.share;
        self.seen.retain(|hash, _| share.covers(hash));
    }

    /// The keys of this pass, when it is over: how many, and of how many the latest is a tombstone that stays.
    pub(super) fn counts(&self) -> (u64, u64) {
        let tombstones = self.seen.values().filter(|seen| seen.is_tombstone_young).count();
        (self.seen.len() as u64, tombstones as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::settings::Compaction;

    fn rules(records_per_key: u32) -> Rules {
        let compaction = Compaction {
            records_per_key,
            lag_min: Duration::from_millis(10),
            tombstone_age_max: Duration::from_millis(100),
            bytes_per_second_max: 0,
        };
        Rules::new(&compaction, Timestamp(1000))
    }

    /// Verdicts from the latest record to the oldest: `v` a value, `t` a tombstone, and its time.
    fn verdicts(records_per_key: u32, newest_first: &[(char, u64)]) -> String {
        let mut seen = Seen::default();
        newest_first
            .iter()
            .map(|&(kind, time)| {
                match seen.judge(&rules(records_per_key), true, kind == 't', Timestamp(time)) {
                    Verdict::Stays => '.',
                    Verdict::Superseded => 's',
                    Verdict::TombstoneExpired => 'x',
                }
            })
            .collect()
    }

    #[test]
    fn as_many_records_of_a_key_stay_as_the_rules_say() {
        assert_eq!(verdicts(1, &[('v', 5), ('v', 4), ('v', 3)]), ".ss");
        assert_eq!(verdicts(2, &[('v', 5), ('v', 4), ('v', 3)]), "..s");
        assert_eq!(verdicts(3, &[('v', 5), ('v', 4), ('v', 3)]), "...");
    }

    #[test]
    fn a_young_record_stays_and_counts_for_the_older_ones() {
        assert_eq!(verdicts(1, &[('v', 1000), ('v', 991), ('v', 990), ('v', 3)]), "..ss");
    }

    #[test]
    fn a_tombstone_hides_what_is_before_it_and_goes_when_it_is_old() {
        assert_eq!(verdicts(1, &[('t', 901), ('v', 4)]), ".s");
        assert_eq!(verdicts(1, &[('t', 900), ('v', 4)]), "xs");
        assert_eq!(verdicts(1, &[('v', 950), ('t', 940), ('v', 4)]), ".ss");
    }

    #[test]
    fn what_is_before_a_tombstone_that_goes_does_not_come_back() {
        assert_eq!(verdicts(3, &[('t', 900), ('v', 4), ('v', 3)]), "xss");
        assert_eq!(verdicts(3, &[('t', 901), ('v', 4), ('v', 3)]), "...");
        assert_eq!(verdicts(2, &[('v', 900), ('t', 4), ('v', 3)]), "..s");
    }

    #[test]
    fn a_record_where_nothing_may_go_stays_and_counts() {
        let mut seen = Seen::default();
        assert_eq!(seen.judge(&rules(1), false, true, Timestamp(1)), Verdict::Stays);
        assert_eq!(seen.judge(&rules(1), true, false, Timestamp(1)), Verdict::Superseded);
    }

    #[test]
    fn every_key_is_looked_at_from_its_start_in_exactly_one_pass() {
        let hasher = KeyHasher::default();
        let hashes: Vec<KeyHash> = (0..1000_u32).map(|n| hasher.hash(&n.to_le_bytes())).collect();
        let mut keys = Keys::new(16);
        let mut whole = vec![0; hashes.len()];
        let (mut passes, mut counted) = (0, 0);
        while keys.next_pass() {
            passes += 1;
            // Each key twice; a key that is dropped in between must not be whole in this pass.
            let mut seen = vec![0; hashes.len()];
            for (number, hash) in hashes.iter().enumerate().chain(hashes.iter().enumerate()) {
                if let Some(of_key) = keys.seen(*hash) {
                    assert_eq!(of_key.newer, seen[number]);
                    of_key.newer += 1;
                    seen[number] += 1;
                }
                assert!(keys.seen.len() <= 16);
            }
            for (number, hash) in hashes.iter().enumerate() {
                whole[number] += u32::from(seen[number] == 2 && keys.covers(hash));
            }
            counted += keys.counts().0;
        }
        assert!(whole.iter().all(|&passes| passes == 1));
        assert_eq!(counted, 1000);
        assert!((63..500).contains(&passes), "{passes}");
    }
}
