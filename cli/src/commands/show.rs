//! What `read` and `tail` share: filters, formats, and the loop that prints.

use clap::Args;
use quipu_proto::v1 as pb;
use serde_json::json;

use super::publish::parse_header;
use crate::backend::{Damage, Reader, Step};
use crate::exit::{Exit, Failure, Result};
use crate::format::Format;
use crate::key::Key;
use crate::output::{Output, Shown};
use crate::template::Template;

#[derive(Debug, Args)]
#[command(next_help_heading = "Which records")]
pub(crate) struct FilterArgs {
    /// Only records of this key, written as it is shown: `\\` for a backslash, `\xHH` for a byte. May be given several times:
    /// any of them.
    #[arg(short, long = "key", value_name = "KEY")]
    keys: Vec<Key>,
    /// Only keys that begin so. May be given several times.
    #[arg(long = "key-prefix", value_name = "PREFIX")]
    key_prefixes: Vec<Key>,
    /// Only records of this type. May be given several times.
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only records with this tag; `a,b`: with both. May be given several times: any of them.
    #[arg(long = "tag", value_name = "TAG[,TAG]")]
    tags: Vec<String>,
    /// Only records with this header. May be given several times: all of them.
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// Also records that are not synced yet. A power cut may take them back.
    #[arg(long)]
    pub(crate) written: bool,
}

impl FilterArgs {
    pub(crate) fn filter(&self) -> pb::Filter {
        let bytes = |keys: &[Key]| keys.iter().map(|key| key.0.clone()).collect();
        pb::Filter {
            keys: bytes(&self.keys),
            key_prefixes: bytes(&self.key_prefixes),
            types: self.types.clone(),
            tags: self
                .tags
                .iter()
                .map(|tags| pb::filter::TagSet { all: tags.split(',').map(str::to_owned).collect() })
                .collect(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| pb::Header { name: name.clone(), value: value.clone().into() })
                .collect(),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "How to print them")]
pub(crate) struct FormatArgs {
    /// Payloads as they are, each with the delimiter behind it. Tombstones are left out.
    #[arg(long, conflicts_with_all = ["json", "binary", "template"])]
    raw: bool,
    /// What --raw puts behind each payload; escapes as in templates.
    #[arg(long, value_name = "TEXT", default_value = "\\n", requires = "raw")]
    delimiter: String,
    /// Payloads behind their length, four bytes, big-endian: what `publish --format binary` reads.
    #[arg(long, conflicts_with_all = ["json", "template"])]
    binary: bool,
    /// By a template: %t topic, %o offset, %r revision, %T %d time, %k %K key, %v %V payload (content, length), %y type, %c content
    /// type, %i id, %g tags, %h headers; {hex}, {base64}, {json} behind one encodes it; \n \t \0 \xHH.
    #[arg(short = 'F', long, value_name = "TEMPLATE", conflicts_with = "json")]
    pub(crate) template: Option<Template>,
}

impl FormatArgs {
    pub(crate) fn format(&self, is_json: bool) -> Result<Format> {
        if let Some(template) = &self.template {
            return Ok(Format::Template(template.clone()));
        }
        if self.raw {
            let delimiter = Template::literal(&self.delimiter).map_err(Failure::usage)?;
            return Ok(Format::Raw(delimiter));
        }
        Ok(match (self.binary, is_json) {
            (true, _) => Format::Binary,
            (false, true) => Format::Json,
            (false, false) => Format::Readable,
        })
    }
}

/// Says that there are records which are not shown, because nobody knows them to be synced: what a killed process left, where
/// the file `live` did not tell. Whoever opens the store for writing keeps them.
pub(crate) fn warn_of_unsynced(topic: &pb::Topic, out: &Output) {
    let pb::Topic { high_watermark, log_end_offset, .. } = *topic;
    if high_watermark < log_end_offset {
        out.warn(format_args!(
            "records {high_watermark} to {} of {} are not known to be synced and are left out",
            log_end_offset - 1,
            Shown(&topic.name),
        ));
    }
}

/// Prints everything that the reader finds, to its end.
pub(crate) fn print(
    topic: &str,
    mut reader: Box<dyn Reader + '_>,
    format: &Format,
    out: &mut Output,
) -> Result<()> {
    let mut is_damaged = false;
    loop {
        match reader.next()? {
            Step::Records(items) => {
                for item in &items {
                    format.write(out, topic, item)?;
                }
            }
            Step::Gap { from, to, reason } => {
                out.flush()?;
                let text = format!("offsets {from} to {} are gone: {reason}", to.saturating_sub(1));
                out.event("gap", json!({"from": from, "to": to, "reason": reason}), &text);
            }
            Step::Damaged(Damage { from, to, message }) => {
                out.flush()?;
                out.problem("damaged", json!({"from": from, "to": to, "message": message}), &message);
                is_damaged = true;
            }
            Step::DamagedEnd { message } => {
                out.flush()?;
                out.problem("damaged", json!({"message": message}), &message);
                is_damaged = true;
            }
            Step::Resumed { next_offset } => {
                let text = format!("connected again, at offset {next_offset}");
                out.event("resumed", json!({"next_offset": next_offset}), &text);
            }
            Step::Idle => out.flush()?,
            Step::End => break,
        }
    }
    out.flush()?;
    // It has been named above; what could be read was printed.
    if is_damaged { Err(Failure::silent(Exit::Damaged)) } else { Ok(()) }
}
