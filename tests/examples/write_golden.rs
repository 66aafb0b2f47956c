//! Writes the golden files of a new format version: `cargo run -p quipu-tests --example write_golden`.
//!
//! Files that are there are never changed: what a version has written stays as it was written.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use quipu_storage::format::FORMAT_VERSION;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("format/v{FORMAT_VERSION}"));
    for store in quipu_tests::golden::all() {
        for (path, bytes) in store.files {
            let path = root.join(store.name).join(path);
            fs::create_dir_all(path.parent().unwrap_or(&root))?;
            match fs::File::create_new(path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                file => file?.write_all(&bytes)?,
            }
        }
    }
    Ok(())
}
