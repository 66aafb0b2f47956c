//! Where a command writes: data to standard output, locked and buffered; notes to standard error.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StderrLock, StdoutLock, Write};

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::exit::{Failure, Result};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 64 << 10;

/// How keys, types and what stands around them look on a terminal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Styles {
    pub(crate) dim: Style,
    pub(crate) key: Style,
    pub(crate) kind: Style,
    pub(crate) strong: Style,
    pub(crate) good: Style,
    pub(crate) bad: Style,
}

impl Styles {
    fn new(is_coloured: bool) -> Self {
        if !is_coloured {
            return Self::default();
        }
        let of = |colour: AnsiColor| colour.on_default();
        Self {
            dim: Style::new().dimmed(),
            key: of(AnsiColor::Cyan),
            kind: of(AnsiColor::Yellow),
            strong: Style::new().bold(),
            good: of(AnsiColor::Green),
            bad: of(AnsiColor::Red),
        }
    }
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Colour {
    /// Whether what goes to `stream` is coloured.
    fn is_on(self, stream: &impl anstream::stream::RawStream) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            // Looks at NO_COLOR, CLICOLOR, CLICOLOR_FORCE, TERM, and whether it is a terminal.
            Self::Auto => anstream::AutoStream::choice(stream) != anstream::ColorChoice::Never,
        }
    }
}

impl From<Colour> for clap::ColorChoice {
    fn from(colour: Colour) -> Self {
        match colour {
            Colour::Auto => Self::Auto,
            Colour::Always => Self::Always,
            Colour::Never => Self::Never,
        }
    }
}

/// The output of a command.
pub(crate) struct Output {
    writer: BufWriter<StdoutLock<'static>>,
    pub(crate) styles: Styles,
    /// Whether a machine reads it.
    pub(crate) is_json: bool,
    is_quiet: bool,
}

impl Output {
    /// On standard output.
    pub(crate) fn new(is_json: bool, is_quiet: bool, colour: Colour) -> Self {
        let stdout = io::stdout();
        let is_coloured = colour.is_on(&stdout);
        Self {
            writer: BufWriter::with_capacity(BUFFER_BYTES, stdout.lock()),
            styles: Styles::new(is_coloured),
            is_json,
            is_quiet,
        }
    }

    /// One JSON value on a line of its own.
    pub(crate) fn json(&mut self, value: &Value) -> Result<()> {
        serde_json::to_writer(&mut self.writer, value).map_err(io::Error::from)?;
        Ok(self.writer.write_all(b"\n")?)
    }

    /// A line for a person.
    pub(crate) fn line(&mut self, line: impl fmt::Display) -> Result<()> {
        Ok(writeln!(self.writer, "{line}")?)
    }

    /// Hands everything on to whoever reads.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.writer.flush()?)
    }

    /// A note, on standard error. Whether it can be written does not matter.
    pub(crate) fn note(&self, note: impl fmt::Display) {
        if !self.is_quiet {
            let text = note.to_string();
            self.aside("note", || Value::from(text.as_str()), &text);
        }
    }

    /// The same for what must be seen also when quiet.
    pub(crate) fn warn(&self, warning: impl fmt::Display) {
        let text = warning.to_string();
        self.aside("warning", || Value::from(text.as_str()), &format!("quipu: {text}"));
    }

    /// A note with parts for machines.
    pub(crate) fn event(&self, name: &str, parts: Value, text: &str) {
        if !self.is_quiet {
            self.aside(name, || parts, &Shown(text).to_string());
        }
    }

    /// A warning with parts for machines.
    pub(crate) fn problem(&self, name: &str, parts: Value, text: &str) {
        self.aside(name, || parts, &format!("quipu: {}", Shown(text)));
    }

    fn aside(&self, name: &str, parts: impl FnOnce() -> Value, text: &str) {
        let mut stderr = io::stderr().lock();
        let _ = if self.is_json {
            writeln!(stderr, "{}", serde_json::json!({ name: parts() }))
        } else {
            writeln!(stderr, "{text}")
        };
    }

    /// Whether to draw progress: somebody looks, and wants to see it.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.is_quiet && !self.is_json && io::stderr().is_terminal()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Says on standard error why the command ends.
pub(crate) fn tell(failure: &Failure, is_json: bool, colour: Colour) {
    if failure.is_silent() {
        return;
    }
    // Nobody to tell that telling failed.
    let _ = try_tell(&mut io::stderr().lock(), failure, is_json, colour);
}

fn try_tell(stderr: &mut StderrLock<'_>, failure: &Failure, is_json: bool, colour: Colour) -> io::Result<()> {
    if is_json {
        let value = serde_json::json!({"error": {
            "reason": failure.reason,
            "message": failure.message,
            "hint": failure.hint,
            "exit_code": failure.exit.code(),
        }});
        return writeln!(stderr, "{value}");
    }
    let bad = Styles::new(colour.is_on(&*stderr)).bad;
    // A message may carry what came from a file or a server.
    writeln!(stderr, "quipu: {bad}{}{bad:#}", Shown(&failure.message))?;
    if let Some(hint) = &failure.hint {
        writeln!(stderr, "       {}", Shown(hint))?;
    }
    Ok(())
}

/// Text with everything escaped that could move a terminal's cursor or change its colours.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in self.0.chars() {
            match c {
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_control() || is_deceptive(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Whether a character makes text look like other text: it changes its direction or cannot be seen.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{2028}' | '\u{2029}')
}

/// Bytes as text: UTF-8 as in [`Shown`], anything else as `\xHH`.
pub(crate) struct ShownBytes<'a>(pub(crate) &'a [u8]);

impl fmt::Display for ShownBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            write!(f, "{}", Shown(chunk.valid()))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_is_escaped() {
        let hostile = b"a\x1b[2Jb\r\nc\xff\xe2\x80\xae\xc2\x9bd";
        assert_eq!(ShownBytes(hostile).to_string(), "a\\u{1b}[2Jb\\r\\nc\\xff\\u{202e}\\u{9b}d");
        assert_eq!(ShownBytes("grün 日本".as_bytes()).to_string(), "grün 日本");
    }
}
