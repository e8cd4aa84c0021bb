"""Sums and differences of two to four numbers, for a small language model: `bash train.sh smollm`.

    python examples/sums.py problems.jsonl 1000 0    # problems, seed: sums.jsonl has these
    python examples/sums.py held_out.jsonl 200 1     # sums_test.jsonl, none of them in sums.jsonl

sums.txt beside it is their prompt, with one worked example in SmolLM2's own marks. All numbers
and running totals are between 0 and 80.
"""

import json
import random
import sys
import zlib


def problem(rng: random.Random) -> dict:
    total = rng.randint(1, 20)
    text = str(total)
    for _ in range(rng.randint(1, 3)):
        number = rng.randint(1, 20)
        minus = number <= total and rng.random() < 0.5
        total += -number if minus else number
        text += f" {'-' if minus else '+'} {number}"
    return dict(problem=text, answer=str(total))


def problems(count: int, seed: int) -> list[dict]:
    """All different. An odd seed's are held out: none of them is any even seed's."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        row = problem(rng)
        held_out = zlib.crc32(row["problem"].encode()) % 5 == 0
        if held_out == bool(seed % 2):
            found[row["problem"]] = row
    return list(found.values())


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        rows = problems(int(sys.argv[2]), int(sys.argv[3]))
        file.writelines(json.dumps(row) + "\n" for row in rows)
