#!/usr/bin/env bash
# Do the tests have teeth? Plants one bug after the other and expects a test to find each; then ends a
# node at every named point between two commits (HIGHWATER_CYCLES times each, 200 in the long run).
set -uo pipefail
cd "$(dirname "$0")/.."
features=(--features highwater-event/planted)
failed=0

echo "building with planted bugs"
cargo test --workspace "${features[@]}" --no-run --quiet || exit 1

# bug, test target, test (a part of its name)
while read -r bug target test; do
  case $target in
    node) where=(--bin highwater) ;;
    *) where=(--test "$target") ;;
  esac
  if HIGHWATER_PLANTED=$bug timeout 600 cargo test --workspace "${features[@]}" --quiet "${where[@]}" "$test" >/tmp/planted.log 2>&1; then
    echo "NOT FOUND  $bug (by $target)"
    failed=1
  elif grep -q "test result: FAILED" /tmp/planted.log; then
    echo "found      $bug (by $target: $(grep -m1 -oE "^    [a-z_0-9:]+$" /tmp/planted.log | tr -d ' '))"
  else
    echo "NOT RUN    $bug: $(tail -1 /tmp/planted.log)"
    failed=1
  fi
done <<'BUGS'
ack_before_fsync          journal   power_cuts
no_directory_fsync        journal   power_cuts
retry_after_failed_fsync  journal   first_failed_fsync
no_checksum               journal   flipped_bit
no_frontier               driver    several_sources
dedupe_before_log         door      full_disk
mark_before_ids           door      everything_that_was_acked
filter_outlives_run       door      what_an_orderly_end_left
no_suppression            kills     states_and_stream
states_without_marks      kills     states_and_stream
deaf_to_idle              kills     states_and_stream
lateness_per_batch        oracle    tables_equal
early_expiry              oracle    retention
one_bucket                oracle    windowed_joins
forgets_matches           oracle    windowed_left_joins
lost_mask                 scenarios statements
effect_without_leaf       audit     no_effect_is_without_its_leaf
effect_without_leaf       node      whole_nodes
events_without_seal       door      events_that_are_to_be_proven
events_without_seal       audit_events every_acked_event
remembers_for_ever        audit_events what_is_remembered
unsalted                  audit     changed_copies
no_tenant_predicate       permissions canaries
no_wall                   permissions canaries
ack_before_fsync          node      whole_nodes
mark_before_ids           node      whole_nodes
no_suppression            node      whole_nodes
early_expiry              node      whole_nodes
BUGS

echo "ending a node at every named point"
cargo test --workspace "${features[@]}" --quiet --test crash -- --ignored --nocapture stopped_at_every_named_point || failed=1
exit $failed
