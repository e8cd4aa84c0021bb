#!/usr/bin/env bash
# 1. ReMix-PPO and ReMix-GRPO against PPO and GRPO, five seeds, each at its own tuned learning rate, about 2,450 rollouts each.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
for seed in ${SEEDS:-0 1 2 3 4}; do
  for algo in ppo grpo; do
    jobs+=("remix-$algo-seed$seed $study --eval_every 2 --algo $algo --lr $(lr remix-$algo) --seed $seed"
      "$algo-seed$seed $study --eval_every 2 --steps 19 --algo $algo --lr $(lr $algo) --seed $seed $plain")
  done
  # The one run of tuning put PPO at 1e-3 by a hair; over five seeds it is less steady there, so at ReMix's rate too
  jobs+=("ppo-lr3e-4-seed$seed $study --eval_every 2 --steps 19 --lr 3e-4 --seed $seed $plain")
done
run_jobs methods "${jobs[@]}"
