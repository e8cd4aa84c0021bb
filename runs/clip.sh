#!/usr/bin/env bash
# 5. The clip of ReMix-PPO: Mix-PPG's moving centre (runs/methods) against the behaviour policy as centre, AReaL's decoupled
# form, GePPO's width and V-trace. Three seeds, the full method's rate.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
for seed in ${SEEDS:-0 1 2}; do
  common="$study --lr $(lr remix-ppo) --seed $seed"
  jobs+=("ppo-seed$seed $common --loss ppo" "decoupled_ppo-seed$seed $common --loss decoupled_ppo"
    "geppo-seed$seed $common --geppo_clip" "vtrace-seed$seed $common --vtrace")
done
run_jobs clip "${jobs[@]}"
