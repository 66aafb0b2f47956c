//! `quipu explain`: whether conditions of an append would hold now, and what stands against them.

use clap::Args;
use quipu_client::ExpectedRevision;
use quipu_proto::v1 as pb;
use serde_json::json;

use crate::args::Global;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Output, Shown};
use crate::requirement::{Requirement, Unmet, look_at, parse_expected};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu explain orders --revision order-7=3
  quipu explain orders --revision order-8=no-stream --next-offset 1500
  quipu explain seats --no-match 'tag=seat-12,type=claimed,after=200'

Ends with 0 if all hold, else with 4.")]
pub(crate) struct ExplainArgs {
    /// The topic.
    topic: String,
    /// The last revision of a key is a number, or the key has `no-stream`, or it `exists`. May be given several times.
    #[arg(long = "revision", value_name = "KEY=REVISION", value_parser = parse_revision)]
    revisions: Vec<Requirement>,
    /// The topic's next offset is this.
    #[arg(long, value_name = "OFFSET")]
    next_offset: Option<u64>,
    /// No record behind offset `after` (without it, none at all) has all of these: `tag=`, `type=`, `key=`; a name may come
    /// several times: of tags all, of types and keys any. May be given several times.
    #[arg(long = "no-match", value_name = "NAME=VALUE,...", value_parser = parse_no_match)]
    no_matches: Vec<Requirement>,
}

fn parse_revision(text: &str) -> Result<Requirement, String> {
    // The key may have any character, what is expected none of these.
    let (key, expected) =
        text.rsplit_once('=').ok_or("write it as KEY=REVISION, KEY=no-stream or KEY=exists")?;
    Ok(Requirement::Revision { key: key.into(), expected: parse_expected(expected)? })
}

fn parse_no_match(text: &str) -> Result<Requirement, String> {
    let (mut filter, mut tags, mut after) = (pb::Filter::default(), Vec::new(), None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tag", tag)) => tags.push(tag.to_owned()),
            Some(("type", kind)) => filter.types.push(kind.into()),
            Some(("key", key)) => filter.keys.push(key.to_owned().into()),
            Some(("after", offset)) => {
                after = Some(offset.parse().map_err(|_| format!("{offset:?} is no offset"))?);
            }
            _ => return Err(format!("{part:?} is none of tag=, type=, key=, after=")),
        }
    }
    if !tags.is_empty() {
        filter.tags.push(pb::filter::TagSet { all: tags });
    }
    if filter == pb::Filter::default() {
        return Err("name at least a tag, a type or a key".into());
    }
    Ok(Requirement::NoMatch { filter, after })
}

pub(crate) fn run(global: &Global, args: ExplainArgs, out: &mut Output) -> Result<()> {
    let ExplainArgs { topic, revisions, next_offset, no_matches } = args;
    let next_offset = next_offset.map(Requirement::NextOffset);
    let requirements: Vec<_> = revisions.into_iter().chain(next_offset).chain(no_matches).collect();
    if requirements.is_empty() {
        return Err(Failure::usage("name a condition: --revision, --next-offset or --no-match"));
    }
    if requirements.len() > REQUIREMENTS_MAX {
        return Err(Failure::usage(format!("an append has at most {REQUIREMENTS_MAX} conditions")));
    }
    let backend = global.backend()?;
    let mut all_hold = true;
    for requirement in &requirements {
        // One by one: an answer about many has no room for all.
        let unmet = backend.unmet(&topic, std::slice::from_ref(requirement))?.into_iter().next();
        all_hold &= unmet.is_none();
        tell(&topic, requirement, unmet, out)?;
    }
    backend.close()?;
    if all_hold { Ok(()) } else { Err(Failure::silent(Exit::Conflict)) }
}

const REQUIREMENTS_MAX: usize = 100;

fn tell(topic: &str, requirement: &Requirement, unmet: Option<Unmet>, out: &mut Output) -> Result<()> {
    let expected = match requirement {
        Requirement::Revision { key, expected } => {
            let key = String::from_utf8_lossy(key).into_owned();
            match expected {
                ExpectedRevision::Exact(revision) => format!("key {key} has revision {revision}"),
                ExpectedRevision::NoStream => format!("key {key} has no record"),
                ExpectedRevision::Exists => format!("key {key} has a record"),
            }
        }
        Requirement::NextOffset(offset) => format!("the next offset is {offset}"),
        Requirement::NoMatch { after: Some(after), .. } => format!("no record behind offset {after} matches"),
        Requirement::NoMatch { after: None, .. } => "no record matches".into(),
    };
    let actual = match (requirement, unmet) {
        (_, None) => None,
        (Requirement::Revision { .. }, Some(unmet)) => Some(match unmet.actual {
            Some(actual) => format!("its last revision is {actual}"),
            None => "it never had one".into(),
        }),
        (Requirement::NextOffset(_), Some(unmet)) => unmet.actual.map(|actual| format!("it is {actual}")),
        (Requirement::NoMatch { .. }, Some(unmet)) => {
            unmet.offset.map(|offset| format!("the record at offset {offset} does"))
        }
    };
    if out.is_json {
        return out.json(&json!({
            "condition": expected,
            "holds": unmet.is_none(),
            "actual": unmet.and_then(|unmet| unmet.actual),
            "first_conflicting_offset": unmet.and_then(|unmet| unmet.offset),
        }));
    }
    let expected = Shown(&expected);
    match actual {
        None if unmet.is_none() => out.line(format_args!("holds: {expected}")),
        actual => {
            out.line(format_args!("fails: {expected}: {}", actual.unwrap_or_default()))?;
            out.line(format_args!("       {}", look_at(topic, unmet.and_then(|unmet| unmet.offset))))
        }
    }
}
