//! Payloads that can be erased from every copy of them: sealed with the key of an erasure key, which can be destroyed.
//!
//! | Module | What it does |
//! |---|---|
//! | [`crypto`] | the keyed hash and the cipher, which only a build with the feature `erasure` has |
//! | [`tree`] | derives the keys, and destroys single ones |
//! | [`cache`] | keys that are used again and again |
//! | [`master_key`] | the file that holds what is left of the tree |
//! | [`seal`] | sealed payloads: made before a batch is, opened when one leaves a cursor |

mod cache;
pub(crate) mod crypto;
pub(crate) mod master_key;
pub(crate) mod seal;
pub(crate) mod tree;
