#!/usr/bin/env bash
# Runs the tests in the project's .venv (made when it is not there), two at a time:
#
#   bash tests/run.sh                        all of them
#   bash tests/run.sh --fast                 those of under two minutes together
#   bash tests/run.sh tests/test_loss.py -x  these alone; pytest's flags pass through
set -euo pipefail
cd "$(dirname "$0")/.."
bash install.sh
stamp=.venv/installed-tests-$(cksum < requirements-tests.txt | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  .venv/bin/uv pip install -q --python .venv/bin/python -r requirements-tests.txt
  touch "$stamp"
fi
export OMP_NUM_THREADS=1
export PYTHONDONTWRITEBYTECODE= # or, where it is set, every process compiles vLLM anew
args=() where=(tests)
for arg in "$@"; do
  case "$arg" in
    --fast) args+=(-m "not slow") ;;
    *) args+=("$arg") && [ ! -e "${arg%%::*}" ] || where=() ;;
  esac
done
.venv/bin/python -m pytest -q -n 2 --dist worksteal "${where[@]}" "${args[@]}"
.venv/bin/ruff check -q .
.venv/bin/ruff format -q --check .
