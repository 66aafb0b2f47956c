//! The configuration file: TOML, a setting on each line.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{Source, Values, known, nearest};
use crate::exit::{Failure, Result};

/// No configuration has more bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads the file into `values`.
pub(super) fn read(path: &Path, values: &mut Values) -> Result<()> {
    let name = path.display();
    let failed = |error: std::io::Error| Failure::file("read", &name, &error);
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("{name} has {bytes} bytes, the limit is {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let line_at = |position: usize| {
        text.as_bytes()[..position.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    };
    let table = DeTable::parse(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(span.start));
        Failure::usage(format!("{name}, line {line}: {}", error.message()))
    })?;
    for (key, value) in table.get_ref() {
        let line = line_at(key.span().start);
        let key = key.get_ref().as_ref();
        let Some(setting) = known(key) else {
            let near = nearest(key).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            return Err(Failure::usage(format!("{name}, line {line}: there is no setting {key:?}{near}")));
        };
        let value = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Integer(number) => number.as_str().replace('_', ""),
            _ => {
                let message =
                    format!("{name}, line {line}: {setting} takes a text, a number or true or false");
                return Err(Failure::usage(message));
            }
        };
        values.set(setting, value, Source::File(path.into(), line));
    }
    Ok(())
}
