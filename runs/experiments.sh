#!/usr/bin/env bash
# The experiments of docs/results.md, each run a line in runs/NAME.jsonl:
#
#   bash runs/experiments.sh NAME...   tune methods variants paper reuse clip siblings whipping lora
#                                      smollm, or all
#
# Runs whose line is there are skipped, killed ones go on (TRL's begin again). Run folders are
# out/experiments/NAME/RUN, what they printed is in its logs/. Then `python runs/report.py` makes
# every table and figure. JOBS=2 runs two at a time; SEEDS="0 1" takes other seeds; RUNS=out/again
# collects there and not in runs/, so it makes the runs again (at the rates of runs/tune.jsonl);
# DRY=1 prints the commands and runs nothing. PYTHON=python3 runs with that one and installs nothing
# but, for the rows trl-* of tune and siblings, TRL into out/ (it needs uv beside it). SMOLLM=FOLDER
# has the language model of smollm (runs/smollm.py makes it).
set -euo pipefail
cd "$(dirname "$0")/.."
known="tune methods variants paper reuse clip siblings whipping lora smollm"
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
common="--data tiny --prompt plain --max_prompt_tokens 64 --max_tokens 128 \
--tokens_per_micro_batch 2048 --critic_lr 1e-3 --engine hf"
study="--model tiny:mending=0 $common --steps 24 --reincarnation_step 12 --kl_convex schedule:4,2 \
--eval_every 12 --eval_n 2"
ppo="$study --algo ppo --prompts_per_step 128 --mini_batch 32"
grpo="$study --algo grpo --prompts_per_step 16 --group_size 8 --mini_batch 4"
# The paper's own schedule, on a quarter of its batch. Nine carries in ten are forgotten here, not
# five (variants).
paper="--model tiny:mending=0,slip_rate=0.9 $common --steps 350 --reincarnation_step 100 \
--eval_every 25 --eval_n 2 --algo ppo --prompts_per_step 64 --mini_batch 16"
plain="--off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0" # PPO or GRPO
passes="--off_policy_ratio 0 --kl_convex off --utd_ratio" # the control: m of them, no replay
# TRL's own trainers, the outside rows: GRPO, and GRPO with its replay buffer (up to TRL 1.13), from
# tiny:mending=0. The KL is GRPO's here: to the base model, with this project's default weight.
trl="--model models/tiny-ab3c3ed703 --prompts 16 --updates 4 --micro 32 --beta 0.001"
trl+=" --eval_limit 200"
export trl_version=1.13.0
held_out=$OUT/held_out.jsonl # what tune measures on: problems that no other experiment evaluates
equals=$OUT/equals.txt       # another prompt: the problem and an equals sign

add() { # NAME FLAGS
  local with="python remix.py"
  [[ $1 != trl-* ]] || with="out/trl-$trl_version-venv/bin/python benchmarks/trl_side.py"
  jobs+=("$experiment $1 $seed $with ${*:2} --seed $seed")
}

# The learning rate of every method, the same budget each: three rates, 12 steps (60 of the paper's
# schedule), a seed of its own, measured on 200 training problems that these runs do not train on.
tune() {
  local m loss algo own="--limit 3800 --eval_data $held_out --eval_n 4 --no_eval_first"
  local short="--steps 12 --reincarnation_step 6 --kl_convex schedule:2,1 --eval_every 4 $own"
  at_three() { # NAME ALGORITHM FLAGS
    local rate
    for rate in 1e-4 3e-4 1e-3; do add "$1-lr$rate" "$2" "$short" --lr $rate "${@:3}"; done
  }
  for algo in ppo grpo; do
    at_three "remix-$algo" "${!algo}"
    at_three "$algo" "${!algo}" "$plain"
    for m in 2 3 4; do
      at_three "$algo-m$m" "${!algo}" "$passes $m" --reincarnation_step 4
    done
  done
  for loss in $losses; do at_three "loss-$loss" "$grpo" --loss "$loss"; done
  replays at_three
  at_three skipped1 "$grpo" --skipped_layers 1
  short="--steps 12 --eval_every 4 --eval_n 4 --limit 3800 --eval_data $held_out"
  at_three trl-grpo "$trl"
  at_three trl-replay_buffer "$trl" --replay_buffer 64
  # A variant of the paper's schedule has the rate of the one that it does not differ from so early
  short="--steps 60 --eval_every 20 $own"
  at_three paper "$paper"
  at_three paper-no-utd "$paper" --utd_ratio 1
  at_three paper-ppo "$paper" "$plain"
  for m in 2 3; do at_three paper-ppo-m$m "$paper" "$passes $m" --reincarnation_step 0; done
}

# ReMix-PPO and ReMix-GRPO against PPO and GRPO, each at its own rate, about 2,450 rollouts each.
# The control makes m passes without replay: 7 steps sample about what ReMix's 12 mixing steps do
# (896 and 921 responses), then m = 1.
methods() {
  local m algo
  for algo in ppo grpo; do
    add "remix-$algo" "${!algo}" --eval_every 2 --lr "${lr[remix-$algo]}"
    add "$algo" "${!algo}" --eval_every 2 --steps 19 --lr "${lr[$algo]}" "$plain"
    for m in 2 3 4; do
      add "$algo-m$m" "${!algo}" --eval_every 2 --steps 19 --lr "${lr[$algo-m$m]}" \
        "$passes $m" --reincarnation_step 7
    done
  done
}

# The task of the paper's schedule, looked for with PPO alone: it must leave room after 350 steps.
variants() { add slip0.9 "$paper" "$plain" --lr 3e-4; }

# The paper's ablation on the paper's schedule: p = 0.4, N = 2, m = 2, T = 100 (and 50), lambda from
# 1 to 0.5 over steps 51 to 91, 350 steps.
paper() {
  local utd="--utd_ratio 1 --lr ${lr[paper-no-utd]}" rate="--lr ${lr[paper]}"
  add full "$paper" $rate
  add T50 "$paper" $rate --reincarnation_step 50
  add no-utd "$paper" $utd
  add no-kl-convex "$paper" $rate --kl_convex off
  add no-reincarnation "$paper" $rate --reincarnation_step 0
  add mix-ppg "$paper" $utd --kl_convex off --reincarnation_step 0
  # tune chose another rate for replay with m = 1: at the full method's, too
  add no-utd-full-rate "$paper" $rate --utd_ratio 1
  add mix-ppg-full-rate "$paper" $rate --utd_ratio 1 --kl_convex off --reincarnation_step 0
  add ppo "$paper" "$plain" --lr "${lr[paper-ppo]}"
  add ppo-m2 "$paper" "$passes 2" --reincarnation_step 0 --lr "${lr[paper-ppo-m2]}"
  # 60 steps sample what the 100 mixing ones do
  add ppo-m3 "$paper" "$passes 3" --reincarnation_step 60 --lr "${lr[paper-ppo-m3]}"
}

# ReMix-PPO's clip: around the behaviour policy, AReaL's decoupled form, GePPO's width; V-trace.
clip() {
  local loss rate="--lr ${lr[remix-ppo]}"
  for loss in ppo decoupled_ppo; do add "$loss" "$ppo" $rate --loss $loss; done
  add geppo "$ppo" $rate --geppo_clip
  add vtrace "$ppo" $rate --vtrace
}

# Other methods in ReMix-GRPO's place, each at its own rate: the losses of siblings.py, other ways
# to replay (repo needs prompts that come back: 32 problems, beside the window on the same), a lag,
# a nested sampler; and TRL's.
siblings() {
  local loss short="--steps 19 --eval_every 7 --eval_first" # of TRL's
  sibling() { add "$1" "${@:2}" --lr "${lr[$1]}"; }
  for loss in $losses; do sibling "loss-$loss" "$grpo" --loss "$loss"; done
  replays sibling
  add lag2 "$grpo" --sampler_lag 2 --lr "${lr[remix-grpo]}"
  add lag2-loss-ppo "$grpo" --sampler_lag 2 --loss ppo --lr "${lr[loss-ppo]}"
  # As in its paper: only in the places of groups without contrast, and as many rollouts
  add popo-p0 "$grpo" --replay popo --replay_window 5 --loss decoupled_ppo --off_policy_ratio 0 \
    --reincarnation_step 0 --steps 19 --eval_every 7 --lr "${lr[replay-popo]}"
  sibling skipped1 "$grpo" --skipped_layers 1 # of three
  sibling trl-grpo "$trl" "$short"
  sibling trl-replay_buffer "$trl" "$short" --replay_buffer 64
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
# (both m = 2), as the task is and with another prompt. No reincarnation, one rate for all.
whipping() {
  local p whipping="$ppo --steps 16 --eval_every 8 --reincarnation_step 0 --kl_convex off"
  whipping+=" --utd_ratio 2 --lr ${lr[remix-ppo]}"
  for p in 0 0.5; do
    add "p$p" "$whipping" --off_policy_ratio $p
    add "p$p-equals" "$whipping" --off_policy_ratio $p --prompt $equals --format r1
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
# first phase, about 2,450 rollouts. Three seeds at the recipe's rate, fewer at those around it.
smollm() {
  local rate smollm="--recipe smollm --algo grpo ${SMOLLM:+--model $SMOLLM} --engine hf"
  local -A rates=([0]="5e-6 2e-6 1e-5" [1]="5e-6 2e-6")
  smollm+=" --tokens_per_micro_batch 2048 --save_every 1000"
  for rate in ${rates[$seed]:-5e-6}; do
    add "remix-lr$rate" "$smollm" --lr $rate
    add "grpo-m3-lr$rate" "$smollm" --lr $rate --off_policy_ratio 0 --utd_ratio 3 \
      --kl_convex off --reincarnation_step 7 --steps 19
    add "grpo-lr$rate" "$smollm" --lr $rate --steps 19 "$plain"
  done
}

# How often may a response be used? u passes over each, 900 responses, about 28 u gradient steps,
# one rate: passes over fresh data alone (m = u), or replay (m = 2, p = 1 - 2 / u, N as large as it
# takes) by Mix-PPG, PPO's clip around pi_b, the decoupled form, and Mix-PPG with more KL-Convex or
# with reincarnation half-way and at the end.
reuse() {
  local u p N steps T beta fresh reuse="$ppo --lr 3e-4 --reincarnation_step 0"
  reuse+=" --no_eval_first --eval_n 8"
  for u in 1 2 3 5 8 12; do
    fresh="$reuse --steps 7 --eval_every 4 --off_policy_ratio 0 --utd_ratio $u"
    add "passes$u" "$fresh" --kl_convex off
    [ $u -lt 3 ] || add "passes$u-beta0.1" "$fresh" --kl_coef 0.1 --kl_convex schedule:2,1
  done
  while read -r u p N steps; do
    replayed() { # NAME FLAGS
      add "$1" "$reuse" --steps $steps --eval_every $((steps / 2)) --off_policy_ratio $p \
        --kl_convex off --replay_window $N "${@:2}"
    }
    replayed "replay$u"
    replayed "replay$u-ppo" --loss ppo
    replayed "replay$u-decoupled_ppo" --loss decoupled_ppo
    for beta in 0.01 0.1; do
      replayed "replay$u-beta$beta" --kl_coef $beta \
        --kl_convex schedule:$((steps / 3)),$((steps / 6))
    done
    [ $u != 8 ] || replayed "replay$u-N6" --replay_window 6
    [[ $u == [35]* ]] || for T in $((steps * 3 / 7)) $steps; do # then four on-policy steps
      replayed "replay$u-T$T" --reincarnation_step $T --steps $((T + 4)) --eval_every $((T / 2))
    done
  done <<< "3.3 0.4 2 12
5 0.6 2 18
8 0.75 3 28
12 0.8333333333333333 5 42"
}

declare -A lr=() seeds=([tune]=100 [methods]="0 1 2 3 4" [variants]=0 [paper]="0 1 2"
  [reuse]="0 1 2" [clip]="0 1 2" [siblings]="0 1 2" [whipping]="0 1 2 3 4" [lora]="0 1 2"
  [smollm]="0 1 2")

one_run() { # EXPERIMENT NAME SEED PYTHON SCRIPT FLAGS...
  local experiment=$1 name=$2 seed=$3 folder=$OUT/$1/$2-seed$3 log=$OUT/$1/logs/$2-seed$3.txt
  local samples with=$4
  shift 4
  grep -qs "^{\"name\":\"$name\",\"seed\":$seed," "$RUNS/$experiment.jsonl" && return
  mkdir -p "${log%/*}"
  exec 9>> "$log"
  flock -n 9 || { echo "$name-seed$seed: another shell is at it"; return; }
  echo "\$ $with $* --out $folder" >> "$log"
  if [ "$with" = python ]; then
    with=$python
  else # offline: TRL would ask a hub for what is in its folder
    flock "$OUT/lock" $python -c "import sys; sys.path.insert(0, 'benchmarks')
import vs_trl; vs_trl.make_venv('$trl_version')" >> "$log" 2>&1 9>&- && export HF_HUB_OFFLINE=1 ||
      { echo "$name-seed$seed FAILED: no TRL, see $log"; return; }
  fi
  $with "$@" --out "$folder" >> "$log" 2>&1 9>&- ||
    { echo "$name-seed$seed FAILED: see $log"; return; }
  [ "$experiment" != smollm ] || samples=--samples
  flock "$OUT/lock" $python runs/collect.py "$RUNS/$experiment.jsonl" "$folder" ${samples:-}
  rm -rf "$folder/checkpoints" "$folder/model" "$folder/curve.png"
  echo "$name-seed$seed: $(grep 'pass@1' "$log" | tail -n 1)"
}
export -f one_run

[ -n "${DRY:-}${PYTHON:-}" ] || bash install.sh
losses=$($python -c "from siblings import LOSSES; print(*LOSSES)")
if [ -z "${DRY:-}" ]; then
  mkdir -p $OUT && printf '{problem} =' > "$equals"
  $python -c "import json, tiny
for row in tiny.embedded_problems('train')[-200:]: print(json.dumps(row))" > "$held_out"
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
      echo "$flags --out $OUT/$experiment/$name-seed$seed"
    done < <(printf '%s\n' "${jobs[@]}")
  else
    printf '%s\n' "${jobs[@]}" |
      xargs -P "${JOBS:-1}" -I{} bash -c "set -euo pipefail; one_run {}"
  fi
done
