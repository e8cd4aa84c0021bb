#!/usr/bin/env bash
# Every experiment in order; what is there is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
for name in tune methods siblings ablation clip settings whipping; do
  bash "runs/$name.sh"
done
.venv/bin/python runs/report.py
