r"""Your own reward, second example: programs. What a response's function gives on the row's tests.

    .venv/bin/python -m pip install pydantic-monty
    python examples/programs.py problems.jsonl       # 1,000 problems; a second argument is the seed
    python examples/programs.py held_out.jsonl 1
    bash train.sh 1.5b --data problems.jsonl --eval_data held_out.jsonl \
        --reward examples/programs.py:reward --out out/programs

The last block ```python after </think> counts; the reward is the share of tests that it passes. A
model's code may do anything, so it runs in Monty, an interpreter without files, network or other
processes, with limits on time and memory. Never exec it: a worker is not a sandbox.
"""

import json
import random
import re
import sys

try:
    from pydantic_monty import Monty, MontyError, ResourceLimits
except ImportError:
    sys.exit("examples/programs.py wants Monty: .venv/bin/python -m pip install pydantic-monty")

# All four tests within the two seconds of --grader_deadline
LIMITS = ResourceLimits(max_feed_duration_secs=0.3, max_total_sleep_secs=0.0, max_memory=50_000_000)
PICKS = {
    "even numbers": lambda x: x % 2 == 0,
    "odd numbers": lambda x: x % 2 == 1,
    "numbers above 9": lambda x: x > 9,
}
FOLDS = {"sum": sum, "number": len, "list": list}


def reward(response: str, row: dict) -> float:
    blocks = re.findall(r"```python\n(.*?)```", response.rpartition("</think>")[2], re.DOTALL)
    passed = 0
    with Monty(max_processes=1) as pool:
        for call, expected in row["tests"] if blocks else ():
            try:
                with pool.checkout(limits=LIMITS) as session:  # afresh for each test
                    # What comes back is compared here: no == of the response's own decides
                    passed += session.feed_run(f"{blocks[-1]}\n{call}") == expected
            except MontyError:  # wrong syntax, an exception, a limit: this test is not passed
                pass
    return passed / len(row["tests"])


def problem(rng: random.Random) -> dict:
    (pick, keep), (fold, result) = rng.choice([*PICKS.items()]), rng.choice([*FOLDS.items()])
    lists = [[rng.randint(0, 20) for _ in range(size)] for size in (0, 3, 6, 9)]
    tests = [[f"f({xs})", result([x for x in xs if keep(x)])] for xs in lists]
    text = f"Write a Python function f(xs) that returns the {fold} of the {pick} in the list xs."
    return dict(problem=f"{text} Put it into a ```python block.", tests=tests)


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with open(sys.argv[1], "w") as file:
        file.writelines(json.dumps(problem(rng)) + "\n" for _ in range(1000))
