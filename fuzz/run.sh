#!/usr/bin/env bash
# Fuzzes each target for a time and fails if one finds something.
#
#   fuzz/run.sh SECONDS [TARGET...]
#
# Needs no cargo-fuzz and no nightly compiler: coverage and the address sanitizer are switched on by hand. What a target
# finds is kept in fuzz/artifacts/TARGET; run it again with fuzz/target/*/release/TARGET FILE.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    targets=(record batch frame segment terms checkpoint master_key settings clean live store log_identity log)
fi

host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
# As cargo-fuzz does it. The flags are for the targets only, not for build scripts: hence --target.
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Ccodegen-units=1 -Cforce-frame-pointers \
 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
builds=()
for target in "${targets[@]}"; do
    builds+=(--bin "$target")
done
cargo build --release --target "$host" "${builds[@]}"

golden=../tests/format/v1
# Seeds: the golden files; for whole directories, as the file that they replace and as short overwrites.
seed() {
    local target=$1 dir=corpus/$1 number=0 store file
    mkdir -p "$dir"
    case $target in
    store | log)
        # As the files are sorted in the target: by their whole names.
        local names=(closed killed) name
        [ "$target" = store ] || names=(log-closed log-killed)
        for store in 0 1; do
            name=${names[$store]}
            number=0
            while IFS= read -r file; do
                { printf "\\x0$store\\x$(printf %02x $number)\\x05\\x00\\x00"; cat "$file"; } >"$dir/replace-$name-$number"
                printf "\\x0$store\\x$(printf %02x $number)\\x00\\x50\\x00seed" >"$dir/overwrite-$name-$number"
                printf "\\x0$store\\x$(printf %02x $number)\\x06\\x50\\x00" >"$dir/cut-$name-$number"
                number=$((number + 1))
            done < <(cd $golden/$name && find . -type f | LC_ALL=C sort | sed "s|^\\.|$golden/$name|")
        done
        ;;
    log_identity)
        for store in 0 1; do
            { printf "\\x0$store\\x00"; head -c 4160 $golden/log-closed/log; } >"$dir/whole-$store"
            { printf "\\x0$store\\x01"; head -c 60 $golden/log-closed/log | tail -c +33; } >"$dir/numbers-$store"
        done
        ;;
    *)
        while IFS= read -r file; do
            number=$((number + 1))
            case $target:$file in
            segment:*.segment) cp "$file" "$dir/golden-$number" ;;
            terms:*.terms | terms:*.past)
                # Header, a block without its checksum, the whole.
                cp "$file" "$dir/golden-$number"
                head -c 4000 "$file" | tail -c +65 >"$dir/block-$number"
                ;;
            batch:*.segment) tail -c +65 "$file" >"$dir/golden-$number" ;;
            record:*.segment) tail -c +113 "$file" >"$dir/golden-$number" ;;
            frame:*.journal)
                head -c 72 "$file" >"$dir/header-$number"
                head -c 4608 "$file" | tail -c +4097 >"$dir/golden-$number"
                ;;
            checkpoint:*/checkpoint | settings:*/checkpoint)
                head -c 332 "$file" | tail -c +33 >"$dir/golden-$number"
                ;;
            master_key:*/master.key)
                cp "$file" "$dir/golden-$number"
                tail -c +81 "$file" >"$dir/nodes-$number"
                ;;
            clean:*/clean) cp "$file" "$dir/golden-$number" ;;
            live:*/live)
                head -c 1024 "$file" >"$dir/golden-$number"
                { head -c 80 "$file" | tail -c +17; head -c 592 "$file" | tail -c +529; } >"$dir/slots-$number"
                ;;
            esac
        done < <(find $golden -type f)
        ;;
    esac
}

# One, in the background; what it says is kept until it has ended.
fuzz() {
    local target=$1
    seed "$target"
    mkdir -p "artifacts/$target"
    local options=(-max_total_time="$seconds" -artifact_prefix="artifacts/$target/" -rss_limit_mb=2048 -timeout=20
        -print_final_stats=1 -verbosity=0)
    # See the target: a fuzzer that learns to make right checksums can write anything.
    [[ $target != store && $target != log ]] || options+=(-use_cmp=0 -max_len=20000 -len_control=0)
    "$CARGO_TARGET_DIR/$host/release/$target" "${options[@]}" "corpus/$target" > "$logs/$target" 2>&1
}

# As many at once as there are processors.
status=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
width=$(nproc)
for ((first = 0; first < ${#targets[@]}; first += width)); do
    declare -A running=()
    for target in "${targets[@]:first:width}"; do
        echo "fuzz: $target for $seconds s"
        fuzz "$target" &
        running[$target]=$!
    done
    for target in "${!running[@]}"; do
        if ! wait "${running[$target]}"; then
            cat "$logs/$target" >&2
            echo "fuzz: $target FAILED, see fuzz/artifacts/$target" >&2
            status=1
        fi
        echo "fuzz: $target: $(grep -o 'number_of_executed_units: *[0-9]*' "$logs/$target" || echo 'no count')"
    done
    unset running
done
exit $status
