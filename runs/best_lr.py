"""The learning rate that runs/tune.sh found for a method: the highest mean of pass@1 over the evaluations of its run.

python runs/best_lr.py NAME
"""

import json
import sys
from pathlib import Path
from statistics import fmean

TUNE = Path(__file__).parent / "tune"


def scores(method: str) -> dict[str, float]:
    """learning rate, as it was written -> mean pass@1 of the run; a run that stopped on a non-finite loss is not there."""
    found = {}
    for folder in sorted(TUNE.glob(f"{method}-lr*")):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = json.loads((folder / "config.json").read_text())["steps"]
        log = (TUNE / "logs" / f"{folder.name}.txt").read_text()
        if rows[-1]["step"] < steps and "the run stops before this update" not in log:
            raise SystemExit(f"{folder.name} is not finished; run bash runs/tune.sh")
        if rows[-1]["step"] == steps:
            found[folder.name.removeprefix(f"{method}-lr")] = fmean(
                r["eval/pass@1"] for r in rows if "eval/pass@1" in r
            )
    if not found:
        raise SystemExit(f"{method}: not tuned; run bash runs/tune.sh")
    return found


def best_lr(method: str) -> str:
    found = scores(method)
    return max(found, key=lambda lr: found[lr])


if __name__ == "__main__":
    print(best_lr(sys.argv[1]))
