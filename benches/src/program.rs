//! The real `quipu`, which this program serves and publishes with.
//!
//! Cargo has no way to say that one program needs another, so it is asked to build it; where nothing has changed, that
//! takes a moment.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Builds it, beside this program and with its profile.
pub fn build() -> Result<()> {
    let beside = directory()?;
    let profile = match beside.file_name().and_then(|name| name.to_str()).context("a profile's directory")? {
        "debug" => "dev",
        profile => profile,
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo has said to us about ourselves would have build scripts run again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|about_us| name.starts_with(about_us)) {
            cargo.env_remove(&*name);
        }
    }
    cargo
        .args(["build", "--package", "quipu", "--bin", "quipu", "--profile", profile])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .arg("--target-dir")
        .arg(beside.parent().context("a target directory")?);
    let status = cargo.status().with_context(|| format!("run {}", cargo.get_program().display()))?;
    ensure!(status.success(), "cargo could not build quipu: {status}");
    Ok(())
}

/// To run it, with nothing said by the environment.
pub fn command() -> Result<Command> {
    let mut command = Command::new(directory()?.join("quipu"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUIPU_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

fn directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    Ok(program.parent().context("find this program's directory")?.to_owned())
}
