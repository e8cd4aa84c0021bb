#!/usr/bin/env bash
# Runs all tests in the project's .venv (made when it is not there), two at a time:  bash tests/run.sh [pytest's flags]
set -euo pipefail
cd "$(dirname "$0")/.."
bash install.sh
export OMP_NUM_THREADS=1
.venv/bin/ruff check -q .
.venv/bin/ruff format -q --check .
exec .venv/bin/python -m pytest -q -n 2 --dist worksteal tests "$@"
