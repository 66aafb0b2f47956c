//! A record behind its length: four bytes, big-endian, and so many bytes of payload.

use quipu_proto::v1 as pb;

use super::{Entries, Feed, Invalid, Mapping};

pub(super) struct Prefixed<'a> {
    feed: Feed<'a>,
    mapping: Mapping,
    bytes_max: usize,
    number: u64,
    is_over: bool,
}

impl<'a> Prefixed<'a> {
    pub(super) fn new(feed: Feed<'a>, mapping: Mapping, bytes_max: usize) -> Self {
        Self { feed, mapping, bytes_max, number: 0, is_over: false }
    }

    fn take(&mut self) -> Result<Option<pb::Record>, Invalid> {
        let failed = |error: std::io::Error| Invalid::last(error.to_string());
        let prefix = self.feed.take(4).map_err(failed)?;
        if prefix.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let Ok(prefix) = <[u8; 4]>::try_from(&prefix[..]) else {
            return Err(Invalid::last("the input ends within a length"));
        };
        let length = u32::from_be_bytes(prefix) as usize;
        if length > self.bytes_max {
            let limit = self.bytes_max;
            return Err(Invalid::last(format!("it says that it has {length} bytes, the limit is {limit}")));
        }
        let payload = self.feed.take(length).map_err(failed)?;
        if payload.len() < length {
            let there = payload.len();
            return Err(Invalid::last(format!("the input ends after {there} of {length} bytes")));
        }
        Ok(Some(pb::Record { payload: Some(payload), ..self.mapping.constant.clone() }))
    }
}

impl Entries for Prefixed<'_> {
    fn next(&mut self) -> Option<Result<pb::Record, Invalid>> {
        if self.is_over {
            return None;
        }
        let next = self.take().transpose();
        self.is_over = matches!(&next, None | Some(Err(_)));
        next
    }

    fn noun(&self) -> &'static str {
        "record"
    }

    fn number(&self) -> u64 {
        self.number
    }
}
