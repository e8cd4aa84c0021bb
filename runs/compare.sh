#!/usr/bin/env bash
# The comparison in the README: PPO, ReMix-PPO, GRPO and ReMix-GRPO on the embedded task, three seeds each, at two learning
# rates: 1e-5, where the curves can be told apart (the ReMix-PPO runs are `bash train.sh --seed N`), and 1e-4, the fastest
# for every method in runs/tune.sh.
#   bash runs/compare.sh        skips what is there, goes on where it stopped; JOBS=2 runs two at a time
set -euo pipefail
source "$(dirname "$0")/lib.sh"
slow=() fast=()
for seed in ${SEEDS:-0 1 2}; do
  for algo in ppo grpo; do
    slow+=("remix-$algo-seed$seed --algo $algo --seed $seed" "$algo-seed$seed --algo $algo --seed $seed $plain")
    common="--algo $algo --seed $seed --lr 1e-4 --eval_every 1"
    fast+=("remix-$algo-seed$seed $common --steps 16 --reincarnation_step 8" "$algo-seed$seed $common --steps 13 $plain")
  done
done
run_jobs runs/compare "${slow[@]}"
.venv/bin/python plot.py runs/compare/*-seed* --out runs/compare/compare.png --table --at 2000 | tee runs/compare/table.md
run_jobs runs/compare-fast "${fast[@]}"
.venv/bin/python plot.py runs/compare-fast/*-seed* --out runs/compare-fast/compare.png --table | tee runs/compare-fast/table.md
