#!/usr/bin/env bash
# Installs, counts GPUs, launches:  bash train.sh [RECIPE] [flags of remix.py, which override it]
#
#   bash train.sh                        ReMix-PPO on the embedded task, on a CPU, in minutes
#   bash train.sh compare                the same beside PPO, and PPO with as many passes; a figure
#   bash train.sh tiny --algo grpo       flags pass through
#   bash train.sh 1.5b                   the paper's ReMix-PPO; 7b, and 32b for 4 nodes of 8 GPUs
#   bash train.sh 1.5b-lora              adapters, for one GPU of 24 GB; 7b-lora for one of 80 GB
#
# NPROC=8 ranks (default: one for each GPU that PyTorch sees, else 1); several nodes, on each:
# TORCHRUN="--nnodes 2 --rdzv_backend c10d --rdzv_endpoint HOST:29500" (Slurm: examples/slurm.sh).
# The same command goes on where a run stopped; other flags want another --out. Ctrl-C or SIGTERM:
# the step ends and is saved (exit status 130 or 143). The recipes are a table in config.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bash "$here/install.sh"
python=$here/.venv/bin/python

recipe=tiny
case "${1:-}" in "" | -*) ;; *) recipe=$1 && shift ;; esac

launch() {
  "$python" "$here/config.py" "$@" > /dev/null # a slip is said once and at once, not by every rank
  gpus=$("$python" -c "import torch; print(torch.cuda.device_count())")
  nproc=${NPROC:-$((gpus > 0 ? gpus : 1))}
  if [ "$nproc" -gt 1 ] || [ -n "${TORCHRUN:-}" ]; then
    # A signal lets the step end and be saved, but torchrun kills after 30 s: more, for long steps
    # shellcheck disable=SC2086
    $run "$here/.venv/bin/torchrun" --nproc_per_node "$nproc" --shutdown_timeout 2400 \
      ${TORCHRUN:-} "$here/remix.py" "$@"
  else
    $run "$python" "$here/remix.py" "$@"
  fi
}

if [ "$recipe" = tiny ] || [ "$recipe" = compare ]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # more threads are slower at this size
fi
run=exec # a scheduler's signal then reaches Python, not this shell
[ "$recipe" = compare ] || launch --recipe "$recipe" "$@"
run=
# About as many responses each. m = 3 while ReMix would mix: its m / (1 - p) = 3.3 passes a response
plain="--off_policy_ratio 0 --kl_convex off --steps 19"
out=out/compare
launch --recipe tiny --out $out/remix "$@"
launch --recipe tiny --out $out/on-policy $plain --utd_ratio 1 --reincarnation_step 0 "$@"
launch --recipe tiny --out $out/on-policy-3-passes $plain --utd_ratio 3 --reincarnation_step 7 "$@"
"$python" "$here/plot.py" $out/remix $out/on-policy $out/on-policy-3-passes --out $out/compare.png
