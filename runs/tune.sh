#!/usr/bin/env bash
# The learning rate of every method, with the same budget each: three rates, 12 steps, a seed that no other experiment uses.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
add() { # NAME FLAGS
  for lr in 1e-4 3e-4 1e-3; do
    jobs+=("$1-lr$lr $study --steps 12 --reincarnation_step 6 --kl_convex schedule:2,1 --eval_every 4 --seed 100 --lr $lr $2")
  done
}
for algo in ppo grpo; do
  add "remix-$algo" "--algo $algo"
  add "$algo" "--algo $algo $plain"
done
add no-utd "--utd_ratio 1"
add no-kl-convex "--kl_convex off"
add no-reincarnation "--reincarnation_step 0"
add mix-ppg "--utd_ratio 1 --kl_convex off --reincarnation_step 0"
for loss in $(.venv/bin/python -c "from siblings import SIBLINGS; print(*SIBLINGS)"); do
  add "loss-$loss" "--algo grpo --loss $loss"
done
add replay-repo "--algo grpo --replay repo --limit 32"
add replay-window "--algo grpo --limit 32"
add replay-buffer_matters "--algo grpo --replay buffer_matters --replay_window 5"
add replay-on_policyness "--algo grpo --replay on_policyness --replay_window 5"
run_jobs tune "${jobs[@]}"
