//! `quipu erase`: destroys erasure keys, and so every payload that was sealed with them, for good.

use clap::Args;
use serde_json::json;

use crate::args::Global;
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::units::counted;

/// Keys that are destroyed at once: as many as a request may have.
const KEYS_AT_ONCE: usize = 500;

#[derive(Debug, Args)]
#[command(
    after_help = "Every payload that was sealed with one of the keys is unreadable from then on, in the store and in every backup of it.
Offsets, keys, types, tags and headers stay. `topics compact --erased-only` frees the room.

Examples:
  quipu erase customer-17 --yes
  quipu erase customer-17 customer-18 --yes --data /var/lib/quipu --master-key /etc/quipu/master.key"
)]
pub(crate) struct EraseArgs {
    /// The erasure keys.
    #[arg(required = true, value_name = "KEY")]
    erasure_keys: Vec<String>,
    /// Really do it: there is no way back.
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(global: &Global, args: &EraseArgs, out: &mut Output) -> Result<()> {
    if !args.yes {
        let keys = counted(args.erasure_keys.len() as u64, "key");
        let message =
            format!("this destroys {keys} and all that was sealed with them, for good; nothing was done");
        return Err(Failure::usage(message).hint("say --yes if that is what you want"));
    }
    let backend = global.backend()?;
    let (mut destroyed, mut destroyed_before, mut is_overwritten) = (0, 0, true);
    let mut outcome = Ok(());
    for some in args.erasure_keys.chunks(KEYS_AT_ONCE) {
        match backend.erase_keys(some) {
            Ok(done) => {
                destroyed += done.destroyed;
                destroyed_before += done.destroyed_before;
                is_overwritten &= done.old_file_overwritten;
            }
            Err(failure) => {
                outcome = Err(failure);
                break;
            }
        }
    }
    // What is destroyed is told also if the rest is not.
    let done = destroyed + destroyed_before;
    if let Err(failure) = outcome {
        if done == 0 {
            return Err(failure);
        }
        report(destroyed, destroyed_before, is_overwritten, out)?;
        let go_on = format!(
            "the first {done} of {} are destroyed; the same command goes on with the others",
            counted(args.erasure_keys.len() as u64, "key")
        );
        let go_on = failure.hint.as_ref().map_or(go_on.clone(), |hint| format!("{hint}; {go_on}"));
        return Err(failure.hint(go_on));
    }
    report(destroyed, destroyed_before, is_overwritten, out)?;
    backend.close()
}

fn report(destroyed: u64, destroyed_before: u64, is_overwritten: bool, out: &mut Output) -> Result<()> {
    if !is_overwritten {
        out.warn(format_args!(
            "the replaced master key could not be overwritten: the raw disk may still have it"
        ));
    }
    if out.is_json {
        out.json(&json!({
            "destroyed": destroyed,
            "destroyed_before": destroyed_before,
            "old_file_overwritten": is_overwritten,
        }))?;
    } else {
        let before = if destroyed_before > 0 {
            format!("; {destroyed_before} had been before")
        } else {
            String::new()
        };
        out.line(format_args!("destroyed {}{before}", counted(destroyed, "key")))?;
    }
    Ok(())
}
