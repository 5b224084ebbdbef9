#!/bin/sh
# Make the records that ship, then keep the best of each kernel: measured ones for this machine, on
# one thread and on all of its cores, and estimated ones for the Cortex-A72, which nobody here has.
# Run on a quiet machine, in the checkout; `git diff tuning_logs` shows what changed. The records of
# the Cortex-A72 alone: `benchmarks/ship_records.sh 0`. They take some five minutes each.
set -eu
cd "$(dirname "$0")/.."
trials=${1:-400}
estimates=${2:-260}
if [ "$trials" -gt 0 ]; then
  for threads in 1 "$(nproc)"; do
    tvmattend tune --target host --threads "$threads" --trials "$trials"
    tvmattend tune --target host --prune 1
  done
fi
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
for threads in 1 4; do
  # In a place of its own: estimates by another version of the model are not comparable with today's.
  tvmattend tune --target cortex-a72 --estimate --threads "$threads" --trials "$estimates" -o "$place"
  tvmattend tune --target cortex-a72 --prune 1 -o "$place"
  mv "$place/estimated/$threads-threads.jsonl" tuning_logs/attendnext/cortex-a72/estimated/
done
