#!/bin/bash
# Builds every fuzz target with coverage instrumentation (the stable toolchain's own LLVM pass) and runs each for a while.
#   fuzz/run.sh SECONDS [TARGET]...
# New inputs collect in target/fuzz/corpus; an input that breaks a target is written to target/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-30}
shift || true

out=$(realpath -m "${CARGO_TARGET_DIR:-../target}")/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$out/build
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks \
 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
 -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target, build scripts and macros stay uninstrumented.
cargo build --release --target "$triple"

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(basename -s .rs targets/*.rs | sort)
passed=0 failed=0
for target in "${targets[@]}"; do
    mkdir -p "$out/corpus/$target" "$out/artifacts"
    seeds=()
    [ -d "corpus/$target" ] && seeds=("corpus/$target")
    log=$out/$target.log
    if "$CARGO_TARGET_DIR/$triple/release/$target" "$out/corpus/$target" "${seeds[@]}" -max_total_time="$seconds" \
        -max_len=65536 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 -artifact_prefix="$out/artifacts/$target-" \
        >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        printf '%-20s ok, %s inputs\n' "$target" "$runs"
        passed=$((passed + 1))
    else
        printf '%-20s BROKEN, see %s\n' "$target" "$log"
        grep -E 'panicked|ERROR|Test unit' "$log" | head -5 || true
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
