//! Rows over loopback: the real `quipu`, each process as its users run it. What they are held against, if it serves, is
//! a process of its own, too.

mod catch_up;
mod publish;
mod rest;
mod session;
mod tail;
mod unary;

use crate::row::Row;

pub(super) fn rows() -> Vec<Row> {
    [session::rows(), catch_up::rows(), unary::rows(), tail::rows(), publish::rows(), rest::rows()]
        .into_iter()
        .flatten()
        .collect()
}
