"""One rank against two on this machine's cores, a thread each: seconds of a step, ratio of rates.

    python benchmarks/ranks.py --out benchmarks/results/ranks.json > benchmarks/results/ranks.md

`remix.py` as a user runs it (`torchrun --nproc_per_node`), in alternation; the seconds of a step
are those of metrics.jsonl. The learning rate moves nothing, so that every run has the same
responses of the same lengths: only the clock differs. A rate is steps over seconds, all runs
together. Both settings run with --shard none (a copy a rank, the default on CPU) and node (FSDP2):

    embedded   the embedded model and task, 1,024 responses a step
    100M       vs_trl.py's random model with uneven responses, 16 a step, all fresh

Two rows say what could be had:

    2 jobs     two ranks with nothing to say to each other: one rank and half the batch, twice
    bare loop  the machine itself: a Python loop of 0.3 s, over and over, in two processes that
               wait for each other after each, against one process
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from multiprocessing import Barrier, Process
from pathlib import Path
from statistics import mean

from vs_trl import WORK, make_uneven_model

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    "--data tiny --prompt plain --max_prompt_tokens 64 --algo grpo --lr 1e-30 --weight_decay 0 "
    "--reincarnation_step 0 --eval_every 0 --eval_limit 1 --eval_n 1 --save_every 1000"
)
EMBEDDED = "--model tiny --max_tokens 128 --tokens_per_micro_batch 2048"
UNEVEN = "--model {uneven} --max_tokens 256 --tokens_per_micro_batch 2176 --off_policy_ratio 0"
SETTINGS = {  # flags, prompts a step and a mini-batch, steps of a run, of them warm-up
    "embedded": (EMBEDDED, 128, 64, 7, 2),
    "100M": (UNEVEN, 2, 2, 3, 1),
}


def seconds(setting: str, jobs: int, ranks: int, flags: list[str]) -> list[dict]:
    """Seconds by phase of every step after the warm-up of the jobs, which share the batch."""
    more, prompts, mini_batch, steps, warmup = SETTINGS[setting]
    more += f" --prompts_per_step {prompts // jobs} --mini_batch {mini_batch // jobs}"
    more = more.format(uneven=make_uneven_model()) if "{uneven}" in more else more
    launch = f"-m torch.distributed.run --standalone --nproc_per_node {ranks} remix.py".split()
    settings = f"{COMMON} {more} --steps {steps}".split()
    command = [sys.executable, *launch, *settings, *flags, "--out"]
    env = os.environ | dict(OMP_NUM_THREADS="1")
    outs, rows = [ROOT / "out" / f"ranks{ranks}-job{job}" for job in range(jobs)], []
    logs, running = [WORK / f"{out.name}.log" for out in outs], []
    for out, path in zip(outs, logs, strict=True):
        shutil.rmtree(out, ignore_errors=True)
        with open(path, "w") as log:
            where = dict(cwd=ROOT, env=env, stdout=log, stderr=log)
            running.append(subprocess.Popen([*command, str(out)], **where))
    for job in running:  # all of them, before any is read: none goes on alone when another fails
        job.wait()
    for out, path, job in zip(outs, logs, running, strict=True):
        if job.returncode:
            sys.exit(path.read_text())
        lines = (out / "metrics.jsonl").read_text().splitlines()
        rows += [json.loads(line) for line in lines[1 + warmup :]]
        shutil.rmtree(out)
    return [{k[8:]: v for k, v in row.items() if k.startswith("seconds_")} for row in rows]


def loop(units: int, barrier) -> None:
    for _ in range(units):
        sum(i * i for i in range(4_000_000))
        barrier.wait()


def bare_loop(processes: int, units: int = 30) -> float:
    """Seconds of processes in step for so many units of the loop each: no memory, no project."""
    barrier, started = Barrier(processes), time.perf_counter()
    running = [Process(target=loop, args=(units, barrier)) for _ in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--out", help="raw numbers as JSON")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    WORK.mkdir(parents=True, exist_ok=True)
    print("$", " ".join(["python", "benchmarks/ranks.py", *sys.argv[1:]]))
    # jobs, ranks of each, --shard
    launches = [(1, 1, "none"), (2, 1, "none"), (1, 2, "none"), (1, 2, "node")]
    raw = {setting: {launch: [] for launch in launches} for setting in args.settings}
    loops = {1: [], 2: []}  # processes: seconds
    phases = ("rollout", "reward", "frozen", "update")
    print("| setting | launched | shard | rollout [s] | reward | frozen | update", end="")
    print(" | **step** [s] | rate |")
    print("|---|---|---|" + "---:|" * 6)
    for setting, of in raw.items():
        for _ in range(args.repeats):
            for processes, of_loop in loops.items():
                of_loop.append(bare_loop(processes))
            for jobs, ranks, shard in launches:
                flags = ["--engine", args.engine, "--shard", shard]
                of[jobs, ranks, shard] += seconds(setting, jobs, ranks, flags)
        step = {
            launch: mean(sum(row[name] for name in phases) for row in rows)
            for launch, rows in of.items()
        }
        for (jobs, ranks, shard), rows in of.items():
            cells = [f"{mean(row[name] for row in rows):.2f}" for name in phases]
            took = step[jobs, ranks, shard]
            rate = f"**{step[launches[0]] / took:.2f} x**" if jobs * ranks > 1 else ""
            what = f"{ranks} ranks" if ranks > 1 else "1 rank"
            what = f"{jobs} jobs, half each" if jobs > 1 else what
            cells = " | ".join([setting, what, shard, *cells, f"{took:.2f}", rate])
            print(f"| {cells} |", flush=True)
    rate = 2 * sum(loops[1]) / sum(loops[2])
    print(f"| the machine | bare loop, 2 processes |  |  |  |  |  |  | **{rate:.2f} x** |")
    if args.out:
        rows = [
            dict(setting=setting, jobs=jobs, ranks=ranks, shard=shard, seconds=x)
            for setting, of in raw.items()
            for (jobs, ranks, shard), x in of.items()
        ]
        raw = dict(arguments=sys.argv[1:], runs=rows, loops=loops)
        Path(args.out).write_text(json.dumps(raw) + "\n")


if __name__ == "__main__":
    main()
