//! Which cuts a sweep tries.
//!
//! A cut is made just before a write or a flush, or at the end. In between only acknowledgements happen: they do
//! not change the disk, and to cut after them asks more of it than before them. Of the cuts that no policy can
//! tell apart, one is tried.

use std::collections::VecDeque;

use crate::log::{BlockLog, Op};
use crate::replay::Policy;
use crate::rng::Rng;

/// One image of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cut {
    /// The operation before which the power fails.
    pub(crate) position: usize,
    pub(crate) policy: Policy,
    /// For the policies that leave something to chance.
    pub(crate) seed: u64,
}

/// The cuts of a sweep, by position: `points` of them, or with `None` each one that exists.
///
/// Every policy gets the same share while it has cuts left. Those that leave something to chance never run out:
/// they come again with another seed.
pub(crate) fn plan(log: &BlockLog, points: Option<usize>, seed: u64) -> Vec<Cut> {
    let mut rng = Rng::new(seed);
    let mut queues: Vec<(Policy, VecDeque<usize>)> = Policy::EVERY
        .into_iter()
        .map(|policy| {
            let mut positions = positions(log, policy);
            if points.is_some() {
                rng.shuffle(&mut positions);
            }
            (policy, positions.into())
        })
        .collect();
    queues.retain(|(_, queue)| !queue.is_empty());
    let mut cuts = Vec::new();
    while !queues.is_empty() && points.is_none_or(|points| cuts.len() < points) {
        for (policy, queue) in &mut queues {
            if points.is_some_and(|points| cuts.len() >= points) {
                break;
            }
            let Some(position) = queue.pop_front() else { continue };
            cuts.push(Cut { position, policy: *policy, seed: rng.next() });
            if points.is_some() && matches!(policy, Policy::Subset | Policy::Torn) {
                queue.push_back(position);
            }
        }
        queues.retain(|(_, queue)| !queue.is_empty());
    }
    cuts.sort_unstable();
    cuts
}

/// The cuts at which `policy` gives a disk, or asks a question about it, that nothing else does.
fn positions(log: &BlockLog, policy: Policy) -> Vec<usize> {
    let (begin, end) = log.program().into_inner();
    let mut pending =
        log.ops[..begin].iter().rev().take_while(|op| **op != Op::Flush).filter(is_write).count();
    let mut positions = Vec::new();
    for position in begin..=end {
        let op = log.ops.get(position).filter(|_| position < end);
        let before_flush = matches!(op, None | Some(Op::Flush));
        let chosen = match policy {
            Policy::All => before_flush || op.is_some_and(|op| is_write(&op)),
            // The disk is the same until the next flush; the last cut before it has the most acknowledgements.
            Policy::None => before_flush && pending > 0,
            // One write is there or is not: that is all or none.
            Policy::Subset => pending > 1 && (before_flush || op.is_some_and(|op| is_write(&op))),
            Policy::Torn => pending > 0 && (before_flush || op.is_some_and(|op| is_write(&op))),
        };
        if chosen {
            positions.push(position);
        }
        match op {
            Some(Op::Write { .. }) => pending += 1,
            Some(Op::Flush) => pending = 0,
            _ => {}
        }
    }
    positions
}

fn is_write(op: &&Op) -> bool {
    matches!(op, Op::Write { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> BlockLog {
        let write = || Op::Write { position: 0, bytes: [1].into() };
        //            0        1          2        3        4          5                    6        7
        let ops = vec![
            write(),
            Op::Flush,
            Op::Begin,
            write(),
            Op::Flush,
            Op::Ack("1".into()),
            write(),
            write(),
            // 8                  9          10       11
            Op::Ack("2".into()),
            Op::Flush,
            Op::End,
            write(),
        ];
        BlockLog { disk_bytes: 1, ops }
    }

    #[test]
    fn each_disk_is_cut_where_it_promises_most() {
        let log = log();
        assert_eq!(positions(&log, Policy::All), [3, 4, 6, 7, 9, 10]);
        assert_eq!(positions(&log, Policy::None), [4, 9]);
        assert_eq!(positions(&log, Policy::Subset), [9]);
        assert_eq!(positions(&log, Policy::Torn), [4, 7, 9]);
        assert_eq!(plan(&log, None, 1).len(), 12);
    }

    #[test]
    fn a_log_without_flushes_is_cut_at_its_end_with_all_of_its_promises() {
        let mut log = log();
        log.ops.retain(|op| *op != Op::Flush);
        assert_eq!(positions(&log, Policy::None), [7]);
    }

    #[test]
    fn as_many_cuts_as_asked_for_in_order_and_the_same_for_the_same_seed() {
        let log = log();
        for points in [1, 5, 12, 100] {
            let cuts = plan(&log, Some(points), 7);
            assert_eq!(cuts.len(), points);
            assert!(cuts.is_sorted());
            assert_eq!(cuts, plan(&log, Some(points), 7));
        }
        assert_ne!(plan(&log, Some(5), 7), plan(&log, Some(5), 8));
        let cuts = plan(&log, Some(4), 7);
        assert!(Policy::EVERY.iter().all(|policy| cuts.iter().any(|cut| cut.policy == *policy)));
    }

    #[test]
    fn a_program_that_wrote_nothing_has_one_cut() {
        let log = BlockLog { disk_bytes: 1, ops: vec![Op::Begin, Op::End] };
        assert_eq!(plan(&log, Some(10), 1).len(), 1);
    }
}
