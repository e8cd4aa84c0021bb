#!/usr/bin/env bash
# The comparison in the README: PPO, ReMix-PPO, GRPO and ReMix-GRPO on the embedded task, three seeds each, every method
# at the learning rate that runs/tune.sh found best for it. The ReMix-PPO runs are `bash train.sh --seed N`.
#   bash runs/compare.sh        skips what is there, goes on where it stopped; JOBS=2 runs two at a time
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
for seed in ${SEEDS:-0 1 2}; do
  jobs+=("remix-ppo-seed$seed --algo ppo --seed $seed"
    "ppo-seed$seed --algo ppo --seed $seed $plain"
    "remix-grpo-seed$seed --algo grpo --seed $seed"
    "grpo-seed$seed --algo grpo --seed $seed $plain")
done
run_jobs runs/compare "${jobs[@]}"
.venv/bin/python plot.py runs/compare/*-seed* --out runs/compare/compare.png --table --at 2000 | tee runs/compare/table.md
