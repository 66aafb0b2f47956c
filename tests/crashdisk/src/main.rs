//! The `crashdisk` command; see the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    quipu_crashdisk::run(std::env::args().skip(1).collect())
}
