"""Accuracy by kind and latency of the grader, next to math-verify alone, in one run.

    python benchmarks/grader.py                                 the cases of tests/test_reward.py
    python benchmarks/grader.py CASES.jsonl [CASES.jsonl ...]   cases of your own
    python benchmarks/grader.py --generate 20000                random ones, of generate_answers.py

A line of a file is {"gold", "pred", "expected", "kind"}; with "full": true, `pred` is a whole
response that must hold a box. A few hostile answers are built in. math-verify alone is `parse` and
`verify` as its README has them, with its own timeouts (which need the main thread). An answer that
it gives up on counts as graded wrong. Latencies are of `equivalent` in this process, each case
once. Exit status 1 if the grader exceeds a bound of BOUNDS.
"""

import argparse
import json
import logging
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import reward
from benchmarks.generate_answers import generate

BOUNDS = {"accuracy": 0.995, "median_s": 0.001, "p99_s": 0.2, "max_s": 2.0}
HOSTILE = [
    "9^{9^{9^{9}}}",
    "100000!",
    r"10^{10^{10}}",
    "(x+1)^{5000}",
    r"\binom{10^9}{5}",
    "(" * 200 + "1" + ")" * 200,
    "1" * 10**6,
    r"\frac{1}{" * 60 + "2" + "}" * 60,
    r"\sum_{k=1}^{10^9} k",
    "x^{" * 40 + "2" + "}" * 40,
    "((5!)!)!",
    "__import__('os').system('true')",
    r"\sqrt{" * 60 + "2" + "}" * 60,
    r"\sin(10^{100000})",
]


def math_verify_alone(pred: str, gold: str) -> bool:
    from math_verify import parse, verify  # late: --ours-only needs neither it nor sympy

    return verify(parse(f"${gold}$"), parse(pred if "\\boxed" in pred else f"${pred}$"))


def ours(pred: str, gold: str) -> bool:
    return reward.equivalent(pred, gold)


def grade(grader, rows: list[dict]) -> tuple[list[bool], list[float]]:
    """Is each case graded as expected? And its latency in seconds."""
    right, seconds = [], []
    for row in rows:
        pred = row["pred"]
        if row.get("full") and "\\boxed" not in pred:
            pred = ""  # no box, no answer, whatever the grader reads into its text
        start = time.perf_counter()
        try:
            verdict = grader(pred, row["gold"])
        except Exception:  # math-verify alone; ours is not meant to raise, and the count shows it
            verdict = None
        seconds.append(time.perf_counter() - start)
        right.append(verdict == row["expected"])
    return right, seconds


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"median_s": 0.5, "p99_s": 0.99, "max_s": 1.0}
    last = len(ordered) - 1
    return {name: ordered[min(int(share * len(ordered)), last)] for name, share in at.items()}


def generated(count: int, show: bool) -> None:
    """Random pairs: the shares said to be equal, of those that are and of those that are not."""
    rows = generate(count)
    right, seconds = grade(ours, rows)
    print("| pairs | equal | of them said to be equal | different | of them said to be equal |")
    print("|---|---:|---:|---:|---:|")
    for kind in [*sorted({row["kind"] for row in rows}), "all"]:
        shares = []
        for equal in (True, False):
            among = [row["expected"] is equal and kind in (row["kind"], "all") for row in rows]
            said = sum(fine is equal for fine, chosen in zip(right, among, strict=True) if chosen)
            shares += [sum(among), said / max(sum(among), 1)]
        print("| {} | {:,} | {:.2%} | {:,} | {:.2%} |".format(kind, *shares))
    print(", ".join(f"{name} {value:.5f}" for name, value in summary(seconds).items()))
    for row, fine in zip(rows, right, strict=True):
        if show and not fine:
            print("WRONG", json.dumps(row))
    if shares[1] < 0.999 or shares[3] > 0.0005:
        sys.exit("out of bounds: 99.9 % of the equal pairs, 0.05 % of the different ones")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="CASES.jsonl")
    flag = parser.add_argument
    flag("--ours-only", action="store_true", help="skip math-verify, which may take minutes")
    flag("--show", action="store_true", help="print each case that the grader gets wrong")
    flag("--generate", type=int, default=0, metavar="N", help="N random pairs in place of files")
    options = parser.parse_args()
    if options.generate:
        return generated(options.generate, options.show)
    hostile = {"gold": "8", "expected": False, "kind": "hostile (built in)"}
    rows = [hostile | {"pred": pred} for pred in HOSTILE]
    for name in options.files:
        with open(name) as file:
            rows += [json.loads(line) for line in file if line.strip()]
    if not options.files:
        from tests.test_reward import KINDS

        for kind, cases in KINDS.items():
            for gold, right, wrong in cases:
                row = {"gold": gold, "kind": kind}
                rows += [row | {"pred": pred, "expected": True} for pred in right]
                rows += [row | {"pred": pred, "expected": False} for pred in wrong]

    logging.disable(logging.WARNING)  # math-verify logs each answer that it cannot read
    graders = {"reward.py": ours}
    if not options.ours_only:
        graders["math-verify"] = math_verify_alone
    results = {name: grade(grader, rows) for name, grader in graders.items()}

    kinds = sorted({row["kind"] for row in rows}, key=lambda kind: ("hostile" in kind, kind))
    print(f"{'kind':24}{'cases':>8}" + "".join(f"{name:>14}" for name in graders))
    for kind in [*kinds, None]:
        chosen = [i for i, row in enumerate(rows) if kind in (row["kind"], None)]
        shares = [sum(right[i] for i in chosen) / len(chosen) for right, _ in results.values()]
        cells = "".join(f"{share:>14.2%}" for share in shares)
        print(f"{kind or 'all':24}{len(chosen):>8}{cells}")
    summaries = [summary(seconds) for _, seconds in results.values()]
    for name in ("median_s", "p99_s", "max_s"):
        print(f"{name:32}" + "".join(f"{times[name]:>14.5f}" for times in summaries))

    right, seconds = results["reward.py"]
    if options.show:
        for row in (row for row, fine in zip(rows, right, strict=True) if not fine):
            print("WRONG", json.dumps(row)[:300])
    measured = {"accuracy": sum(right) / len(right)} | summary(seconds)
    broken = {n: v for n, v in measured.items() if v > BOUNDS[n] and n != "accuracy"}
    if measured["accuracy"] < BOUNDS["accuracy"]:
        broken["accuracy"] = measured["accuracy"]
    if broken:
        sys.exit(f"out of bounds: {broken}, of {BOUNDS}")


if __name__ == "__main__":
    main()
