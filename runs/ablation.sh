#!/usr/bin/env bash
# 2. The paper's ablation of ReMix-PPO, five seeds, each variant at its own tuned learning rate (full: runs/methods.sh).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
for seed in ${SEEDS:-0 1 2 3 4}; do
  jobs+=("no-utd-seed$seed $study --eval_every 4 --utd_ratio 1 --lr $(lr no-utd) --seed $seed"
    "no-kl-convex-seed$seed $study --eval_every 4 --kl_convex off --lr $(lr no-kl-convex) --seed $seed"
    "no-reincarnation-seed$seed $study --eval_every 4 --reincarnation_step 0 --lr $(lr no-reincarnation) --seed $seed"
    "mix-ppg-seed$seed $study --eval_every 4 --utd_ratio 1 --kl_convex off --reincarnation_step 0 --lr $(lr mix-ppg) --seed $seed")
done
run_jobs ablation "${jobs[@]}"
