#!/usr/bin/env bash
# Train with ReMix:  bash train.sh [tiny | 1.5b | 7b | 32b] [flags of remix.py, which override the recipe's]
#
#   bash train.sh                               the embedded small model and task on a CPU, in minutes (ReMix-PPO)
#   bash train.sh tiny --algo grpo --steps 50   flags pass through
#   bash train.sh 1.5b                          the paper's ReMix-PPO at 1.5B: DeepSeek-R1-Distill-Qwen on DeepScaleR
#   bash train.sh 7b --algo grpo                ReMix-GRPO at 7B, 8 GPUs; 32b: 4 nodes of 8
#
# NPROC=8 ranks (default: one for each GPU that PyTorch sees, else 1); several nodes: TORCHRUN="--nnodes 2 --rdzv_backend c10d
# --rdzv_endpoint HOST:29500" on each. The same command goes on where a run stopped; other flags want another --out.
set -euo pipefail
cd "$(dirname "$0")"
bash install.sh

recipe=tiny
case "${1:-}" in tiny | 1.5b | 7b | 32b) recipe=$1; shift ;; esac
algo=ppo seed=0 out=
for ((i = 1; i <= $#; i++)); do  # what the recipe itself depends on
  next=$((i + 1))
  case "${!i}" in
    --algo=* | --seed=* | --out=*) arg=${!i#--}; declare "${arg%%=*}=${arg#*=}" ;;
    --algo | --seed | --out) name=${!i#--}; declare "$name=${!next:-}" ;;
  esac
done
out=${out:-out/$recipe-$algo-seed$seed}

if [ "$recipe" = tiny ]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # more threads are slower at this size
  flags=(--model tiny --data tiny --prompt plain --max_prompt_tokens 64 --max_tokens 128
    --tokens_per_micro_batch 2048 --lr 1e-5 --critic_lr 1e-3 --steps 80 --reincarnation_step 30 --eval_every 4)
  case $algo in # 128 responses a step either way
    grpo) flags+=(--prompts_per_step 16 --group_size 8 --mini_batch 4) ;;
    *) flags+=(--prompts_per_step 128 --mini_batch 32) ;;
  esac
else # remix.py's defaults, which are the paper's, and what differs with algorithm and size. 1.5b: T and steps of its runs;
  # 7b: its T, longer than its 75 steps with PPO; 32b is not in the paper
  flags=(--model "deepseek-ai/DeepSeek-R1-Distill-Qwen-${recipe^^}" --gradient_checkpointing --behaviour_logp trainer
    --eval_data HuggingFaceH4/MATH-500 --eval_limit 200 --eval_every 25)
  case $algo in
    grpo) flags+=(--reincarnation_step 50 --steps 200) ;;
    *) flags+=(--reincarnation_step 100 --steps 350) ;;
  esac
  case $recipe in # memory: docs/scaling.md
    1.5b) flags+=(--gpu_memory 0.3) ;;
    7b) flags+=(--steps 200 --reincarnation_step 50) ;;
    32b) flags+=(--steps 200 --reincarnation_step 50 --shard all --tensor_parallel 4) ;;
  esac
fi

gpus=$(.venv/bin/python -c "import torch; print(torch.cuda.device_count())")
nproc=${NPROC:-$((gpus > 0 ? gpus : 1))}
run=(.venv/bin/python remix.py)
if [ "$nproc" -gt 1 ] || [ -n "${TORCHRUN:-}" ]; then
  # shellcheck disable=SC2086
  run=(.venv/bin/torchrun --nproc_per_node "$nproc" ${TORCHRUN:-} remix.py)
fi
exec "${run[@]}" "${flags[@]}" --out "$out" "$@"
