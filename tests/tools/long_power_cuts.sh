#!/usr/bin/env bash
# Power cuts by the ten thousand: every scenario of the workload on every file system that can be made here, each
# recorded and swept once more after recoveries in its middle. Ends by itself; appends what it found to
# docs/evidence.md.
#   long_power_cuts.sh [IMAGES [SEED]]     images in all (10000), and the seed (the current time)
# Exit: 0 nothing was missing, 1 something was (logs and images are kept), 2 trouble, 77 not possible on this machine.
set -euo pipefail
root=$(dirname "$(readlink -f "$0")")/../..
cd "$root"
images=${1:-10000} seed=${2:-$(date +%s)}
jobs=$(nproc)

cargo build --quiet --package quipu-crashdisk --package quipu-tests --bin crashdisk --bin workload
bin=${CARGO_TARGET_DIR:-target}/debug
work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)" long-cuts.XXXXXX)
# Copies: a build that goes on meanwhile must not change what is tested.
cp "$bin/crashdisk" "$bin/workload" "$work"

file_systems=(ext4:24)
for other in xfs:320 btrfs:256; do
    if command -v "mkfs.${other%:*}" >/dev/null; then file_systems+=("$other"); fi
done
scenarios=(append group roll checkpoint retention compaction mixed)
each=$((images / (${#scenarios[@]} * 2 * ${#file_systems[@]}) + 1))

# As it was when the programs were built.
commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD -- storage tests || commit="$commit, changed"
begun=$(date +%s) sum=0 failures=0 acks=0 flushes=0
value() { sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" | tail -n 1; }
for fs in "${file_systems[@]}"; do
    for scenario in "${scenarios[@]}"; do
        for runs in 1 4; do
            seed=$((seed + 1))
            case $scenario in group) steps=$((160 / runs)) ;; *) steps=$((240 / runs)) ;; esac
            log=$work/$scenario-$runs-${fs%:*}.log
            script="for run in \$(seq 0 $((runs - 1))); do
                \$0 write \$1/store --scenario=$scenario --seed=$((seed % 4294967296)) --run=\$run --count=$steps $([ $runs = 1 ] || echo --no-close) || exit 1
            done"
            code=0
            recorded=$("$work/crashdisk" record --work="$work/w" --fs="$fs" --log="$log" --acks-min=100 --flushes-min=20 \
                -- sh -c "$script" "$work/workload" '{mnt}' 2>/dev/null) || code=$?
            [ "$code" != 77 ] || exit 77
            [ "$code" = 0 ] || { echo "$recorded" && exit 2; }
            code=0
            swept=$("$work/crashdisk" sweep --work="$work/w" --fs="${fs%:*}" --log="$log" --points="$each" --seed="$seed" \
                --jobs="$jobs" --keep -- "$work/workload" check '{mnt}/store' '{acks}') || code=$?
            echo "${fs%:*} $scenario runs=$runs $(echo "$swept" | tail -n 1)"
            [ "$code" = 0 ] || echo "$swept"
            [ "$code" -le 1 ] || exit "$code"
            code=0
            sum=$((sum + $(echo "$swept" | value images))) failures=$((failures + $(echo "$swept" | value failures)))
            acks=$((acks + $(echo "$recorded" | value acks))) flushes=$((flushes + $(echo "$recorded" | value flushes)))
        done
    done
done

names=${file_systems[*]}
[ -f docs/evidence.md ] || printf '%s\n' '# Evidence' '' \
    'Long runs that are too long for CI, each appended by the script that made it.' '' \
    '## Power cuts (`tests/tools/long_power_cuts.sh`)' '' \
    '| Date | Commit | File systems | Seeds | Images | Acknowledgements | Flushes | Failures | Minutes |' \
    '|---|---|---|---|---|---|---|---|---|' >docs/evidence.md
printf '| %s | %s | %s | %s to %s | %s | %s | %s | %s | %s |\n' "$(date -u +%F)" "$commit" "$names" \
    $((seed - ${#scenarios[@]} * 2 * ${#file_systems[@]} + 1)) "$seed" "$sum" "$acks" "$flushes" "$failures" \
    $((($(date +%s) - begun + 59) / 60)) >>docs/evidence.md
tail -n 1 docs/evidence.md
if [ "$failures" != 0 ]; then
    echo "what failed is kept in $work"
    exit 1
fi
rm -rf "$work"
