#!/usr/bin/env bash
# The tests of the engine that map memory, and the kill test, under AddressSanitizer: maps are where it could find
# something.
# Nightly flags on the stable compiler, in a target directory of their own. QUIPU_KILLS sets the number of kills (40).
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS='-Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer'
export CARGO_TARGET_DIR=${ASAN_TARGET_DIR:-${CARGO_TARGET_DIR:-target}/asan}
export QUIPU_KILLS=${QUIPU_KILLS:-40}
# The store that a test leaves behind for the next process is leaked on purpose.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
target=$(rustc -vV | sed -n 's/^host: //p')
cargo test --quiet --target $target --package quipu-storage --lib --test store --test log --test read_only
cargo test --quiet --target $target --package quipu-tests --lib --test kills --test crash_regressions
