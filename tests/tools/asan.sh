#!/usr/bin/env bash
# The tests of the engine that map memory, crash it or run it from several threads, under AddressSanitizer: maps and their
# lifetimes are where it could find something. Of the long ones a part: what it costs shall stay below six minutes on two
# processors. Each variable that says how much can be set from outside.
# Nightly flags on the stable compiler, in a target directory of their own.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS='-Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer'
export CARGO_TARGET_DIR=${ASAN_TARGET_DIR:-${CARGO_TARGET_DIR:-target}/asan}
export QUIPU_KILLS=${QUIPU_KILLS:-40}
export QUIPU_MODEL_SEQUENCES=${QUIPU_MODEL_SEQUENCES:-300}
export QUIPU_CRASH_SHARE=${QUIPU_CRASH_SHARE:-24} QUIPU_SECOND_EVERY=${QUIPU_SECOND_EVERY:-16}
export QUIPU_COMPACTION_EVERY=${QUIPU_COMPACTION_EVERY:-7}
export QUIPU_LOG_PART=${QUIPU_LOG_PART:-1}
# The store that a test leaves behind for the next process is leaked on purpose.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
target=$(rustc -vV | sed -n 's/^host: //p')
cargo test --quiet --target $target --package quipu-storage --lib --test store --test log \
    --test read_only --test compaction --test damage --test verify --test threads
cargo test --quiet --target $target --package quipu-tests --lib --test kills --test crash_regressions \
    --test crash_points --test compaction_crash --test log_crash --test model --test disk_conformance
