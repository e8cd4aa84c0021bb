#!/usr/bin/env bash
# Other methods in ReMix-GRPO's place, three seeds, each at its own tuned learning rate: the losses of siblings.py, other
# ways to replay (repo, which needs prompts that come back, on 32 problems, beside the window on the same), a sampler that lags.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
jobs=()
add() { # NAME FLAGS [NAME whose learning rate it takes]
  for seed in ${SEEDS:-0 1 2}; do
    jobs+=("$1-seed$seed $study --algo grpo --lr $(lr "${3:-$1}") --seed $seed $2")
  done
}
for loss in $(.venv/bin/python -c "from siblings import SIBLINGS; print(*SIBLINGS)"); do add "loss-$loss" "--loss $loss"; done
add replay-repo "--replay repo --limit 32"
add replay-window "--limit 32"
add replay-buffer_matters "--replay buffer_matters --replay_window 5"
add replay-on_policyness "--replay on_policyness --replay_window 5"
for k in 2; do
  add "lag$k" "--sampler_lag $k" remix-grpo
  add "lag$k-loss-ppo" "--sampler_lag $k --loss ppo" loss-ppo
done
run_jobs siblings "${jobs[@]}"
