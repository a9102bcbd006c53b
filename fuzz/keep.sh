#!/bin/sh
# Keeps what fuzzing has found for the runs to come, on whatever machine: of all inputs in fuzz/corpus the smallest that reach
# the same, packed as fuzz/found/TARGET.tar.gz. `run.sh` begins with them.
#
#   fuzz/keep.sh decode sql
set -eu
cd "$(dirname "$0")"
[ $# -gt 0 ] || { echo "which targets? for example: fuzz/keep.sh decode sql" >&2 && exit 1; }
# Deep nesting needs a deep stack, as the server gives to its threads.
ulimit -s 65536
export RUSTC_WRAPPER="$PWD/instrument.sh"
mkdir -p found
for target in "$@"; do
    rm -rf "corpus/$target.kept" && mkdir -p "corpus/$target.kept"
    cargo run --quiet --release --locked --features sql,credentials --bin "$target" -- \
        -merge=1 "corpus/$target.kept" "corpus/$target"
    # The same inputs make the same file.
    tar --create --directory "corpus/$target.kept" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX . |
        gzip -n9 >"found/$target.tar.gz"
    rm -rf "corpus/$target.kept"
done
