//! A disk that fails on command fails the program that uses it, and the kernel reports it as we rely on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Bench, TINYLOG};

#[test]
fn the_first_sync_after_a_failure_reports_it() {
    let Some(said) = Bench::new().run("disk-errors", &["--fs=ext4:24"], &[]) else { return };
    assert_eq!(said.code, Some(0), "{said:?}");
    // And this is why a failed sync has to be final: the next one says that all is well, and the data is gone.
    assert!(said.out.contains("fdatasync again, the disk healed: ok"), "{said:?}");
    assert!(said.out.contains("once the page cache is dropped: AAAA"), "{said:?}");
}

#[test]
fn a_program_makes_its_disk_fail_and_heals_it() {
    let script = "echo flush-eio 0 1 > $1 || exit 10
        $0 write $2/log 5 && exit 11
        test \"$(cat $1)\" = 'hits 1' || exit 12
        echo nonsense > $1 && exit 13
        exit 42";
    let said = Bench::new().run("mount", &["--fs=ext4:24"], &["sh", "-c", script, TINYLOG, "{ctl}", "{mnt}"]);
    let Some(said) = said else { return };
    assert_eq!(said.code, Some(42), "{said:?}");
}

#[test]
fn a_disk_that_fails_reads_fails_them_only_there_and_is_slow_when_told() {
    let script = "dd if=/dev/urandom of=$1/file bs=64k count=4 conv=fsync && echo read-eio > $0 || exit 10
        dd if=$1/file of=/dev/null bs=64k iflag=direct && exit 11
        echo clear > $0
        dd if=$1/file of=/dev/null bs=64k iflag=direct || exit 12
        echo delay-us 200000 > $0; begin=$(date +%s%N)
        dd if=/dev/zero of=$1/slow bs=4k count=1 conv=fsync || exit 13
        test $(($(date +%s%N) - begin)) -gt 200000000 || exit 14";
    let Some(said) = Bench::new().run("mount", &[], &["sh", "-c", script, "{ctl}", "{mnt}"]) else { return };
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_program_that_dies_of_a_signal_is_passed_on_like_a_shell_would() {
    let Some(said) = Bench::new().run("mount", &[], &["sh", "-c", "kill -BUS $$"]) else { return };
    assert_eq!(said.code, Some(128 + 7), "{said:?}");
}
