#!/usr/bin/env bash
# train.sh on several nodes under Slurm; behind it train.sh's arguments. From the checkout:
#
#   sbatch examples/slurm.sh 7b --algo grpo --out /shared/7b-grpo
#   sbatch --nodes 4 examples/slurm.sh 32b --out /shared/32b
#
# Before the time is over the step ends and is saved, and the job is queued again. After a failure
# submit the same line: the run goes on from its last checkpoint. More: docs/scaling.md
#SBATCH --job-name=remix
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@2700
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
: "${SLURM_JOB_ID:?is not set; start this with sbatch, as its first lines show}"
# export HF_HOME=/shared/huggingface HF_HUB_OFFLINE=1   # nodes without network
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0  # nodes with several networks

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# train.sh waits 2,400 of the 2,700 s above for a step and its checkpoint
export TORCHRUN="--nnodes $SLURM_JOB_NUM_NODES --rdzv_backend c10d --rdzv_id $SLURM_JOB_ID
  --rdzv_endpoint $first:$((20000 + SLURM_JOB_ID % 10000))
  --tee 3 --local_ranks_filter 0 --log_dir out/logs/$SLURM_JOB_ID-node"

asked=
ask() { # the tasks alone, and once: a second SIGTERM would end them without a save
  [ -n "$asked" ] || scancel --signal=TERM "$SLURM_JOB_ID"
  asked=1 again=1
}
trap ask USR1
# shellcheck disable=SC2016
srun --cpu-bind=none --kill-on-bad-exit=1 \
  bash -c 'TORCHRUN+=$SLURM_NODEID; exec bash train.sh "$@"' _ "$@" & # exec: the task is torchrun
tasks=$! again=1
while [ -n "$again" ]; do # USR1 ends a wait, not the tasks
  again= status=0
  wait $tasks || status=$?
done
[ -z "$asked" ] || [ $status = 0 ] || scontrol requeue "$SLURM_JOB_ID"
exit $status
