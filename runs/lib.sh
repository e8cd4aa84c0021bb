# Sourced by the scripts beside it: run_jobs FOLDER JOB... runs each "NAME FLAGS..." through train.sh, JOBS at a time.
# A job whose log says that it is done is skipped; one that was killed goes on. Small and raw is what stays:
# FOLDER/NAME/{config.json,metrics.jsonl} and FOLDER/logs/NAME.txt.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash install.sh
.venv/bin/python base_model.py > /dev/null # once, not by every run

plain="--off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0" # PPO or GRPO

one_job() {
  folder=$1 name=$2
  shift 2
  mkdir -p "$folder/logs"
  log="$folder/logs/$name.txt"
  grep -q "^done: " "$log" 2> /dev/null && exit 0
  echo "\$ bash train.sh tiny $* --out $folder/$name" >> "$log"
  bash train.sh tiny "$@" --out "$folder/$name" >> "$log" 2>&1
  rm -rf "$folder/$name/checkpoints" "$folder/$name/model" "$folder/$name/curve.png"
  echo "$name: $(grep 'pass@1' "$log" | tail -n 1)"
}
export -f one_job

run_jobs() {
  local folder=$1
  shift
  printf '%s\n' "$@" | xargs -P "${JOBS:-1}" -I{} bash -c "set -euo pipefail; one_job $folder {}"
}
