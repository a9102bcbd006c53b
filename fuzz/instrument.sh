#!/bin/sh
# A RUSTC_WRAPPER: asks for coverage counters in the project's own crates and in the parsers they stand on, which is
# what libFuzzer is led by. Everything else (DataFusion, Arrow's kernels, tokio) is compiled as usual: counting the
# branches of a million lines that are not under test takes most of an hour to compile and hides those that are.
rustc=$1
shift
crate=
previous=
for argument in "$@"; do
    [ "$previous" = --crate-name ] && crate=$argument
    previous=$argument
done
case $crate in
highwater_* | decode | journal | trail | search | credentials | sql | plan | jiter | csv_core | sqlparser | lz4_flex | arrow_ipc)
    exec "$rustc" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$rustc" "$@" ;;
esac
