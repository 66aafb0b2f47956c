#!/usr/bin/env bash
# Proves that each tool here finds planted bugs and stays green on a program that has none.
#   self_test.sh TINYLOG        the built 'tinylog' of tests/crashdisk
# Exit: 0 all as it should be, 1 a tool is blind or cries wolf, 77 not possible on this machine.
set -euo pipefail
tools=$(dirname "$(readlink -f "$0")")
tinylog=$(readlink -f "${1:?which tinylog?}")
work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)")
export TMPDIR=$work # disk_full.sh keeps its disk there
trap 'rm -rf "$work"' EXIT

failures=0
# expect CODE NAME COMMAND...: runs the command, which must exit with CODE.
expect() {
    local want=$1 name=$2 code=0
    shift 2
    "$@" >"$work/out" 2>&1 || code=$?
    if [ "$code" = 77 ]; then
        cat "$work/out" >&2
        exit 77
    elif [ "$code" = "$want" ]; then
        echo "ok    $name: $(tail -n 1 "$work/out")"
    else
        echo "WRONG $name: exit $code, not $want"
        sed 's/^/      /' "$work/out"
        failures=$((failures + 1))
    fi
}

# syscall_faults [OPTION...] BUG
syscall_faults() {
    "$tools/syscall_faults.py" --dir "$work/log" --check "$tinylog check {dir} {ack}" --max-per-call 3 \
        "${@:1:$#-1}" -- "$tinylog" write '{dir}' 21 "${!#}"
}

# disk_full FS BUG [OPTION...]
disk_full() {
    "$tools/disk_full.sh" --fs "$1" --mib 10 --write "$tinylog write {dir} 100000 $2" \
        --check "$tinylog check {dir} {ack}" "${@:3}"
}

echo '--- syscall_faults.py'
expect 0 'no bug' syscall_faults --faults-min 25 none
expect 1 'a sync error is ignored' syscall_faults --calls fdatasync ignore-sync-error
expect 1 'a write error is ignored' syscall_faults --calls write --errors write=ENOSPC ignore-write-error
expect 1 'an error is a panic' syscall_faults --calls fdatasync panic-on-error
expect 1 'too few faults' syscall_faults --calls fdatasync --faults-min 10000 none
expect 2 'a program that fails anyway' syscall_faults no-such-bug
expect 0 'help' "$tools/syscall_faults.py" --help

echo '--- disk_full.sh'
expect 0 'no bug, ext4' disk_full ext4 none --again "$tinylog write {dir} 10"
expect 0 'no bug, tmpfs' disk_full tmpfs none --again "$tinylog write {dir} 10"
expect 1 'a write error is ignored' disk_full tmpfs ignore-write-error
expect 1 'an error is a panic' disk_full ext4 panic-on-error
expect 1 'it dies of a signal' "$tools/disk_full.sh" --fs tmpfs --write 'kill -BUS $$' --check true
expect 1 'the disk is never full' "$tools/disk_full.sh" --fs tmpfs --write true --check true
expect 1 'it does not go on' disk_full tmpfs none --again false
expect 64 'wrong usage' "$tools/disk_full.sh" --fs ext4
expect 0 'help' "$tools/disk_full.sh" --help

[ "$failures" = 0 ] || exit 1
