"""kill -9 at many moments of a run: does the same command go on as if nothing had happened?

    python benchmarks/kills.py                    21 kills with one rank, 9 with two, and the rest
    python benchmarks/kills.py --kills 2 0        as many with one rank, and with two
    python benchmarks/kills.py --work out/kills   for the runs; what is done there is not done again

An undisturbed run of eight steps, across the reincarnation after step 4, saves after every second.
Each kill is drawn from a seed: a moment (start, a phase of a step, save, export), a step, and a
time within it; the process kills itself there, so that every kill hits what the table says. Then
the same command runs to the end, and every metric but the seconds and every weight must equal the
undisturbed run's bit for bit. Likewise for a checkpoint that is cut at ten places, for one rank of
two, and for a disk that is full from that moment on (the run must end with a sentence). A grader's
worker that dies and a data file that shrinks must not be noticed. Exit status 1 if one differs.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STEPS, EVERY, T = 8, 2, 4
FLAGS = (
    f"--prompt plain --max_prompt_tokens 64 --max_tokens 48 --prompts_per_step 10 --mini_batch 5 "
    f"--lr 1e-3 --critic_lr 1e-2 --eval_limit 6 --eval_n 2 --eval_every 3 --save_every {EVERY} "
    f"--reincarnation_step {T} --steps {STEPS} --kl_coef 0.1 --kl_convex 0.6 --engine hf"
).split()
PHASES = ["rollout", "reward", "frozen", "update", "save"]
MOMENTS = ["start", *PHASES, "export"]
CUTS = 10


# ------------------------------------------------------------ inside: remix.py that kills something


def inside(what: str, rank: int, moment: str, step: int, share: float, note: str) -> None:
    """Run remix.py on the flags that are left; kill `what` (this process, or a grader's worker) in
    `rank`, at `share` of `moment` in `step`, and say to the file `note` what was hit."""
    now = ["start", 0]  # moment, step
    due = dict(start=8.0, save=0.3, export=0.2)  # seconds that it takes, where no step has told yet
    armed = int(os.environ.get("RANK", 0)) == rank

    def kill() -> None:
        Path(note).write_text(json.dumps(dict(moment=now[0], step=now[1])))
        if what == "grader":
            graders[0].workers[0].process.kill()
        elif what == "disk":  # every file longer than this is one too long, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        elif what == "data":
            path = sys.argv[sys.argv.index("--data") + 1]
            os.truncate(path, os.path.getsize(path) // 2)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def enter(name: str, at: int) -> None:
        now[:] = name, at
        if armed and name == moment and (at == step or name in ("start", "export")):
            timer = threading.Timer(share * due.get(name, 0.3), kill)
            timer.daemon = True
            timer.start()

    enter("start", 0)
    import checkpoint
    import metrics
    import remix

    graders = []

    def around(owner, name: str, before) -> None:
        real = getattr(owner, name)

        def call(*args, **options):
            before(*args)
            return real(*args, **options)

        setattr(owner, name, call)

    def phase(log, name: str) -> None:
        due[name] = time.perf_counter() - log.began - sum(log.seconds.values())
        following = dict(zip(PHASES, PHASES[1:], strict=False)).get(name)
        if following not in (None, "save"):
            enter(following, log.step)

    around(metrics.Log, "start", lambda log, at: enter("rollout", at))
    around(metrics.Log, "phase", phase)
    around(checkpoint, "save_run", lambda cfg, state, *_: enter("save", state.step))
    around(checkpoint, "export", lambda *_: enter("export", STEPS))
    around(remix.Grader, "score", lambda grader, *_: graders.append(grader))
    sys.argv[0] = str(ROOT / "remix.py")
    remix.main()


# ---------------------------------------------------------------- outside: runs, and what they gave


def launch(out: Path, base: Path, ranks: int, *kill: object) -> int:
    """remix.py, or itself killing something -> exit status."""
    data = base.with_name("problems.json")
    if kill and kill[0] == "data":
        data = shutil.copy(data, f"{out}.data.json")
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *(command if ranks > 1 else [])]
    command += [__file__, "--inside", *map(str, kill)] if kill else [str(ROOT / "remix.py")]
    command += [*FLAGS, "--model", base, "--data", data, "--eval_data", data, "--out", out]
    env = os.environ | dict(OMP_NUM_THREADS="1")
    # A pipe: the limit of a full disk would hold for the log, too
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    done = subprocess.run(list(map(str, command)), env=env, **pipes)
    with open(f"{out}.log", "ab") as log:
        log.write(done.stdout)
    return done.returncode


def result(out: Path) -> tuple[list[dict], str]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [
        {k: v for k, v in row.items() if not k.startswith(("seconds", "machine/"))} for row in rows
    ]
    return rows, hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def difference(out: Path, whole: Path) -> str:
    """What is not as in the undisturbed run, "" if nothing."""
    (rows, weights), (expected, same) = result(out), result(whole)
    if len(rows) != len(expected):
        return f"{len(rows)} rows, not {len(expected)}"
    for row, other in zip(rows, expected, strict=True):
        for name in row | other:
            if row.get(name) != other.get(name):
                return f"step {row['step']}: {name} {row.get(name)}, not {other.get(name)}"
    return "" if weights == same else "weights"


def goes_on(out: Path, base: Path, ranks: int, whole: Path) -> str:
    status = launch(out, base, ranks)
    return difference(out, whole) if status == 0 else f"exit status {status}, see {out}.log"


def killed(work: Path, base: Path, number: int, ranks: int, what: str) -> dict:
    """One kill, and the same command again -> what was hit, and what differs."""
    draw = random.Random(f"{what} {ranks} {number}")
    moment = "reward" if what in ("grader", "data") else MOMENTS[number % len(MOMENTS)]
    steps = range(EVERY, STEPS + 1, EVERY) if moment == "save" else range(1, STEPS + 1)
    step, rank, share = draw.choice(steps), draw.randrange(ranks), draw.random()
    if what == "grader":
        share = 0.0
    out = work / f"{what}-{ranks}-{number}"
    note = Path(f"{out}.json")
    status = launch(out, base, ranks, what, rank, moment, step, share, note)
    hit = json.loads(note.read_text()) if note.exists() else dict(moment="missed", step=0)
    whole = work / f"whole-{ranks}"
    if what == "disk" and status == 0:  # over before its moment came, on a fast machine
        differs = "did not notice" if note.exists() else difference(out, whole)
    elif what == "disk" and "cannot be written" not in Path(f"{out}.log").read_text():
        differs = f"no sentence in {out}.log"
    elif what in ("grader", "data"):  # nobody starts the run again
        differs = difference(out, whole) if status == 0 else f"exit status {status}"
    else:
        differs = goes_on(out, base, ranks, whole)
    return dict(what=what, ranks=ranks, differs=differs) | hit


def cut(work: Path, base: Path, number: int) -> dict:
    """A run of four steps whose newest checkpoint has one file cut short, and the whole command."""
    draw, out, half = random.Random(f"cut {number}"), work / f"cut-{number}", work / "half"
    if not half.exists():  # the undisturbed run's first half: what it has saved by then
        flags, FLAGS[:] = FLAGS[:], [*FLAGS, "--steps", str(STEPS // 2)]
        launch(half, base, 1)
        FLAGS[:] = flags
    shutil.copytree(half, out)
    files = [path for path in max((out / "checkpoints").glob("step-*")).iterdir() if path.is_file()]
    path = sorted(files)[number % len(files)]
    os.truncate(path, size := draw.randrange(path.stat().st_size))
    moment = f"{path.name} at byte {size:,}"
    differs = goes_on(out, base, 1, work / "whole-1")
    return dict(what="cut", ranks=1, differs=differs, moment=moment, step=STEPS // 2)


def table(done: list[dict]) -> str:
    names = dict(
        process="kill -9", grader="kill -9 of a grader's worker", cut="a checkpoint cut short",
        disk="the disk is full from then on", data="the data file shrinks",
    )  # fmt: skip
    lines = [
        "| what | ranks | hit | times | in steps | equal bit for bit |",
        "|---|---:|---|---:|---|---:|",
    ]
    groups: dict[tuple, list[dict]] = {}
    for row in done:
        moment = row["moment"].split(" at ")[0]
        groups.setdefault((row["what"], row["ranks"], moment), []).append(row)
    for (what, ranks, moment), rows in groups.items():
        name = "kill -9 of one rank" if what == "process" and ranks > 1 else names[what]
        steps = ", ".join(map(str, sorted({row["step"] for row in rows})))
        equal = sum(not row["differs"] for row in rows)
        lines.append(f"| {name} | {ranks} | {moment} | {len(rows)} | {steps} | {equal} |")
    lines += ["", *(f"differs: {row}" for row in done if row["differs"])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, nargs=2, default=(21, 9), metavar=("ONE", "TWO"))
    parser.add_argument("--cuts", type=int, default=CUTS, help="checkpoints that are cut short")
    parser.add_argument("--graders", type=int, default=2, help="grader's workers that are killed")
    parser.add_argument("--disks", type=int, default=len(MOMENTS), help="disks that fill up")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "kills")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    base, problems = work / "base", work / "problems.json"
    if not problems.exists():
        import tiny

        tiny.make_base_model(str(base), tiny.BaseModel(steps=60, batch_size=64), quiet=True)
        # Any number up to 100 is right: this base model hardly ever is, and nothing would move
        rows = [
            dict(problem=f"{a} + {b}", answer="50", error="50") for a in range(9) for b in range(9)
        ]
        problems.write_text(json.dumps(rows))

    jobs = [("process", 1, i) for i in range(args.kills[0])]
    jobs += [("process", 2, i) for i in range(args.kills[1])]
    jobs += [("grader", 1, i) for i in range(args.graders)]
    jobs += [("disk", 1, i) for i in range(args.disks)]
    jobs += [("data", 1, 0)][: args.graders]
    jobs += [("cut", 1, i) for i in range(args.cuts)]
    for ranks in sorted({ranks for _, ranks, _ in jobs}):
        if not (work / f"whole-{ranks}" / "model").exists() and launch(
            work / f"whole-{ranks}", base, ranks
        ):
            sys.exit(f"kills.py: the undisturbed run failed, see {work}/whole-{ranks}.log")
    done = []
    for what, ranks, number in jobs:
        kept = work / f"{what}-{ranks}-{number}.done"
        if not kept.exists():
            shutil.rmtree(work / f"{what}-{ranks}-{number}", ignore_errors=True)
            shutil.rmtree(work / f"cut-{number}", ignore_errors=True)
            row = (
                cut(work, base, number)
                if what == "cut"
                else killed(work, base, number, ranks, what)
            )
            kept.write_text(json.dumps(row))
        done.append(json.loads(kept.read_text()))
        print(done[-1], file=sys.stderr, flush=True)
    print(table(done))
    sys.exit(any(row["differs"] for row in done))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        what, rank, moment, step, share, note = sys.argv[2:8]
        del sys.argv[1:8]
        inside(what, int(rank), moment, int(step), float(share), note)
    else:
        main()
