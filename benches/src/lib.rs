//! The framework of the benchmarks: rows, bars, and the physical limits that rows are held against.
//!
//! A figure alone says little on a machine whose disk syncs 280 times a second now and 6,000 times an hour
//! later. So every [`Row`](row::Row) runs two contenders, the measured one and its reference, alternating in
//! the same minute, and is judged by their ratio. Both figures are always reported.
//!
//! - [`row`]: what a row is: its name, its bar, its two contenders
//! - [`measure`]: runs a row: warm-up, alternating rounds, medians
//! - [`limits`]: the references: what memory, checksum and disk allow at best
//! - [`payload`], [`latency`], [`writers`], [`child`], [`map`]: what contenders are made of
//! - [`service`], [`program`], [`bare`]: the service as a process of its own, and what it is held against
//! - [`report`], [`json`], [`args`]: the table, the JSON lines, the command line
//! - [`rows`]: the rows themselves, one module each
//!
//! The lib half exists so that the comparison with peers, a workspace of its own, measures by the same rules.

pub mod args;
pub mod bare;
pub mod child;
pub mod json;
pub mod latency;
pub mod limits;
pub mod map;
pub mod measure;
pub mod payload;
pub mod program;
pub mod report;
pub mod roles;
pub mod row;
pub mod rows;
pub mod service;
pub mod writers;
