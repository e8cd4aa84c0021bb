#!/usr/bin/env bash
# The experiments of docs/results.md, each run a line in runs/NAME.jsonl:
#
#   bash runs/experiments.sh NAME...   tune methods siblings ablation clip settings whipping lora
#                                      smollm reuse, or all
#
# Runs whose line is there are skipped, killed ones go on. Run folders are out/experiments/NAME/RUN,
# what they printed is in its logs/. Then `python runs/report.py` makes every table and figure.
# JOBS=2 runs two at a time; SEEDS="0 1" takes other seeds; RUNS=out/again collects there and not in
# runs/, so it makes the runs again; DRY=1 prints the commands and runs nothing. PYTHON=python3 runs
# with that one and installs nothing; SMOLLM=FOLDER has the language model of smollm.
set -euo pipefail
cd "$(dirname "$0")/.."
known="tune methods siblings ablation clip settings whipping lora smollm reuse"
export RUNS=${RUNS:-runs} OUT=out/experiments python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 # more threads are slower at this size

[ "${1:-}" = all ] && set -- $known
for name in "${@:-}"; do
  if [[ " $known " != *" $name "* ]]; then
    echo "experiments.sh: '$name' is none of: $known, all" >&2
    exit 2
  fi
done

# The embedded task where a check repeats the first pass and mends nothing (mending=0): reflection
# only costs length, and the slips themselves have to be unlearnt. 128 responses a step; 24 steps,
# reincarnation after 12, lambda's schedule shortened to match.
study="--model tiny:mending=0 --data tiny --prompt plain --max_prompt_tokens 64 --max_tokens 128 \
--tokens_per_micro_batch 2048 --critic_lr 1e-3 --engine hf --steps 24 --reincarnation_step 12 \
--kl_convex schedule:4,2 --eval_every 12 --eval_n 2"
ppo="$study --algo ppo --prompts_per_step 128 --mini_batch 32"
grpo="$study --algo grpo --prompts_per_step 16 --group_size 8 --mini_batch 4"
plain="--off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0" # PPO or GRPO
equals=$OUT/whipping/equals.txt # another prompt: the problem and an equals sign

add() { jobs+=("$experiment $1 $seed ${*:2} --seed $seed"); } # NAME FLAGS

# The learning rate of every method, the same budget each: three rates, 12 steps, a seed of its own.
tune() {
  local loss short="--steps 12 --reincarnation_step 6 --kl_convex schedule:2,1 --eval_every 4"
  at_three() { # NAME ALGORITHM FLAGS
    local rate
    for rate in 1e-4 3e-4 1e-3; do add "$1-lr$rate" "$2" "$short" --lr $rate "${@:3}"; done
  }
  at_three remix-ppo "$ppo"
  at_three remix-grpo "$grpo"
  at_three ppo "$ppo" "$plain"
  at_three grpo "$grpo" "$plain"
  at_three no-utd "$ppo" --utd_ratio 1
  at_three no-kl-convex "$ppo" --kl_convex off
  at_three no-reincarnation "$ppo" --reincarnation_step 0
  at_three mix-ppg "$ppo" --utd_ratio 1 --kl_convex off --reincarnation_step 0
  for loss in $losses; do at_three "loss-$loss" "$grpo" --loss "$loss"; done
  replays at_three
}

# ReMix-PPO and ReMix-GRPO against PPO and GRPO, each at its own rate, about 2,450 rollouts each.
methods() {
  local m algo
  add remix-ppo "$ppo" --eval_every 2 --lr "${lr[remix-ppo]}"
  add remix-grpo "$grpo" --eval_every 2 --lr "${lr[remix-grpo]}"
  add ppo "$ppo" --eval_every 2 --steps 19 --lr "${lr[ppo]}" "$plain"
  add grpo "$grpo" --eval_every 2 --steps 19 --lr "${lr[grpo]}" "$plain"
  # The one run of tuning put PPO at 1e-3 by a hair; over five seeds it is less steady there.
  add ppo-lr3e-4 "$ppo" --eval_every 2 --steps 19 --lr 3e-4 "$plain"
  # The control, as many passes without replay: 7 steps sample what ReMix's 12 mixing steps do, then
  # m = 1
  for m in 2 3; do
    for algo in ppo grpo; do
      add "$algo-m$m" "${!algo}" --eval_every 2 --lr 3e-4 --off_policy_ratio 0 --utd_ratio $m \
        --kl_convex off --reincarnation_step 7 --steps 19
    done
  done
}

# The paper's ablation of ReMix-PPO, each variant at its own rate (the full method: methods).
ablation() {
  add no-utd "$ppo" --eval_every 4 --utd_ratio 1 --lr "${lr[no-utd]}"
  add no-kl-convex "$ppo" --eval_every 4 --kl_convex off --lr "${lr[no-kl-convex]}"
  add no-reincarnation "$ppo" --eval_every 4 --reincarnation_step 0 --lr "${lr[no-reincarnation]}"
  add mix-ppg "$ppo" --eval_every 4 --utd_ratio 1 --kl_convex off --reincarnation_step 0 \
    --lr "${lr[mix-ppg]}"
}

# One setting of ReMix-PPO at a time, at the full method's rate; all rows of one machine, because
# another processor makes a slightly different base model.
settings() {
  local p m T N weight beta rate="--lr ${lr[remix-ppo]}"
  add default "$ppo" $rate
  for p in 0.1 0.2 0.3 0.5; do # 925 rollouts is another step for each
    add "p$p" "$ppo" $rate --off_policy_ratio $p --eval_every 2
  done
  for m in 1 3 4; do add "m$m" "$ppo" $rate --utd_ratio $m; done
  for T in 4 18; do add "T$T" "$ppo" $rate --reincarnation_step $T --eval_every 2; done
  # 32 steps: as many rollouts as the others, none of its steps samples 128
  add Tnever "$ppo" $rate --reincarnation_step 0 --steps 32 --eval_every 4
  for N in 1 3 4; do add "N$N" "$ppo" $rate --replay_window $N; done
  for weight in 0 0.5 1; do add "lambda$weight" "$ppo" $rate --kl_convex $weight; done
  add precedent-current "$ppo" $rate --precedent current
  # beta = 0.001 is the paper's and hardly counts beside the policy loss: what if it does?
  for beta in 0.01 0.1; do
    add "beta$beta" "$ppo" $rate --kl_coef $beta
    add "beta$beta-no-kl-convex" "$ppo" $rate --kl_coef $beta --kl_convex off
  done
}

# The clip: Mix-PPG's moving centre (methods) against the behaviour policy as centre, AReaL's
# decoupled form, GePPO's width and V-trace, at the full method's rate.
clip() {
  local rate="--lr ${lr[remix-ppo]}"
  add ppo "$ppo" $rate --loss ppo
  add decoupled_ppo "$ppo" $rate --loss decoupled_ppo
  add geppo "$ppo" $rate --geppo_clip
  add vtrace "$ppo" $rate --vtrace
}

# Other methods in ReMix-GRPO's place, each at its own rate: the losses of siblings.py, other ways
# to replay (repo needs prompts that come back: 32 problems, beside the window on the same), a lag,
# a nested sampler.
siblings() {
  local loss
  # What tune has no run of yet: ReMix-GRPO's rate
  sibling() { add "$1" "${@:2}" --lr "${lr[$1]:-${lr[remix-grpo]}}"; }
  for loss in $losses; do sibling "loss-$loss" "$grpo" --loss "$loss"; done
  replays sibling
  add lag2 "$grpo" --sampler_lag 2 --lr "${lr[remix-grpo]}"
  add lag2-loss-ppo "$grpo" --sampler_lag 2 --loss ppo --lr "${lr[loss-ppo]}"
  # As in its paper: only in the places of groups without contrast, and as many rollouts
  add popo-p0 "$grpo" --replay popo --replay_window 5 --loss decoupled_ppo --off_policy_ratio 0 \
    --reincarnation_step 0 --steps 19 --eval_every 7 --lr "${lr[remix-grpo]}"
  add skipped1 "$grpo" --skipped_layers 1 --lr "${lr[remix-grpo]}" # of three
}
replays() { # WHAT ADDS
  $1 replay-repo "$grpo" --replay repo --limit 32
  $1 replay-window "$grpo" --limit 32
  $1 replay-buffer_matters "$grpo" --replay buffer_matters --replay_window 5
  $1 replay-on_policyness "$grpo" --replay on_policyness --replay_window 5
  $1 replay-advantage "$grpo" --replay advantage --replay_window 10
  $1 replay-popo "$grpo" --replay popo --replay_window 5 --loss decoupled_ppo
}

# The whipping effect: length, reflection and the ratio along the response with and without replay
# (both m = 2), under a length limit, and with another prompt. No reincarnation, one rate for all.
whipping() {
  local p common="$ppo --steps 16 --eval_every 8 --reincarnation_step 0 --kl_convex off"
  common+=" --utd_ratio 2 --lr ${lr[remix-ppo]}"
  for p in 0 0.5; do
    add "p$p" "$common" --off_policy_ratio $p
    add "p$p-limit40" "$common" --off_policy_ratio $p --max_tokens 40
    add "p$p-equals" "$common" --off_policy_ratio $p --prompt $equals --format r1
  done
}

# Adapters of rank 16 against all weights, on one machine. Their rate is three times: ten times, as
# in lora.py's source, was too much in a short try.
lora() {
  local algo
  for algo in ppo grpo; do
    add "remix-$algo" "${!algo}" --eval_every 4 --lr 3e-4
    add "remix-$algo-rank16" "${!algo}" --eval_every 4 --lr 1e-3 --critic_lr 3e-3 --lora_rank 16
  done
}

# A language model of 135M, by its recipe: ReMix-GRPO, GRPO, and GRPO with as many passes in the
# first phase; two rates each, about 2,450 rollouts.
smollm() {
  local rate common="--recipe smollm --algo grpo ${SMOLLM:+--model $SMOLLM} --engine hf"
  common+=" --tokens_per_micro_batch 2048 --save_every 1000"
  for rate in 2e-6 5e-6; do
    add "remix-lr$rate" "$common" --lr $rate
    add "grpo-m3-lr$rate" "$common" --lr $rate --off_policy_ratio 0 --utd_ratio 3 \
      --kl_convex off --reincarnation_step 7 --steps 19
    add "grpo-lr$rate" "$common" --lr $rate --steps 19 "$plain"
  done
}

# How often may a response be used? u passes over each, 900 responses, 28 u gradient steps, one rate:
# passes over fresh data alone (m = u), or replay (m = 2, p = 1 - 2 / u, N as large as it takes) by
# Mix-PPG, PPO's clip around pi_b, the decoupled form, and Mix-PPG with more KL-Convex.
reuse() {
  local u p N steps beta common="$ppo --lr 3e-4 --reincarnation_step 0 --no_eval_first --eval_n 8"
  for u in 1 2 3 5 8 12; do
    add "passes$u" "$common" --steps 7 --eval_every 4 --off_policy_ratio 0 --utd_ratio $u \
      --kl_convex off
  done
  while read -r u p N steps; do
    replayed() { # NAME FLAGS
      add "$1" "$common" --steps $steps --eval_every $((steps / 2)) --off_policy_ratio $p \
        --kl_convex off --replay_window $N "${@:2}"
    }
    replayed "replay$u"
    replayed "replay$u-ppo" --loss ppo
    replayed "replay$u-decoupled_ppo" --loss decoupled_ppo
    for beta in 0.01 0.1; do
      replayed "replay$u-beta$beta" --kl_coef $beta --kl_convex schedule:$((steps / 3)),$((steps / 6))
    done
    [ $u != 8 ] || replayed "replay$u-N6" --replay_window 6
  done <<< "3.3 0.4 2 12
5 0.6 2 18
8 0.75 3 28
12 0.8333333333333333 5 42"
}

declare -A lr=() seeds=([tune]=100 [methods]="0 1 2 3 4" [ablation]="0 1 2 3 4"
  [whipping]="0 1 2 3 4" [siblings]="0 1 2" [settings]="0 1 2" [clip]="0 1 2" [lora]="0 1 2"
  [smollm]="0 1" [reuse]="0 1 2")

one_run() { # EXPERIMENT NAME SEED FLAGS...
  local experiment=$1 name=$2 seed=$3 folder=$OUT/$1/$2-seed$3 log=$OUT/$1/logs/$2-seed$3.txt
  shift 3
  grep -qs "^{\"name\":\"$name\",\"seed\":$seed," "$RUNS/$experiment.jsonl" && return
  mkdir -p "${log%/*}"
  exec 9>> "$log"
  flock -n 9 || { echo "$name-seed$seed: another shell is at it"; return; }
  echo "\$ python remix.py $* --out $folder" >> "$log"
  $python remix.py "$@" --out "$folder" >> "$log" 2>&1 9>&- ||
    { echo "$name-seed$seed FAILED: see $log"; return; }
  flock "$OUT/lock" $python runs/collect.py "$RUNS/$experiment.jsonl" "$folder"
  rm -rf "$folder/checkpoints" "$folder/model" "$folder/curve.png"
  echo "$name-seed$seed: $(grep 'pass@1' "$log" | tail -n 1)"
}
export -f one_run

[ -n "${DRY:-}${PYTHON:-}" ] || bash install.sh
losses=$($python -c "from siblings import LOSSES; print(*LOSSES)")
if [ -z "${DRY:-}" ]; then
  mkdir -p "${equals%/*}" && printf '{problem} =' > "$equals"
  # the base model once, not by every run
  $python -c "import tiny; tiny.make_base_model(settings=tiny.named('tiny:mending=0'))"
fi
for experiment in "$@"; do # one after the other: tune finds the others' learning rates
  own=${seeds[$experiment]} jobs=()
  if [ "$experiment" = tune ]; then
    lr=()
  else
    own=${SEEDS:-$own}
    [ ${#lr[@]} -gt 0 ] ||
      while read -r method rate; do lr[$method]=$rate; done < <($python runs/best_lr.py)
  fi
  for seed in $own; do "$experiment"; done
  if [ -n "${DRY:-}" ]; then
    while read -r _ name seed flags; do
      echo "python remix.py $flags --out $OUT/$experiment/$name-seed$seed"
    done < <(printf '%s\n' "${jobs[@]}")
  else
    printf '%s\n' "${jobs[@]}" |
      xargs -P "${JOBS:-1}" -I{} bash -c "set -euo pipefail; one_run {}"
  fi
done
