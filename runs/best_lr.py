"""The learning rate of each method: the highest mean pass@1 over the evaluations of its tuning run.

python runs/best_lr.py    a line NAME RATE for each method of runs/tune.jsonl
"""

import sys
from pathlib import Path
from statistics import fmean

RUNS = Path(__file__).resolve().parent
sys.path.insert(0, str(RUNS.parent))
from plot import read_experiment  # noqa: E402


def scores() -> dict[str, dict[str, float]]:
    """method -> learning rate, as it was written -> mean pass@1 of the run."""
    found: dict[str, dict[str, float]] = {}
    for name, [(rows, _)] in read_experiment(RUNS / "tune.jsonl").items():
        method, _, lr = name.rpartition("-lr")
        passes = [row["eval/pass@1"] for row in rows.values() if "eval/pass@1" in row]
        found.setdefault(method, {})[lr] = fmean(passes)
    return found


def best(of_method: dict[str, float]) -> str:
    return max(of_method, key=lambda lr: of_method[lr])


if __name__ == "__main__":
    for method, of_method in scores().items():
        print(method, best(of_method))
