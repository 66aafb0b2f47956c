//! `quipu demo`: the main job within a minute, in a temporary directory: publish, replay, follow, kill the server, find
//! everything again. Each step is a command of this program, which it shows and runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use clap::Args;
use serde_json::json;

use crate::exit::{Exit, Failure, Result};
use crate::output::{Output, Shown};

/// Events of a small shop.
const EVENTS: &str = include_str!("demo.ndjson");

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu demo
  quipu demo --keep        # leaves the store for you to play with
  quipu demo --json | jq -r .command")]
pub(crate) struct DemoArgs {
    /// Leave the store where it is.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &DemoArgs, out: &mut Output) -> Result<()> {
    let program = std::env::current_exe().map_err(|error| Failure::file("find", "this program", &error))?;
    let dir = Dir::new(args.keep)?;
    let mut demo = Demo { program, dir: dir.path.clone(), url: String::new(), out };
    demo.play()?;
    if args.keep {
        demo.keep()?;
    }
    if !demo.out.is_json {
        demo.out.line("")?;
    }
    demo.say("To go on: `quipu serve` in one terminal, `quipu publish` and `quipu tail -f` in others; `quipu --help` has the rest.")
}

/// A new directory, removed at the end.
struct Dir {
    path: PathBuf,
    is_kept: bool,
}

impl Dir {
    fn new(is_kept: bool) -> Result<Self> {
        let parent = std::env::temp_dir();
        for number in 0..1000 {
            let path = parent.join(format!("quipu-demo-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, is_kept }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Failure::file("create", path.display(), &error)),
            }
        }
        Err(Failure::new(Exit::Failure, "IO", format!("there is no free name in {}", parent.display())))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if !self.is_kept {
            // What is left lies in the temporary directory.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

struct Demo<'a> {
    program: PathBuf,
    dir: PathBuf,
    url: String,
    out: &'a mut Output,
}

/// A command that runs on; killed when the demonstration ends.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo<'_> {
    fn play(&mut self) -> Result<()> {
        let events = self.dir.join("orders.ndjson");
        std::fs::write(&events, EVENTS).map_err(|error| Failure::file("write", events.display(), &error))?;
        let store = self.dir.join("store");

        self.say("A server, with its store in a temporary directory:")?;
        let mut server = self.serve(&store)?;

        self.say("Publish the lines of a file; key and type are taken from fields of the JSON. When the command ends,\nthey are on the disk:")?;
        self.show(&[
            "publish",
            "orders",
            "--create",
            "--key-field",
            "order",
            "--type-field",
            "event",
            "orders.ndjson",
        ])?;

        self.say("Replay one order, from the beginning:")?;
        self.show(&["read", "orders", "--key", "order-7"])?;

        self.say("Follow the topic; whatever is published from now on is shown at once:")?;
        let mut tail = self.start(&["tail", "-f", "orders", "-n", "1", "--template", "%o %k %y\\n"])?;
        self.echo(&mut tail)?;
        self.say("  ... while another terminal publishes:")?;
        self.feed(&["publish", "orders", "--key", "order-9", "--type", "placed"], "{\"item\":\"lamp\"}\n")?;
        self.echo(&mut tail)?;
        drop(tail);

        self.say("Kill the server, as hard as it can be killed, and start it again:")?;
        self.command_line("kill -9 SERVER")?;
        server.child.kill().map_err(|error| Failure::file("kill", "the server", &error))?;
        let _ = server.child.wait();
        drop(server);
        let server = self.serve(&store)?;

        self.say("Nothing that was acknowledged is gone:")?;
        self.show(&["read", "orders", "--from", "-3"])?;
        self.show(&["topics", "list"])?;
        drop(server);

        self.say("And without a server, from the directory itself:")?;
        self.show(&["verify", "--data", "store"])
    }

    /// What comes next, and why.
    fn say(&mut self, text: &str) -> Result<()> {
        if self.out.is_json {
            self.out.json(&json!({"step": text.replace('\n', " ")}))?;
        } else {
            let strong = self.out.styles.strong;
            self.out.line(format_args!("\n{strong}{text}{strong:#}"))?;
        }
        self.out.flush()
    }

    fn command_line(&mut self, line: &str) -> Result<()> {
        if self.out.is_json {
            self.out.json(&json!({"command": line}))?;
        } else {
            let key = self.out.styles.key;
            self.out.line(format_args!("{key}$ {line}{key:#}"))?;
        }
        self.out.flush()
    }

    /// What a command printed.
    fn output(&mut self, bytes: &[u8]) -> Result<()> {
        if self.out.is_json {
            for line in String::from_utf8_lossy(bytes).lines() {
                self.out.json(&json!({"output": line}))?;
            }
        } else {
            self.out.write_all(bytes)?;
        }
        self.out.flush()
    }

    /// Where the store is for whoever goes on with it.
    fn keep(&mut self) -> Result<()> {
        let dir = self.dir.display().to_string();
        if self.out.is_json {
            self.out.json(&json!({"kept": dir}))
        } else {
            self.say(&format!("The store is in {dir}"))
        }
    }

    /// What would be typed.
    fn announce(&mut self, args: &[&str]) -> Result<()> {
        let quoted: Vec<_> = args
            .iter()
            .map(|arg| if arg.contains(['%', ' ', '{']) { format!("'{arg}'") } else { (*arg).to_owned() })
            .collect();
        self.command_line(&format!("quipu {}", quoted.join(" ")))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(&self.dir).env_remove("QUIPU_CONFIG");
        if !self.url.is_empty() && !args.contains(&"--data") {
            command.env("QUIPU_SERVER", &self.url);
        }
        if self.out.styles.strong != anstyle::Style::new() {
            command.args(["--color", "always"]);
        }
        command
    }

    fn show(&mut self, args: &[&str]) -> Result<()> {
        self.feed(args, "")
    }

    /// Shows a command, gives it `input`, and shows what it prints.
    fn feed(&mut self, args: &[&str], input: &str) -> Result<()> {
        if input.is_empty() {
            self.announce(args)?;
        } else {
            self.command_line(&format!("echo '{}' | quipu {}", input.trim_end(), args.join(" ")))?;
        }
        let mut command = self.command(args);
        let failed = |error: std::io::Error| Failure::file("run", "a command of the demonstration", &error);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).map_err(failed)?;
        }
        let output = child.wait_with_output().map_err(failed)?;
        self.output(&output.stdout)?;
        self.output(&output.stderr)?;
        if output.status.success() {
            return Ok(());
        }
        let message = format!("the demonstration ended at `quipu {}`", args.join(" "));
        Err(Failure::new(Exit::Failure, "INTERNAL", message))
    }

    /// Starts a command that runs on.
    fn start(&mut self, args: &[&str]) -> Result<Running> {
        self.announce(args)?;
        self.spawn(self.command(args))
    }

    fn spawn(&self, mut command: Command) -> Result<Running> {
        let failed = |error: std::io::Error| Failure::file("run", "a command of the demonstration", &error);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let Some(stdout) = child.stdout.take() else {
            return Err(Failure::new(Exit::Failure, "INTERNAL", "a command has no output"));
        };
        Ok(Running { child, stdout: BufReader::new(stdout) })
    }

    /// Shows the next line that a running command prints.
    fn echo(&mut self, running: &mut Running) -> Result<String> {
        let mut line = String::new();
        let read = running.stdout.by_ref().take(1 << 20).read_line(&mut line);
        read.map_err(|error| Failure::file("read", "the output of a command", &error))?;
        if line.is_empty() {
            return Err(Failure::new(
                Exit::Failure,
                "INTERNAL",
                "a command of the demonstration ended early",
            ));
        }
        self.output(format!("{}\n", Shown(line.trim_end())).as_bytes())?;
        Ok(line)
    }

    /// Starts a server on a port that is free.
    fn serve(&mut self, store: &Path) -> Result<Running> {
        self.url.clear();
        self.command_line("quipu serve --data store")?;
        let mut command = self.command(&[]);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(store);
        for (name, _) in std::env::vars_os() {
            // A demonstration is no place for somebody's settings.
            if name.to_string_lossy().starts_with("QUIPU_") {
                command.env_remove(name);
            }
        }
        let mut server = self.spawn(command)?;
        let line = self.echo(&mut server)?;
        let url = line.trim().strip_prefix("listening on ");
        self.url = url
            .ok_or_else(|| Failure::new(Exit::Failure, "INTERNAL", "the server did not start"))?
            .to_owned();
        Ok(server)
    }
}
