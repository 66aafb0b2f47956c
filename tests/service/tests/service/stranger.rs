//! A client in another language, made from the proto files alone: `tests/tools/stranger.py`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::process::Server;

/// Runs a command; `None` if it cannot be run or fails.
fn run(command: &mut Command) -> Option<Output> {
    command.output().ok().filter(|output| output.status.success())
}

/// A Python with grpcio, in an environment below the target directory that is made once.
fn python(target: &Path) -> Option<PathBuf> {
    let home = target.join("stranger-venv");
    let python = home.join("bin/python");
    let has_grpc = || run(Command::new(&python).args(["-c", "import grpc_tools.protoc"])).is_some();
    if !has_grpc() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        let pip =
            ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "grpcio", "grpcio-tools"];
        run(Command::new(&python).args(pip))?;
    }
    has_grpc().then_some(python)
}

#[test]
fn a_stranger_appends_reads_and_follows_with_nothing_but_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let Some(python) = python(target) else {
        // CI sets this, so that nobody is told that it was tested when it was not.
        assert!(
            std::env::var_os("QUIPU_NO_SKIP").is_none(),
            "QUIPU_NO_SKIP is set, but there is no python3 that can install grpcio"
        );
        eprintln!("skipped: no python3 that can install grpcio");
        return;
    };
    let server = Server::start();
    let generated = tempfile::tempdir().unwrap();
    let output = Command::new(python)
        .arg(root.join("tests/tools/stranger.py"))
        .arg(root.join("proto"))
        .arg(generated.path())
        .arg(server.address.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("followed 150 records"), "{said}");
}
