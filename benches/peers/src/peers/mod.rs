//! The systems, one adapter a file.

mod commitlog;
mod lmdb;
mod okaywal;
mod open_wal;
mod quipu;
mod raft_engine;
mod seglog;
mod wal_db;

use crate::peer::Peer;

/// Every system, in the order of the report.
pub fn all() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(quipu::QuipuLog),
        Box::new(quipu::QuipuStore),
        Box::new(open_wal::OpenWal),
        Box::new(raft_engine::RaftEngine),
        Box::new(okaywal::OkayWal),
        Box::new(wal_db::WalDb),
        Box::new(commitlog::CommitLog),
        Box::new(seglog::SegLog),
        Box::new(lmdb::Lmdb),
    ]
}
