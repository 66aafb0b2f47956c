//! The configuration of a server, by one path: defaults, then the file, then the environment, then flags; what comes
//! later wins. A setting has one name everywhere: `journal_bytes_max` in the file, `QUIPU_JOURNAL_BYTES_MAX` in the
//! environment, `--journal-bytes-max` on the command line.

mod file;
mod origins;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub(crate) use settings::{Flags, LogFormat, Settings};

use crate::exit::{Failure, Result};
use crate::output::Output;

/// What names of environment variables begin with.
const PREFIX: &str = "QUIPU_";
/// Variables that are no settings of a server.
const OTHER_VARIABLES: [&str; 2] = ["QUIPU_CONFIG", "QUIPU_SERVER"];
/// How alike two names must be for the one to be taken for a mistyping of the other.
const SIMILARITY_MIN: f64 = 0.75;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    /// The file, and the line in it.
    File(PathBuf, usize),
    /// The name of the variable.
    Environment(String),
    /// The name of the flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Every setting as text, with its source.
#[derive(Clone, Debug)]
pub(crate) struct Values(BTreeMap<&'static str, (String, Source)>);

impl Values {
    /// The default of each setting.
    fn defaults() -> Self {
        Self(
            settings::NAMES
                .iter()
                .map(|(name, default)| (*name, ((*default).to_owned(), Source::Default)))
                .collect(),
        )
    }

    fn set(&mut self, name: &'static str, value: String, source: Source) {
        self.0.insert(name, (value, source));
    }

    /// The value of a setting.
    ///
    /// # Errors
    /// Which value of which source is not what it must be.
    fn parse<T: FromStr<Err: fmt::Display>>(&self, name: &'static str) -> Result<T> {
        let (text, source) =
            self.0.get(name).ok_or_else(|| Failure::usage(format!("there is no setting {name}")))?;
        text.parse().map_err(|error| Failure::usage(format!("{name} is {text:?} ({source}): {error}")))
    }

    /// That the value of a setting cannot be, with its source.
    pub(crate) fn refuse(&self, name: &str, why: impl fmt::Display) -> Failure {
        Failure::usage(format!("{why} ({})", self.source(name)))
    }

    /// Where the value of a setting comes from.
    pub(crate) fn source(&self, name: &str) -> &Source {
        self.0.get(name).map_or(&Source::Default, |(_, source)| source)
    }
}

/// Reads everything that says how a server runs. `environment` gives the variables.
pub(crate) fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &Flags,
    out: &Output,
) -> Result<(Settings, Values)> {
    let mut values = Values::defaults();
    if let Some(path) = file {
        file::read(path, &mut values)?;
    }
    for (variable, value) in environment {
        let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
        let name = rest.to_ascii_lowercase();
        match known(&name) {
            Some(name) => values.set(name, value, Source::Environment(variable)),
            // No error: others, a container runtime for one, may put variables there.
            None if !OTHER_VARIABLES.contains(&&*variable) => {
                if let Some(near) = nearest(&name) {
                    let near = near.to_ascii_uppercase();
                    out.warn(format_args!("{variable} is not used; did you mean {PREFIX}{near}?"));
                }
            }
            None => {}
        }
    }
    for (name, value) in flags.given() {
        values.set(name, value.to_owned(), Source::Flag(format!("--{}", name.replace('_', "-"))));
    }
    Ok((Settings::from_values(&values)?, values))
}

/// Says with each flag that is a setting what it means, its default, and how the environment names it.
pub(crate) fn explain_settings(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let Some(name) = known(arg.get_id().as_str()) else { return arg };
        let of =
            |table: &[(&str, &'static str)]| table.iter().find(|row| row.0 == name).map_or("", |row| row.1);
        let (help, default) = (of(settings::HELP), of(settings::NAMES));
        arg.help(format!("{help} [default: {default}] [env: {PREFIX}{}]", name.to_ascii_uppercase()))
    })
}

fn known(name: &str) -> Option<&'static str> {
    settings::NAMES.iter().map(|(known, _)| *known).find(|known| *known == name)
}

/// The setting that was probably meant.
fn nearest(name: &str) -> Option<&'static str> {
    let likeness = |known: &&'static str| strsim::jaro_winkler(known, name);
    let known = settings::NAMES.iter().map(|(known, _)| *known);
    known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|near| likeness(near) >= SIMILARITY_MIN)
}

/// Prints the configuration in effect: a file that could be used as it is, with the source of each value behind it.
pub(crate) fn print(values: &Values, out: &mut Output) -> Result<()> {
    for (name, _) in settings::NAMES {
        let Some((text, source)) = values.0.get(name) else { continue };
        if out.is_json {
            out.json(&serde_json::json!({"name": name, "value": text, "source": source.to_string()}))?;
            continue;
        }
        let is_bare = text.parse::<u64>().is_ok() || matches!(&**text, "true" | "false");
        let value = if is_bare { text.clone() } else { toml::Value::String(text.clone()).to_string() };
        let dim = out.styles.dim;
        out.line(format_args!("{:<52} {dim}# {source}{dim:#}", format!("{name} = {value}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Colour;

    fn load_of(file: &str, environment: &[(&str, &str)], flags: Flags) -> Result<(Settings, Values)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quipu.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(Some(&path), environment, &flags, &Output::new(false, true, Colour::Never))
    }

    #[test]
    fn the_defaults_are_those_of_engine_and_server() {
        let (settings, values) = load_of("", &[], Flags::default()).unwrap();
        assert_eq!(settings.store(), quipu_storage::StoreSettings::default());
        let server = settings.server(&values).unwrap();
        assert_eq!(server, quipu_server::Config::default());
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_defaults() {
        let file = "reads_max = 3\ntail_bytes_max = \"1MiB\"\nconnections_max = 5\n";
        let flags = Flags { connections_max: Some("7".into()), ..Flags::default() };
        let environment = [("QUIPU_CONNECTIONS_MAX", "6"), ("QUIPU_TAIL_BYTES_MAX", "2MiB"), ("HOME", "x")];
        let (settings, values) = load_of(file, &environment, flags).unwrap();
        assert_eq!(settings.connections_max, 7);
        assert_eq!(settings.tail_bytes_max.0, 2 << 20);
        assert_eq!(settings.reads_max, 3);
        assert_eq!(*values.source("connections_max"), Source::Flag("--connections-max".into()));
        assert_eq!(*values.source("tail_bytes_max"), Source::Environment("QUIPU_TAIL_BYTES_MAX".into()));
        assert!(matches!(values.source("reads_max"), Source::File(_, 1)));
        assert_eq!(*values.source("listen"), Source::Default);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        for (file, says) in [
            ("listn = \"127.0.0.1:1\"", "did you mean \"listen\""),
            ("\n\nlisten = \"nowhere\"", "line 3"),
            ("reads_max = \"many\"", "reads_max"),
            ("reads_max = [1]", "reads_max"),
            ("reads_max = -1", "reads_max"),
            ("[store]\nreads_max = 1", "store"),
            ("listen = ", "line 1"),
            ("\ndata = \"\"", "line 2"),
            ("master_key = \"\"", "line 1"),
            ("web_origins = \"https://example.com/path\"", "line 1"),
            ("tail_bytes_max = \"99999999999999999999\"", "tail_bytes_max"),
        ] {
            let failure = load_of(file, &[], Flags::default()).unwrap_err();
            assert!(failure.message.contains(says), "{file}: {}", failure.message);
        }
        let failure = load_of("", &[("QUIPU_READS_MAX", "x")], Flags::default()).unwrap_err();
        assert!(failure.message.contains("QUIPU_READS_MAX"), "{}", failure.message);
    }
}
