"""The exercises of docs/walkthrough.md: minimal.py with one line changed, run and recorded.

    python benchmarks/exercises.py                 what the changes are
    python benchmarks/exercises.py m4 --seed 1     runs one; what it prints becomes a line of
                                                   benchmarks/results/exercises.jsonl

Each takes two to three minutes on one core. Do them by hand first: the change is one line.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from metrics import git_commit  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "exercises.jsonl"

LOSS = "(pg - C * H + BETA * klc + vf)[mask[b]].mean().backward()"
HALVES = "((pg - C * H + BETA * klc + vf)[i::2][mask[b][i::2]].mean() for i in range(2))"
EXERCISES = {  # name -> what is changed, the old text, the new one
    "none": ("nothing", "", ""),
    "centre1": ("the clip sits around π_b", "c = torch.exp(logp_k - logp_b)", "c = 1"),
    "never": ("no reincarnation", 'Fraction("0.4"), 2, 2, 12', 'Fraction("0.4"), 2, 2, 99'),
    "m4": ("m = 4", 'Fraction("0.4"), 2, 2, 12', 'Fraction("0.4"), 2, 4, 12'),
    "beta0.1": ("β = 0.1, to compare the next with", "BETA * klc", "0.1 * klc"),
    "kl-away": ("β = 0.1, the KL upside down", "+ BETA * klc", "- 0.1 * klc"),
    "per-rank": (
        "each of two ranks divides by its own tokens", LOSS, f"(sum{HALVES} / 2).backward()",
    ),
    "no-eos": (
        "eos is masked", "mask = ids[:, W:] != PAD",
        "mask = (ids[:, W:] != PAD) & (ids[:, W:] != tokenizer.eos_token_id)",
    ),
}  # fmt: skip


def changed(name: str, seed: int = 0) -> str:
    """minimal.py's text with the exercise's line changed."""
    source = (ROOT / "minimal.py").read_text()
    for old, new in [(", 5, 0, 16, 128", f", 5, {seed}, 16, 128"), EXERCISES[name][1:]]:
        if old and source.count(old) != 1:
            raise SystemExit(f"benchmarks/exercises.py: {old!r} does not stand once in minimal.py")
        source = source.replace(old, new) if old else source
    return source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXERCISES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in set(args.names) - set(EXERCISES):
        parser.error(f"{name}: is none of {', '.join(EXERCISES)}")
    if not args.names:
        for name, (what, old, new) in EXERCISES.items():
            print(f"{name}: {what}\n    - {old}\n    + {new}")
    for name in args.names:
        command = [sys.executable, "-c", changed(name, args.seed)]
        env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.returncode)
        print(done.stdout)
        with open(RESULTS, "a") as file:
            line = dict(name=name, seed=args.seed, commit=git_commit())
            line["log"] = done.stdout.splitlines()
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
