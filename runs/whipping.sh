#!/usr/bin/env bash
# 4. The whipping effect: length, reflection and the ratio along the response, with and without replay (both m = 2); the same
# under a length limit and with another prompt format. Three seeds, no reincarnation, one learning rate for all.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
equals=runs/whipping/equals.txt # another prompt: the problem and an equals sign
mkdir -p runs/whipping && printf '{problem} =' > $equals
jobs=()
for seed in ${SEEDS:-0 1 2}; do
  common="$study --steps 16 --eval_every 8 --reincarnation_step 0 --kl_convex off --lr $(lr remix-ppo) --seed $seed"
  for p in 0 0.5; do
    replay="--off_policy_ratio $p --utd_ratio 2"
    jobs+=("p$p-seed$seed $common $replay"
      "p$p-limit40-seed$seed $common $replay --max_tokens 40"
      "p$p-equals-seed$seed $common $replay --prompt $equals --format r1")
  done
done
run_jobs runs/whipping "${jobs[@]}"
