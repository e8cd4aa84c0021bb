#!/usr/bin/env bash
# 3. One setting of ReMix-PPO at a time, three seeds, at the learning rate of the full method. All rows, the default and the
# ablation's two as well, are of one machine: another processor makes a slightly different base model of the same settings.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
add() { # NAME FLAGS
  for seed in ${SEEDS:-0 1 2}; do
    jobs+=("$1-seed$seed $study --lr $(lr remix-ppo) --seed $seed $2")
  done
}
add default ""
for p in 0.1 0.2 0.3 0.5; do add "p$p" "--off_policy_ratio $p --eval_every 2"; done # 925 rollouts is another step for each
for m in 1 3 4; do add "m$m" "--utd_ratio $m"; done
for T in 4 18; do add "T$T" "--reincarnation_step $T --eval_every 2"; done
add Tnever "--reincarnation_step 0 --steps 32 --eval_every 4" # as many rollouts as the others: none of its steps has 128
for N in 1 3 4; do add "N$N" "--replay_window $N"; done
for weight in 0 0.5 1; do add "lambda$weight" "--kl_convex $weight"; done
add precedent-current "--precedent current"
# beta = 0.001 is the paper's, and the constraint hardly counts beside the policy loss: what does it do where it counts?
for beta in 0.01 0.1; do
  add "beta$beta" "--kl_coef $beta"
  add "beta$beta-no-kl-convex" "--kl_coef $beta --kl_convex off"
done
run_jobs settings "${jobs[@]}"
