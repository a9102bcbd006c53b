#!/bin/sh
# Where the branches are that a run was the first to reach: in functions of the project's own crates, or elsewhere, which is the
# parsers under them and what both use of the standard library. Whether a
# target has gone quiet is a question about the first; a parser of all SQL dialects has branches for weeks.
#
#   setarch -R fuzz/run.sh 1800 sql 2>&1 | tee run.log; fuzz/where.sh sql run.log
#
# `setarch -R` puts the program at the same address each time, which is what this reckons with.
set -eu
[ $# -eq 2 ] || { echo "which target, and the log of its run? for example: fuzz/where.sh sql run.log" >&2 && exit 1; }
program=${CARGO_TARGET_DIR:-$(dirname "$0")/target}/release/$1
[ -x "$program" ] || { echo "no program at $program; fuzz/run.sh builds it" >&2 && exit 1; }
inputs=$(mktemp)
trap 'rm -f "$inputs"' EXIT
# The number of the input follows the branches that it reached.
awk '/NEW_PC: / { found[++count] = $2 } /^#[0-9]/ { for (at = 1; at <= count; at++) print substr($1, 2), found[at]; count = 0; last = substr($1, 2) }
    END { print last, "end" }' "$2" >"$inputs"
grep -v end "$inputs" | while read -r _ address; do
    printf '0x%x\n' $((address - 0x555555554000))
done | addr2line --exe "$program" --functions --demangle | awk 'NR % 2' | paste -d ' ' "$inputs" - | awk '
    $2 == "end" { inputs = $1; next }
    / <?highwater_[a-z]+::/ && !/drop_in_place/ { own++; last = $1; $1 = $2 = ""; names[$0]++; next }
    { other++ }
    END {
        for (name in names) printf "%5d %s\n", names[name], name
        printf "%d inputs; new branches: %d in own crates, the last by input %d; %d elsewhere\n", inputs, own, last, other
    }'
