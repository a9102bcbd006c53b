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
run() {
    cargo run --quiet --release --locked --features sql,credentials --bin "$target" -- "$@"
}
for target in "$@"; do
    all="corpus/$target.all" kept="corpus/$target.kept"
    rm -rf "$all" "$kept" && mkdir -p "$all" "$kept"
    # First those that reach anything of their own, which is quick, then as few of these as will do.
    run -merge=1 "$all" "corpus/$target"
    run -set_cover_merge=1 "$kept" "$all"
    # The same inputs make the same file.
    tar --create --directory "$kept" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX . |
        gzip -n9 >"found/$target.tar.gz"
    rm -rf "$all" "$kept"
done
