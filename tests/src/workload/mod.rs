//! A workload that says what was acknowledged, and its checker.
//!
//! ```text
//! plan:  (scenario, seed, run, thread, step) ──> what to do, down to each byte
//! write: does it ──────────> 'ack ...' lines, each after its call returned (and intents before theirs)
//!           power cut, kill, fault
//! check: store + acks ─────> all that was acknowledged is there, and nothing that was never sent
//! ```
//!
//! Every record carries in its id which step of which plan it comes from. So the checker makes the record anew and
//! compares every byte, for acknowledged records and for others; and it knows what must be there together with it.

mod acks;
mod check;
mod compacted;
mod plan;
mod write;

pub use acks::{Acks, Name};
pub use check::{Checked, Survived, check};
pub use plan::{Scenario, store_settings};
pub use write::{Write, write};
