//! The hash of a term in memory. It is another one in each process and is never stored, so it may be the fastest there is;
//! what stands in files is [`hash`](crate::format::terms::hash::hash). Nobody who does not know its seed can prepare terms that
//! hash alike, but it is no proof against those who could learn the seed. Two terms of one hash cost a look at their bytes.

use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

use foldhash::fast::RandomState;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuickHash(pub(crate) u64);

impl QuickHash {
    /// Of a term: of its kind, which is its first byte, and the rest.
    #[inline]
    pub(crate) fn of(kind: u8, text: &[u8]) -> Self {
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        let mut hasher = STATE.build_hasher();
        hasher.write_u8(kind);
        hasher.write(text);
        Self(hasher.finish())
    }

    /// The same of a whole term.
    pub(crate) fn of_term(term: &[u8]) -> Self {
        Self::of(term[0], &term[1..])
    }
}
