#!/usr/bin/env bash
set -euo pipefail

help() {
    cat <<'EOT'
Runs a writer on a disk that fills up: it must refuse cleanly, and lose nothing that it acknowledged.

  disk_full.sh --write COMMAND --check COMMAND [--again COMMAND] [--fs NAME] [--mib N]

  --write    appends until the disk is full; prints 'ack TEXT' for what is durable. It must end with an error or
             stop by itself; a signal (SIGBUS of a map) or a panic is a failure, and so is never filling the disk.
  --check    exits with 0 if all that was acknowledged is there. It runs while the disk is full, and again after
             space was freed.
  --again    run once space is free; it must end with 0. What it acknowledges is checked as well.
  --fs       ext4 (the default), xfs (>= 320 MiB), btrfs (>= 128 MiB) or tmpfs
  --mib      size of the disk, 24 by default; it is kept in $TMPDIR

In the commands {dir} is the directory, {ack} the TEXT of the last 'ack TEXT' (-1: none), {acks} a file of all of
them, one a line. Exit: 0 all well, 1 a failure, 2 trouble with the disk, 64 wrong usage, 77 not possible here.
EOT
}

usage() {
    echo "disk_full.sh: $1; --help says more" >&2
    exit 64
}

hang_seconds=300
fs=ext4 mib=24 write='' check='' again=''
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) help && exit 0 ;;
    --write | --check | --again | --fs | --mib)
        [ $# -ge 2 ] || usage "$1 takes a value"
        declare "${1#--}=$2"
        shift 2
        ;;
    *) usage "unknown: $1" ;;
    esac
done
[ -n "$write" ] || usage '--write is missing'
[ -n "$check" ] || usage '--check is missing'

unsupported() {
    echo "not possible on this machine: $1" >&2
    exit 77
}
[ "$(id -u)" = 0 ] || unsupported 'it takes root to mount'
[ "$fs" = tmpfs ] || [ -e /dev/loop-control ] || unsupported 'no /dev/loop-control'
[ "$fs" = tmpfs ] || command -v "mkfs.$fs" >/dev/null || unsupported "mkfs.$fs is not installed"

# In a mount namespace of our own, so that the kernel unmounts and detaches however this ends.
if [ -z "${DISK_FULL_INSIDE:-}" ]; then
    unshare --mount --propagation private true 2>/dev/null || unsupported 'no mount namespace of our own'
    DISK_FULL_INSIDE=1 exec unshare --mount --propagation private "$0" "${arguments[@]}"
fi

work=$(mktemp -d)
mnt=$work/mnt dir=$work/mnt/data acks=$work/acks
mkdir "$mnt"
trap 'umount "$mnt" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT

make_disk() {
    case $fs in
    tmpfs) mount -t tmpfs -o "size=${mib}m" tmpfs "$mnt" && return ;;
    ext4) force=-F ;;
    *) force=-f ;;
    esac
    truncate -s "${mib}M" "$work/image"
    "mkfs.$fs" -q $force "$work/image"
    mount -o loop,noatime "$work/image" "$mnt"
}
make_disk >&2 || {
    echo "disk_full.sh: no $fs of $mib MiB" >&2
    exit 2
}
# Freed later on.
head -c 4M /dev/zero >"$mnt/ballast"

fail() {
    echo "BAD $1"
    exit 1
}

last_ack() {
    tail -n 1 "$acks" | grep . || echo -1
}

# Runs a writer, collects what it acknowledges, and fails if it dies. Leaves its exit code in $code.
run_writer() {
    code=0
    timeout --kill-after=5 "$hang_seconds" bash -c "${1//\{dir\}/$dir}" >"$work/out" 2>"$work/err" || code=$?
    # A last line without its end was cut short: it promises nothing.
    [ -z "$(tail -c 1 "$work/out")" ] || sed -i '$d' "$work/out"
    sed -n 's/^ack //p' "$work/out" >>"$acks"
    echo "the writer ended with $code after ack $(last_ack): $(tail -n 1 "$work/err")"
    case $code in
    101) fail 'it panicked' ;;
    124) fail "it hangs: no end after $hang_seconds s" ;;
    12[6-9] | 1[3-9][0-9] | 2[0-9][0-9]) fail "it died (exit $code; 135 is SIGBUS)" ;;
    esac
}

run_check() {
    local command=$check
    command=${command//\{dir\}/$dir}
    command=${command//\{acks\}/$acks}
    command=${command//\{ack\}/$(last_ack)}
    bash -c "$command" || fail "$1"
}

: >"$acks"
run_writer "$write"
free_kib=$(df --output=avail -k "$mnt" | tail -n 1)
[ "$code" != 0 ] || [ "$free_kib" -lt 64 ] || fail "it ended well, and $free_kib KiB are still free: it never met a full disk"
run_check 'something acknowledged is missing while the disk is full'
rm "$mnt/ballast"
run_check 'something acknowledged is missing after space was freed'
if [ -n "$again" ]; then
    run_writer "$again"
    [ "$code" = 0 ] || fail "it does not go on after space was freed (exit $code)"
    run_check 'something acknowledged is missing after it went on'
fi
echo "disk_full: fs=$fs mib=$mib acks=$(wc -l <"$acks")"
