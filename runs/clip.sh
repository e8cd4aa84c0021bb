#!/usr/bin/env bash
# 5. The clip of ReMix-PPO: Mix-PPG's moving centre (runs/methods) against the behaviour policy as centre, AReaL's decoupled
# form, GePPO's width and V-trace, at a plain and at a narrow width where it binds. Three seeds, the full method's rate.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
for seed in ${SEEDS:-0 1 2}; do
  for eps in 0.2 0.02; do
    common="$study --lr $(lr remix-ppo) --clip_eps $eps --seed $seed"
    [ $eps = 0.2 ] || jobs+=("mix_ppg-eps$eps-seed$seed $common")
    jobs+=("ppo-eps$eps-seed$seed $common --loss ppo" "decoupled_ppo-eps$eps-seed$seed $common --loss decoupled_ppo"
      "geppo-eps$eps-seed$seed $common --geppo_clip" "vtrace-eps$eps-seed$seed $common --vtrace")
  done
done
run_jobs runs/clip "${jobs[@]}"
