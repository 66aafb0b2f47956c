//! `quipu explain`: whether conditions of an append would hold now, and what stands against them.

use clap::Args;
use quipu_client::ExpectedRevision;
use serde_json::{Value, json};

use crate::args::Global;
use crate::backend::Backend;
use crate::exit::{Exit, Failure, Result};
use crate::key::{Key, ShownKey};
use crate::output::{Output, Shown};
use crate::requirement::{REQUIREMENTS_MAX, Requirement, Unmet, look_at, parse_expected, parse_no_match};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu explain orders --revision order-7=3
  quipu explain orders --revision order-8=no-stream --next-offset 1500
  quipu explain seats --no-match 'tag=seat-12,type=claimed,after=200'
  quipu explain orders --fencing-token 7

Ends with 0 if all hold, with 4 if one fails, else with 6: one asks about records that were removed.")]
pub(crate) struct ExplainArgs {
    /// The topic.
    topic: String,
    /// The last revision of a key is a number, or the key has `no-stream`, or it `exists`; `any` always holds. May be given several times.
    #[arg(long = "revision", value_name = "KEY=REVISION", value_parser = parse_revision)]
    revisions: Vec<Requirement>,
    /// The topic's next offset is this.
    #[arg(long, value_name = "OFFSET")]
    next_offset: Option<u64>,
    /// No record behind offset `after` (without it, none at all) has all of these: `tag=`, `type=`, `key=`; a name may come
    /// several times: of tags all, of types and keys any. May be given several times.
    #[arg(long = "no-match", value_name = "NAME=VALUE,...", value_parser = parse_no_match)]
    no_matches: Vec<Requirement>,
    /// The topic has no higher fencing token.
    #[arg(long, value_name = "N")]
    fencing_token: Option<u64>,
}

fn parse_revision(text: &str) -> Result<Requirement, String> {
    // The key may have any character, what is expected none of these.
    let (key, expected) =
        text.rsplit_once('=').ok_or("write it as KEY=REVISION, KEY=no-stream, KEY=exists or KEY=any")?;
    Ok(Requirement::Revision { key: key.parse::<Key>()?.0.into(), expected: parse_expected(expected)? })
}

/// What an append would meet.
enum Verdict {
    Holds,
    /// Something stands against it.
    Fails {
        unmet: Unmet,
        /// What there is instead.
        instead: Option<String>,
        /// How to look at it.
        look: String,
    },
    /// It cannot be told, so an append is refused.
    Refused {
        why: String,
        hint: String,
    },
}

pub(crate) fn run(global: &Global, args: ExplainArgs, out: &mut Output) -> Result<()> {
    let ExplainArgs { topic, revisions, next_offset, no_matches, fencing_token } = args;
    let next_offset = next_offset.map(Requirement::NextOffset);
    let requirements: Vec<_> = revisions.into_iter().chain(next_offset).chain(no_matches).collect();
    if requirements.is_empty() && fencing_token.is_none() {
        let message = "name a condition: --revision, --next-offset, --no-match or --fencing-token";
        return Err(Failure::usage(message));
    }
    if requirements.len() > REQUIREMENTS_MAX {
        return Err(Failure::usage(format!("an append has at most {REQUIREMENTS_MAX} conditions")));
    }
    let backend = global.backend()?;
    let (mut fails, mut refused) = (false, false);
    let mut tell = |expected: &str, verdict: &Verdict| {
        fails |= matches!(verdict, Verdict::Fails { .. });
        refused |= matches!(verdict, Verdict::Refused { .. });
        tell(expected, verdict, out)
    };
    if let Some(token) = fencing_token {
        tell(&format!("the fencing token is not above {token}"), &fenced(&*backend, &topic, token)?)?;
    }
    for requirement in &requirements {
        // One by one: an answer about many has no room for all.
        tell(&expectation(requirement), &judge(&*backend, &topic, requirement)?)?;
    }
    backend.close()?;
    match (fails, refused) {
        (false, false) => Ok(()),
        (true, _) => Err(Failure::silent(Exit::Conflict)),
        (false, true) => Err(Failure::silent(Exit::OutOfRange)),
    }
}

fn expectation(requirement: &Requirement) -> String {
    match requirement {
        Requirement::Revision { key, expected } => {
            let key = ShownKey(key);
            match expected {
                ExpectedRevision::Exact(revision) => format!("key {key} has revision {revision}"),
                ExpectedRevision::NoStream => format!("key {key} has no record"),
                ExpectedRevision::Exists => format!("key {key} has a record"),
                ExpectedRevision::Any => format!("key {key} has any record or none"),
            }
        }
        Requirement::NextOffset(offset) => format!("the next offset is {offset}"),
        Requirement::NoMatch { after: Some(after), .. } => format!("no record behind offset {after} matches"),
        Requirement::NoMatch { after: None, .. } => "no record matches".into(),
    }
}

fn judge(backend: &dyn Backend, topic: &str, requirement: &Requirement) -> Result<Verdict> {
    let unmet = match backend.unmet(topic, std::slice::from_ref(requirement)) {
        Ok(unmet) => unmet.into_iter().next(),
        Err(failure) if failure.reason == "CONDITION_TRIMMED" => {
            let before = backend.topic(topic)?.log_start_offset.saturating_sub(1);
            let hint = format!("what was removed may have matched; `after={before}` asks about what is left");
            return Ok(Verdict::Refused { why: failure.message, hint });
        }
        Err(failure) => return Err(failure),
    };
    let Some(unmet) = unmet else { return Ok(Verdict::Holds) };
    let instead = match (requirement, unmet.actual) {
        (Requirement::Revision { .. }, Some(actual)) => Some(format!("its last revision is {actual}")),
        (Requirement::Revision { .. }, None) => Some("it never had one".into()),
        (Requirement::NextOffset(_), actual) => actual.map(|actual| format!("it is {actual}")),
        (Requirement::NoMatch { .. }, _) => {
            unmet.offset.map(|offset| format!("the record at offset {offset} does"))
        }
    };
    Ok(Verdict::Fails { unmet, instead, look: look_at(topic, unmet.offset) })
}

fn fenced(backend: &dyn Backend, topic: &str, token: u64) -> Result<Verdict> {
    let current = backend.topic(topic)?.fencing_token;
    if current <= token {
        return Ok(Verdict::Holds);
    }
    let look = "whoever has it has taken the topic over: what comes from this writer is refused".into();
    let unmet = Unmet { number: 0, actual: Some(current), offset: None };
    Ok(Verdict::Fails { unmet, instead: Some(format!("it is {current}")), look })
}

fn tell(expected: &str, verdict: &Verdict, out: &mut Output) -> Result<()> {
    if out.is_json {
        let (unmet, why) = match verdict {
            Verdict::Holds => (None, None),
            Verdict::Fails { unmet, .. } => (Some(unmet), None),
            Verdict::Refused { why, .. } => (None, Some(why)),
        };
        let holds = if why.is_some() { Value::Null } else { unmet.is_none().into() };
        return out.json(&json!({
            "condition": expected,
            "holds": holds,
            "actual": unmet.and_then(|unmet| unmet.actual),
            "first_conflicting_offset": unmet.and_then(|unmet| unmet.offset),
            "refused": why,
        }));
    }
    let expected = Shown(expected);
    match verdict {
        Verdict::Holds => out.line(format_args!("holds: {expected}")),
        Verdict::Fails { instead, look, .. } => {
            out.line(format_args!("fails: {expected}: {}", instead.as_deref().unwrap_or_default()))?;
            out.line(format_args!("       {look}"))
        }
        Verdict::Refused { why, hint } => {
            out.line(format_args!("refused: {expected}: {}", Shown(why)))?;
            out.line(format_args!("       {hint}"))
        }
    }
}
