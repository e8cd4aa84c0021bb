#!/usr/bin/env bash
# 4. The whipping effect: length, reflection and the ratio along the response, with and without replay (both m = 2); the same
# under a length limit and with another prompt format. Five seeds, 16 steps, no reincarnation, one learning rate for all.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
equals=runs/whipping/equals.txt # another prompt: the problem and an equals sign
mkdir -p runs/whipping && printf '{problem} =' > $equals
jobs=()
for kind in "" "-limit40 --max_tokens 40" "-equals --prompt $equals --format r1"; do
  for seed in ${SEEDS:-0 1 2 3 4}; do
    common="$study --steps 16 --eval_every 8 --reincarnation_step 0 --kl_convex off --lr $(lr remix-ppo) --seed $seed"
    for p in 0 0.5; do
      jobs+=("p$p${kind%% *}-seed$seed $common --off_policy_ratio $p --utd_ratio 2 $(cut -s -d" " -f2- <<< "$kind")")
    done
  done
done
run_jobs whipping "${jobs[@]}"
