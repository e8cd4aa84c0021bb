"""One rank against two on the cores of this machine, the embedded task at equal threads a rank: the step rate and its ratio.

    python benchmarks/ranks.py --out runs/benchmarks/ranks.json

`remix.py` as a user runs it (`torchrun --nproc_per_node`), in alternation; the seconds of a step are those of metrics.jsonl.
The batch is large enough that there is something to share (512 responses). The learning rate moves nothing, so that every
run has the same responses of the same lengths: only the clock differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--model tiny --data tiny --prompt plain --max_prompt_tokens 64 --max_tokens 128 --algo grpo --prompts_per_step 64 "
    "--mini_batch 32 --tokens_per_micro_batch 2048 --lr 1e-30 --weight_decay 0 --reincarnation_step 0 --eval_every 0 "
    "--eval_limit 1 --eval_n 1 --save_every 1000"
).split()


def seconds(ranks: int, steps: int, flags: list[str]) -> list[dict]:
    out = ROOT / "out" / f"ranks{ranks}"
    shutil.rmtree(out, ignore_errors=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launch, "remix.py", *FLAGS, *flags, "--steps", str(steps), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k[8:]: v for k, v in row.items() if k.startswith("seconds_")} for row in rows[3:]
    ]  # after two steps of warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--out", help="raw numbers as JSON")
    args = parser.parse_args()
    raw: dict[int, list[list[dict]]] = {1: [], 2: []}
    for _ in range(args.repeats):
        for ranks in raw:
            raw[ranks].append(seconds(ranks, args.steps, ["--engine", args.engine]))
    phases = list(raw[1][0][0])
    step = {ranks: median(sum(row.values()) for run in runs for row in run) for ranks, runs in raw.items()}
    print(f"| ranks | {' | '.join(f'{name} [s]' for name in phases)} | step, median [s] | rate |")
    print("|---|" + "---:|" * (len(phases) + 2))
    for ranks, runs in raw.items():
        cells = [f"{fmean(row[name] for run in runs for row in run):.2f}" for name in phases]
        print(f"| {ranks} | {' | '.join(cells)} | {step[ranks]:.2f} | {step[1] / step[ranks]:.2f} x |")
    if args.out:
        Path(args.out).write_text(json.dumps(dict(command=sys.argv, flags=FLAGS, seconds=raw), indent=1) + "\n")


if __name__ == "__main__":
    main()
