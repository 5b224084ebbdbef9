#!/bin/sh
# Make the records that ship for this machine, on one thread and on all of its cores: tune until no
# better point is found for long, then keep the best of each kernel. Run on a quiet machine, in the
# checkout; `git diff tuning_logs` shows what changed.
set -eu
cd "$(dirname "$0")/.."
trials=${1:-400}
for threads in 1 "$(nproc)"; do
  tvmattend tune --target host --threads "$threads" --trials "$trials"
  tvmattend tune --target host --threads "$threads" --prune 1
done
