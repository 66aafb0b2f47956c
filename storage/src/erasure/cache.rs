//! Derived keys that are used again and again: deriving one takes eighty hashes.

use std::collections::HashMap;
use std::sync::Arc;

use super::crypto::Secret;
use crate::format::master_key::Path;

/// Keys in one half.
const KEYS_MAX: usize = 1024;

/// Keys by their leaf, in two halves: what was not asked for while the newer one filled up goes.
#[derive(Debug, Default)]
pub(super) struct Cache {
    newer: HashMap<Path, Arc<Secret>>,
    older: HashMap<Path, Arc<Secret>>,
}

impl Cache {
    pub(super) fn find(&mut self, leaf: &Path) -> Option<Arc<Secret>> {
        if let Some(key) = self.newer.get(leaf) {
            return Some(Arc::clone(key));
        }
        let key = self.older.remove(leaf)?;
        self.put(*leaf, &key);
        Some(key)
    }

    pub(super) fn put(&mut self, leaf: Path, key: &Arc<Secret>) {
        if self.newer.len() >= KEYS_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(leaf, Arc::clone(key));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        let leaf = |number: u32| {
            let mut leaf = [0; 10];
            leaf[..4].copy_from_slice(&number.to_be_bytes());
            leaf
        };
        for number in 0..5000 {
            cache.put(leaf(number), &Arc::new(Secret([0; 32])));
            assert!(cache.find(&leaf(0)).is_some());
            assert!(cache.newer.len() + cache.older.len() <= 2 * KEYS_MAX);
        }
        assert!(cache.find(&leaf(1)).is_none());
        cache.clear();
        assert!(cache.find(&leaf(4999)).is_none());
    }
}
