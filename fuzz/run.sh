#!/bin/sh
# Coverage-guided fuzzing of every parser: builds the targets with counters (instrument.sh) and gives each so many seconds.
#
#   fuzz/run.sh 1800                  # all targets
#   fuzz/run.sh 600 decode sql        # some of them
#
# It begins with what earlier runs have found (fuzz/found, see keep.sh). What is found interesting stays in fuzz/corpus; an input that
# fails is written to fuzz/artifacts and ends the run with an error.
set -eu
cd "$(dirname "$0")"
seconds=${1:?how many seconds for each target}
shift
[ $# -gt 0 ] || set -- decode journal trail search credentials sql plan
# Deep nesting needs a deep stack, as the server gives to its threads.
ulimit -s 65536
export RUSTC_WRAPPER="$PWD/instrument.sh"
for target in "$@"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    [ ! -f "found/$target.tar.gz" ] || tar --extract --gzip --directory "corpus/$target" --file "found/$target.tar.gz"
    case $target in
    decode) hints="seeds/decode -dict=dictionaries/decode.dict" ;;
    sql | plan)
        # One statement each: a text that is parsed in no time is changed a thousand times a second.
        rm -rf corpus/statements && mkdir -p corpus/statements
        find seeds/sql ../packs ../crates/server/tests/scenarios -type f | sort | xargs cat |
            awk -v RS=';' 'NF { file = sprintf("corpus/statements/%04d", NR); print > file; close(file) }'
        [ -f corpus/statements/0001 ] || { echo "no statements to begin with" >&2 && exit 1; }
        hints="corpus/statements -max_len=2000 -dict=dictionaries/sql.dict"
        ;;
    *) hints= ;;
    esac
    # shellcheck disable=SC2086 # each word of the hints is an argument: a folder of seeds, or a dictionary
    cargo run --quiet --release --locked --features sql,credentials --bin "$target" -- "corpus/$target" $hints \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -artifact_prefix="artifacts/$target/" -print_final_stats=1 -print_pcs=1
done
