#!/usr/bin/env bash
# What the experiments share. Each is one script: it skips the runs that are there, goes on where it was killed, and leaves
# FOLDER/NAME/{config.json,metrics.jsonl} and FOLDER/logs/NAME.txt. RUNS=out/again puts them there and not over the committed
# ones; JOBS=2 runs two at a time; SEEDS="0 1" takes other seeds. `python runs/report.py` makes every table and figure of them.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash install.sh

# The embedded task where a check repeats the first pass and mends nothing (mending=0): reflection only costs length, and
# the slips themselves have to be unlearnt. 24 steps, reincarnation after 12, lambda's schedule shortened to match.
study="--model tiny:mending=0 --engine hf --steps 24 --reincarnation_step 12 --kl_convex schedule:4,2 --eval_every 12 --eval_n 2"
plain="--off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0" # PPO or GRPO
.venv/bin/python -c "import tiny; tiny.make_base_model(settings=tiny.named('tiny:mending=0'))" # once, not by every run

lr() { .venv/bin/python runs/best_lr.py "$1"; } # the learning rate that runs/tune.sh found for a method

one_job() {
  folder=$1 name=$2
  shift 2
  mkdir -p "$folder/logs"
  log="$folder/logs/$name.txt"
  exec 9>> "$log"
  flock -n 9 || { echo "$name: another shell is at it" && exit 0; }
  grep -q "^done: " "$log" && exit 0
  echo "\$ bash train.sh tiny $* --out $folder/$name" >> "$log"
  bash train.sh tiny "$@" --out "$folder/$name" >> "$log" 2>&1 9>&- || { echo "$name FAILED: see $log"; exit 0; }
  rm -rf "$folder/$name/checkpoints" "$folder/$name/model" "$folder/$name/curve.png"
  echo "$name: $(grep 'pass@1' "$log" | tail -n 1)"
}
export -f one_job

run_jobs() { # FOLDER "NAME FLAGS" ...
  local folder=${RUNS:-runs}/$1
  shift
  printf '%s\n' "$@" | xargs -P "${JOBS:-1}" -I{} bash -c "set -euo pipefail; one_job $folder {}"
}
