//! Concurrent writers and readers under conditions, and what they were told: is there one order of all calls that explains
//! it?
//!
//! Some threads append to one topic, most of the time under conditions, ask for the last revisions of keys and read, while
//! the power goes now and then. Each call is written down with when it began and when it ended. The history is right if it
//! is *linearizable* (Herlihy and Wing, 1990): every call can be given one moment between its beginning and its end, so that
//! a plain model that does them one after the other, in the order of those moments, gives the same answers. A call that
//! ended with the failure of the store may have happened at any moment after its beginning, or not at all; every other one
//! that ended with an error has not.
//!
//! | Module | What it does |
//! |---|---|
//! | [`model`] | calls and answers, and the plain model |
//! | [`checker`] | looks for the order |
//! | [`play`] | makes a history |

pub mod checker;
pub mod model;
pub mod play;
