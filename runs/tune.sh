#!/usr/bin/env bash
# The learning rate of each method, with the same budget: four rates, 4,096 rollouts each, a seed of its own.
#   bash runs/tune.sh           JOBS=2 runs two at a time
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
for lr in 3e-6 1e-5 3e-5 1e-4; do
  common="--seed 100 --lr $lr --eval_every 4"
  for algo in ppo grpo; do
    jobs+=("remix-$algo-lr$lr --algo $algo $common --steps 40 --reincarnation_step 20"
      "$algo-lr$lr --algo $algo $common --steps 32 $plain")
  done
done
run_jobs runs/tune "${jobs[@]}"
.venv/bin/python plot.py runs/tune/*-lr* --out runs/tune/tune.png --table | tee runs/tune/table.md
