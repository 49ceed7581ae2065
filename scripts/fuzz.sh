#!/bin/sh
# Runs the fuzz targets of fuzz/ one after the other, each for FUZZ_SECONDS (default 60). An input that fails is kept in
# target/fuzz/failures; add it to fuzz/corpus/TARGET and mend what it shows.
# Usage: fuzz.sh [TARGET...]
set -eu
. "$(dirname "$0")/common.sh"
cd "$repository"

seconds=${FUZZ_SECONDS:-60}
host=$(rustc -vV | sed -n 's/^host: //p')
out=$repository/target/fuzz
targets=${*:-$(ls fuzz/targets | sed 's/\.rs$//')}

command -v g++ >/dev/null || apt_install g++

# What cargo-fuzz passes, without a sanitizer, which needs a nightly compiler: counters for each edge, and compared values.
sancov="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS=$(echo $sancov --cfg fuzzing)
export RUSTFLAGS

# The same versions as in the product.
cp Cargo.lock fuzz/Cargo.lock
say "building the targets"
cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$out"

mkdir -p "$out/failures"
for target in $targets; do
    say "$target for $seconds seconds"
    seeds=fuzz/corpus/$target
    case $target in notebook|export) seeds=notebooks ;; esac
    mkdir -p "$out/corpus/$target"
    # The first folder receives new inputs; those of the repository are only read.
    "$out/$host/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -verbosity=0 -artifact_prefix="$out/failures/$target-" "$out/corpus/$target" "$seeds"
done
say "no failure"
